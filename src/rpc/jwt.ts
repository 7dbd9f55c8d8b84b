// JWTs of configured issuers: the signature by their published keys, the tenant and the role from verified claims.
// Algorithms are allowed one by one and are all asymmetric: `none` and HMACs are not among them.
import { createHash } from 'node:crypto';
import {
  createRemoteJWKSet,
  customFetch,
  decodeJwt,
  errors,
  type FetchImplementation,
  type JWTPayload,
  type JWTVerifyGetKey,
  jwtVerify,
} from 'jose';
import type { JwtIssuer } from '../config.ts';
import { DispatchError } from '../domain/errors.ts';
import { parseTenantId } from '../domain/ids.ts';
import { isRole, ROLES } from '../domain/roles.ts';
import type { Fetcher } from '../egress/fetcher.ts';
import { type Principal, unauthenticated } from './authentication.ts';

/** A verified token is not verified again for this long, nor beyond its own end. */
const REMEMBER_MS = 60_000;
const MAX_REMEMBERED = 10_000;
/** After a failure the keys of an issuer are not asked for again for this long. */
const FAILED_MS = 2_000;
const TOLERANCE_S = 5;

type Issuer = JwtIssuer & { readonly keys: JWTVerifyGetKey };

/** `now` is ms since 1970. Undefined when there are no issuers. */
export function createJwtVerifier(
  issuers: readonly JwtIssuer[],
  fetcher: Fetcher,
  now: () => number,
): ((token: string) => Promise<Principal>) | undefined {
  if (issuers.length === 0) return undefined;
  const known = new Map<string, Issuer>(
    issuers.map((issuer) => [issuer.issuer, { ...issuer, keys: remoteKeys(issuer.jwksUrl, fetcher, now) }]),
  );
  const remembered = new Map<string, { readonly principal: Principal; readonly untilMs: number }>();
  return async (token) => {
    const digest = createHash('sha256').update(token).digest('base64');
    const before = remembered.get(digest);
    if (before !== undefined && before.untilMs > now()) return before.principal;
    const issuer = known.get(issuerOf(token) ?? '');
    if (issuer === undefined) throw unauthenticated('the token’s issuer is not one that is accepted');
    const payload = await verify(token, issuer);
    const principal = principalOf(payload, issuer);
    if (remembered.size >= MAX_REMEMBERED) remembered.clear();
    const untilMs = Math.min(now() + REMEMBER_MS, (payload.exp ?? 0) * 1000);
    remembered.set(digest, { principal, untilMs });
    return principal;
  };
}

function issuerOf(token: string): string | undefined {
  try {
    return decodeJwt(token).iss;
  } catch {
    return undefined; // not a JWT at all
  }
}

function remoteKeys(url: string, fetcher: Fetcher, now: () => number): JWTVerifyGetKey {
  let failedAtMs = Number.NEGATIVE_INFINITY;
  const guarded: FetchImplementation = async (address, { signal }) => {
    if (now() - failedAtMs < FAILED_MS) throw new Error('the keys could not be fetched a moment ago');
    try {
      const headers = { accept: 'application/json' };
      const { status, body } = await fetcher(address, { method: 'GET', headers, signal });
      if (status !== 200) throw new Error(`the keys' address answered ${status}`);
      return new Response(new Uint8Array(body), { status });
    } catch (error) {
      failedAtMs = now();
      throw error;
    }
  };
  return createRemoteJWKSet(new URL(url), { [customFetch]: guarded, timeoutDuration: 5_000 });
}

const ABOUT_THE_TOKEN = [
  errors.JWTExpired,
  errors.JWTClaimValidationFailed,
  errors.JWSSignatureVerificationFailed,
  errors.JOSEAlgNotAllowed,
  errors.JWSInvalid,
  errors.JWTInvalid,
  errors.JWKSNoMatchingKey,
  errors.JWKSMultipleMatchingKeys,
  errors.JOSENotSupported,
];

async function verify(token: string, issuer: Issuer): Promise<JWTPayload> {
  try {
    const { payload } = await jwtVerify(token, issuer.keys, {
      issuer: issuer.issuer,
      audience: issuer.audience,
      algorithms: [...issuer.algorithms],
      requiredClaims: ['iss', 'aud', 'exp', 'sub'],
      clockTolerance: TOLERANCE_S,
    });
    return payload;
  } catch (error) {
    if (error instanceof errors.JWTExpired) throw unauthenticated('the token has expired');
    if (ABOUT_THE_TOKEN.some((kind) => error instanceof kind)) {
      throw unauthenticated(
        'the token is not valid: its signature, algorithm, issuer, audience or a claim is wrong',
      );
    }
    throw new DispatchError('UNAVAILABLE', 'the keys of the token’s issuer cannot be had now; try again', {
      cause: error,
      reason: 'JWKS_UNAVAILABLE',
      retryAfterMs: 2_000,
    });
  }
}

/** What the audit log can name: Postgres stores no NUL, and a half of a surrogate pair is no character. */
const SUBJECT = /^[^\p{Cc}\p{Cs}]{1,256}$/u;

function principalOf(payload: JWTPayload, issuer: Issuer): Principal {
  const role = payload[issuer.roleClaim];
  if (!isRole(role)) {
    throw unauthenticated(`the token’s claim ${issuer.roleClaim} must be one of ${ROLES.join(', ')}`);
  }
  const { sub } = payload;
  if (typeof sub !== 'string' || !SUBJECT.test(sub)) {
    throw unauthenticated('the token’s claim sub must be 1–256 characters without control characters');
  }
  const actor = `jwt:${issuer.issuer}:${sub}`.slice(0, 512).toWellFormed();
  if (role === 'platform-admin') return { role, tenantId: undefined, actor };
  const claimed = payload[issuer.tenantClaim];
  try {
    return { role, tenantId: parseTenantId(typeof claimed === 'string' ? claimed : ''), actor };
  } catch {
    throw unauthenticated(`the token’s claim ${issuer.tenantClaim} must be a tenant id`);
  }
}
