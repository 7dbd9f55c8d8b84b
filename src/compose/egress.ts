// What may be sent to a target, and with which credentials.
import type { Target } from '../storage/targets.ts';
import type { Egress } from './shared.ts';

/** Whether a scheme is one that a target's tenant may have. Exceptions from the guard are exceptions from https, too. */
export const schemeAllowed = ({ guard }: Egress, { allowHttp }: Target, url: string) =>
  allowHttp || !url.startsWith('http:') || guard.urlProblem(new URL(url), false) === undefined;

const MAX_ORIGINS = 10_000;

/** The same for the endpoint of a target, which is asked before every attempt: worked out once for each origin. */
export function endpointAllowed(egress: Egress): (target: Target) => boolean {
  const known = new Map<string, boolean>();
  return (target) => {
    const { origin } = target;
    if (target.allowHttp || !origin.startsWith('http:')) return true;
    let isAllowed = known.get(origin);
    if (isAllowed === undefined) {
      isAllowed = schemeAllowed(egress, target, origin);
      if (known.size >= MAX_ORIGINS) known.clear();
      known.set(origin, isAllowed);
    }
    return isAllowed;
  };
}

/** The authorization header of a target's attempts. */
export const authorizationOf = (egress: Egress) => (target: Target) => {
  const { auth } = target.credentials;
  if (auth === undefined) return undefined;
  if (auth.kind === 'oauth2' && !schemeAllowed(egress, target, auth.tokenUrl)) {
    return Promise.reject(new Error('the tenant’s quota allows https token URLs only'));
  }
  return egress.authorizer.of(target.subscriptionId, auth);
};
