// The authorization header of attempts: fixed credentials, or OAuth 2.0 tokens by client credentials (RFC 6749, section
// 4.4), which are fetched once for all attempts of a subscription and kept until shortly before they expire.
import { createHash } from 'node:crypto';
import { type EndpointAuth, fixedAuthorization } from '../domain/credentials.ts';
import { BlockedAddressError } from './connector.ts';
import type { Fetcher } from './fetcher.ts';

/** A token is not used in the last part of its life. */
const EARLY_MS = 30_000;
const DEFAULT_LIFE_MS = 300_000;
const MAX_LIFE_MS = 24 * 3600 * 1000;
/** After a failure nobody asks again for this long: the attempts that wait fail with it. */
const FAILED_MS = 1_000;
const MAX_TOKENS = 10_000;

type OAuth2 = Extract<EndpointAuth, { kind: 'oauth2' }>;
type Token = { readonly value: string; readonly untilMs: number };

export type Authorizer = {
  /** The header's value; a promise while a token is fetched. Rejects with a sentence that a tenant may read. */
  readonly of: (owner: string, auth: EndpointAuth) => string | Promise<string>;
  /** The endpoint answered 401: the token is fetched anew for the next attempt. */
  readonly refused: (owner: string, auth: EndpointAuth) => void;
};

/** `now` is monotonic, in ms. An owner (a subscription) never gets another's token. */
export function createAuthorizer(fetcher: Fetcher, now: () => number): Authorizer {
  const tokens = new Map<string, Token>();
  const fetching = new Map<string, Promise<string>>();

  async function fetchToken(key: string, auth: OAuth2): Promise<string> {
    try {
      const token = await requestToken(fetcher, auth, now());
      if (tokens.size >= MAX_TOKENS) tokens.delete(tokens.keys().next().value ?? '');
      tokens.set(key, token);
      fetching.delete(key);
      return token.value;
    } catch (error) {
      setTimeout(() => fetching.delete(key), FAILED_MS).unref();
      throw error;
    }
  }

  return {
    of(owner, auth) {
      const fixed = fixedAuthorization(auth);
      if (fixed !== undefined || auth.kind !== 'oauth2') return fixed ?? '';
      const key = keyOf(owner, auth);
      const known = tokens.get(key);
      if (known !== undefined && known.untilMs > now()) return known.value;
      const pending = fetching.get(key);
      if (pending !== undefined) return pending;
      const started = fetchToken(key, auth);
      fetching.set(key, started);
      return started;
    },
    refused(owner, auth) {
      if (auth.kind === 'oauth2') tokens.delete(keyOf(owner, auth));
    },
  };
}

function keyOf(owner: string, auth: OAuth2): string {
  const { tokenUrl, clientId, clientSecret, scopes, audience } = auth;
  const parts = JSON.stringify([owner, tokenUrl, clientId, clientSecret, scopes, audience]);
  return createHash('sha256').update(parts).digest('base64');
}

async function requestToken(fetcher: Fetcher, auth: OAuth2, nowMs: number): Promise<Token> {
  const form = new URLSearchParams({ grant_type: 'client_credentials' });
  if (auth.scopes.length > 0) form.set('scope', auth.scopes.join(' '));
  if (auth.audience !== '') form.set('audience', auth.audience);
  // RFC 6749, section 2.3.1: both are form-encoded before they are joined.
  const encoded = (text: string) => new URLSearchParams({ a: text }).toString().slice(2);
  const basic = `${encoded(auth.clientId)}:${encoded(auth.clientSecret)}`;
  let answer: Awaited<ReturnType<Fetcher>>;
  try {
    answer = await fetcher(auth.tokenUrl, {
      method: 'POST',
      headers: {
        'content-type': 'application/x-www-form-urlencoded',
        accept: 'application/json',
        authorization: `Basic ${Buffer.from(basic).toString('base64')}`,
      },
      body: form.toString(),
    });
  } catch (error) {
    const blocked =
      error instanceof BlockedAddressError || (error as Error).cause instanceof BlockedAddressError;
    const what = blocked
      ? 'the token URL leads to an address that endpoints may not have'
      : 'no token could be fetched from the token URL';
    throw new Error(what, { cause: error });
  }
  if (answer.status !== 200) throw new Error(`the token URL answered ${answer.status}`);
  const token = parseToken(answer.body);
  if (token === undefined) throw new Error('the token URL did not answer with a bearer token');
  const life = Math.min(token.expiresInMs ?? DEFAULT_LIFE_MS, MAX_LIFE_MS);
  return { value: `Bearer ${token.accessToken}`, untilMs: nowMs + Math.max(life - EARLY_MS, life / 2) };
}

function parseToken(
  body: Buffer,
): { readonly accessToken: string; readonly expiresInMs: number | undefined } | undefined {
  let json: unknown;
  try {
    json = JSON.parse(body.toString('utf8'));
  } catch {
    return undefined;
  }
  const {
    access_token: accessToken,
    token_type: type,
    expires_in: expires,
  } = (json ?? {}) as Record<string, unknown>;
  if (typeof accessToken !== 'string' || !/^[\x21-\x7e]{1,8192}$/.test(accessToken)) return undefined;
  if (typeof type === 'string' && type.toLowerCase() !== 'bearer') return undefined;
  const seconds = Number(expires);
  return { accessToken, expiresInMs: seconds > 0 ? seconds * 1000 : undefined };
}
