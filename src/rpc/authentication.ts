// Who is calling: `authorization: Bearer <key>`.
import { createHash, timingSafeEqual } from 'node:crypto';
import { apiKeyMatches, hashApiKey, keyIdOf } from '../domain/api-key.ts';
import { DispatchError } from '../domain/errors.ts';
import type { KeyId, TenantId } from '../domain/ids.ts';

/** Who a key acts for. */
export type Principal =
  | { readonly kind: 'platform' }
  | { readonly kind: 'tenant'; readonly tenantId: TenantId };

type KeyRecord = { readonly tenantId: TenantId; readonly hash: Buffer };

export type AuthenticationDeps = {
  readonly adminKey: string;
  readonly findLiveKey: (keyId: KeyId) => Promise<KeyRecord | undefined>;
  /** Monotonic, in ms. */
  readonly now: () => number;
};

/** A key is looked up again after this long: the bound on how long a revoked key goes on working. */
const REMEMBER_MS = 4_000;
const MAX_REMEMBERED = 10_000;

const PLATFORM: Principal = { kind: 'platform' };
const DUMMY_HASH = Buffer.alloc(32);

/** Tells the principal of an authorization header, or throws UNAUTHENTICATED. */
export type Authenticate = (authorization: string | undefined) => Principal | Promise<Principal>;

export function createAuthenticate(deps: AuthenticationDeps): Authenticate {
  const adminHash = sha256(deps.adminKey);
  const remembered = new Map<KeyId, { readonly record: KeyRecord; readonly untilMs: number }>();

  function check(token: string, record: KeyRecord | undefined): Principal {
    // An unknown id costs a comparison too, so that it takes as long as a wrong key.
    const matches = apiKeyMatches(token, record?.hash ?? DUMMY_HASH);
    if (record === undefined || !matches)
      throw unauthenticated('the key is not valid, was revoked or has expired');
    return { kind: 'tenant', tenantId: record.tenantId };
  }

  async function lookUp(token: string, keyId: KeyId): Promise<Principal> {
    const startedAt = deps.now();
    const record = await deps.findLiveKey(keyId);
    if (record !== undefined) {
      if (remembered.size >= MAX_REMEMBERED) remembered.clear();
      remembered.set(keyId, { record, untilMs: startedAt + REMEMBER_MS });
    }
    return check(token, record);
  }

  return (authorization) => {
    const token = bearerToken(authorization);
    const keyId = keyIdOf(token);
    if (keyId === undefined) {
      if (timingSafeEqual(sha256(token), adminHash)) return PLATFORM;
      throw unauthenticated('the key is not valid, was revoked or has expired');
    }
    const known = remembered.get(keyId);
    if (known !== undefined && known.untilMs > deps.now()) return check(token, known.record);
    if (timingSafeEqual(hashApiKey(token), adminHash)) return PLATFORM;
    return lookUp(token, keyId);
  };
}

function bearerToken(authorization: string | undefined): string {
  if (authorization === undefined || authorization === '') {
    throw unauthenticated('no key was given; send "authorization: Bearer <key>"');
  }
  const match = /^Bearer ([\x21-\x7e]{1,512})$/i.exec(authorization);
  if (match === null)
    throw unauthenticated('the authorization header is malformed; send "authorization: Bearer <key>"');
  return match[1]!;
}

function unauthenticated(message: string): DispatchError {
  return new DispatchError('UNAUTHENTICATED', message, { reason: 'UNAUTHENTICATED' });
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
