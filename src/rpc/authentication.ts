// Who is calling: `authorization: Bearer <key or JWT>`.
import { hash, timingSafeEqual } from 'node:crypto';
import { apiKeyMatches, keyIdOf } from '../domain/api-key.ts';
import { PLATFORM } from '../domain/audit.ts';
import { takeSlots, tokenBucket } from '../domain/bucket.ts';
import { DispatchError } from '../domain/errors.ts';
import type { KeyId, TenantId } from '../domain/ids.ts';
import type { KeyRole } from '../domain/roles.ts';

/** Who calls, and what for. */
export type Principal = {
  readonly role: KeyRole;
  /** Undefined for a platform-admin. */
  readonly tenantId: TenantId | undefined;
  /** As the audit log names it. */
  readonly actor: string;
};

type KeyRecord = {
  readonly tenantId: TenantId;
  readonly hash: Buffer;
  readonly role: KeyRole;
  readonly isLive: boolean;
  readonly expiresInMs: number | undefined;
};

/** A key that was looked up and is good. */
type Remembered = {
  readonly principal: Principal;
  readonly is: (token: string) => boolean;
  readonly untilMs: number;
};

/** A credential that was refused. */
export type Refusal = {
  /** Of the key, if it is one that is known. */
  readonly tenantId: TenantId | typeof PLATFORM;
  /** The key's id, or `unknown`. */
  readonly actor: string;
  readonly address: string;
  readonly reason: string;
};

export type AuthenticationDeps = {
  readonly adminKey: string;
  readonly findKey: (keyId: KeyId) => Promise<KeyRecord | undefined>;
  /** Notes that a key is in use; called at most once for each time that it is looked up. */
  readonly noteUse: (keyId: KeyId) => void;
  /** Tells the principal of a JWT; throws UNAUTHENTICATED. Undefined: no issuers are configured. */
  readonly verifyJwt: ((token: string) => Promise<Principal>) | undefined;
  readonly onRefused: (refusal: Refusal) => void;
  /**
   * Credentials that an address may have refused, all at once or spread over a minute, before it has to wait. Keys
   * and tokens that were good lately are looked at all the same, and so is the admin key where it was used lately.
   */
  readonly refusalsPerMinute: number;
  /** Monotonic, in ms. */
  readonly now: () => number;
};

/** A key is looked up again after this long: the bound on how long a revoked key goes on working. */
const REMEMBER_MS = 4_000;
const MAX_REMEMBERED = 10_000;

const MAX_ADDRESSES = 10_000;
const GOOD_MS = 600_000;

const PLATFORM_PRINCIPAL: Principal = { role: 'platform-admin', tenantId: undefined, actor: 'platform' };
const DUMMY_HASH = Buffer.alloc(32);
const REFUSED = 'the key is not valid, was revoked or has expired';

/** Tells the principal of an authorization header, or throws UNAUTHENTICATED. `address` is the caller's IP address. */
export type Authenticate = (
  authorization: string | undefined,
  address: string,
) => Principal | Promise<Principal>;

export function createAuthenticate(deps: AuthenticationDeps): Authenticate {
  const isAdminKey = comparedWith(deps.adminKey);
  const remembered = new Map<KeyId, Remembered>();
  const limit = tokenBucket(deps.refusalsPerMinute / 60, deps.refusalsPerMinute);
  const addresses = new Map<string, number>();
  const adminAddresses = new Map<string, number>();
  /** Keys and tokens that were good lately, by their hash: whoever else knocks from their address does not matter. */
  const good = new Map<string, number>();
  const isGood = (token: string) => good.size > 0 && (good.get(digestOf(token)) ?? 0) > deps.now();

  function noteGood(token: string): void {
    if (good.size >= MAX_REMEMBERED) good.clear();
    good.set(digestOf(token), deps.now() + GOOD_MS);
  }

  function refuse(refusal: Refusal, message = REFUSED): DispatchError {
    const { nextUs } = takeSlots(
      addresses.get(refusal.address) ?? Number.NEGATIVE_INFINITY,
      limit,
      deps.now() * 1000,
      1,
    );
    addresses.delete(refusal.address);
    addresses.set(refusal.address, nextUs);
    if (addresses.size > MAX_ADDRESSES) addresses.delete(addresses.keys().next().value ?? '');
    deps.onRefused(refusal);
    return unauthenticated(message);
  }

  const unknownKey = (address: string) =>
    refuse({ tenantId: PLATFORM, actor: 'unknown', address, reason: 'unknown_key' });

  function assertNotThrottled(address: string): void {
    const known = addresses.get(address);
    if (known === undefined) return;
    const { taken } = takeSlots(known, limit, deps.now() * 1000, 1);
    if (taken.granted === 1) return;
    const retryAfterMs = Math.ceil(taken.waitUs / 1000);
    const message = 'too many credentials from this address were refused; try again later';
    throw new DispatchError('RESOURCE_EXHAUSTED', message, { reason: 'TOO_MANY_REFUSALS', retryAfterMs });
  }

  function check(token: string, keyId: KeyId, record: KeyRecord | undefined, address: string): Principal {
    // An unknown id costs a comparison too, so that it takes as long as a wrong key.
    const matches = apiKeyMatches(token, record?.hash ?? DUMMY_HASH);
    if (record === undefined || !matches) {
      throw unknownKey(address);
    }
    const { tenantId, role } = record;
    if (!record.isLive) throw refuse({ tenantId, actor: keyId, address, reason: 'revoked_or_expired' });
    return { role, tenantId: role === 'platform-admin' ? undefined : tenantId, actor: keyId };
  }

  async function lookUp(token: string, keyId: KeyId, address: string): Promise<Principal> {
    const startedAt = deps.now();
    const record = await deps.findKey(keyId);
    const principal = check(token, keyId, record, address);
    if (record !== undefined) {
      if (remembered.size >= MAX_REMEMBERED) remembered.clear();
      const forMs = Math.min(REMEMBER_MS, record.expiresInMs ?? REMEMBER_MS);
      remembered.set(keyId, { principal, is: comparedWith(token), untilMs: startedAt + forMs });
      deps.noteUse(keyId);
      noteGood(token);
    }
    return principal;
  }

  return (authorization, address) => {
    const token = bearerToken(authorization);
    const keyId = keyIdOf(token);
    if (keyId !== undefined) {
      const known = remembered.get(keyId);
      if (known !== undefined && known.untilMs > deps.now()) {
        if (known.is(token)) return known.principal;
        throw unknownKey(address);
      }
    }
    const isAdmin = isAdminKey(token);
    const wasAdmin = (adminAddresses.get(address) ?? 0) > deps.now();
    if (!(isAdmin && wasAdmin) && !isGood(token)) assertNotThrottled(address);
    if (isAdmin) {
      if (adminAddresses.size >= MAX_ADDRESSES) adminAddresses.clear();
      adminAddresses.set(address, deps.now() + GOOD_MS);
      return PLATFORM_PRINCIPAL;
    }
    if (keyId !== undefined) return lookUp(token, keyId, address);
    if (deps.verifyJwt === undefined || !isJwt(token)) {
      throw unknownKey(address);
    }
    return deps.verifyJwt(token).then(
      (principal) => {
        noteGood(token);
        return principal;
      },
      (error) => {
        const isTheirs = error instanceof DispatchError && error.code === 'UNAUTHENTICATED';
        if (!isTheirs) throw error;
        throw refuse({ tenantId: PLATFORM, actor: 'unknown', address, reason: 'invalid_jwt' }, error.message);
      },
    );
  };
}

const isJwt = (token: string) => /^[\w-]+\.[\w-]+\.[\w-]+$/.test(token);

function bearerToken(authorization: string | undefined): string {
  if (authorization === undefined || authorization === '') {
    throw unauthenticated('no key was given; send "authorization: Bearer <key>"');
  }
  const match = /^Bearer ([\x21-\x7e]{1,8192})$/i.exec(authorization);
  if (match === null)
    throw unauthenticated('the authorization header is malformed; send "authorization: Bearer <key>"');
  return match[1]!;
}

export function unauthenticated(message: string): DispatchError {
  return new DispatchError('UNAUTHENTICATED', message, { reason: 'UNAUTHENTICATED' });
}

const digestOf = (token: string) => sha256(token).toString('base64');

/**
 * Compares tokens with one that is known, in the same time whatever they have in common. Without a hash, which each call
 * would pay for; what that would hide, the length, is no secret. Tokens are ASCII.
 */
function comparedWith(known: string): (token: string) => boolean {
  const bytes = Buffer.from(known);
  const presented = Buffer.alloc(bytes.length);
  return (token) => {
    if (token.length !== bytes.length) return false;
    presented.write(token, 'latin1');
    return timingSafeEqual(presented, bytes);
  };
}

function sha256(text: string): Buffer {
  return hash('sha256', text, 'buffer'); // in one call: a hash object costs three times as much
}
