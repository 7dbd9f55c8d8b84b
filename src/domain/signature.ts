// Standard Webhooks signatures (https://www.standardwebhooks.com, spec 1.0.0): HMAC-SHA256, scheme v1, and ed25519,
// scheme v1a. Both sign `id.timestamp.body`.
import { createHash, createPrivateKey, createPublicKey, hash, type KeyObject, sign } from 'node:crypto';

export const SECRET_PREFIX = 'whsec_';
const PUBLIC_PREFIX = 'whpk_';

export const SCHEMES = ['v1', 'v1a'] as const;
export type SignatureScheme = (typeof SCHEMES)[number];

/**
 * A secret that is ready to sign with; `pads` has at `at` what HMAC puts before the text, and behind it what it puts before its
 * hash: a block of each. Those of a tenant share a room: of very many keys each piece of memory, and each object that describes
 * one, is something that no cache has.
 */
export type SigningKey =
  | { readonly scheme: 'v1'; readonly pads: Buffer; readonly at: number }
  | { readonly scheme: 'v1a'; readonly key: KeyObject };

type HmacKey = Extract<SigningKey, { scheme: 'v1' }>;

/** The key bytes of a `whsec_…` secret, or what is wrong with it. 24–64 bytes by the specification. */
export function parseSecret(text: string): { readonly key: Buffer } | { readonly problem: string } {
  const problem = 'must be "whsec_" followed by 24–64 bytes in base64';
  if (!text.startsWith(SECRET_PREFIX)) return { problem };
  const encoded = text.slice(SECRET_PREFIX.length);
  const key = Buffer.from(encoded, 'base64');
  const canonical = key.toString('base64').replace(/=+$/, '') === encoded.replace(/=+$/, '');
  if (!canonical || key.length < 24 || key.length > 64) return { problem };
  return { key };
}

/** The `whsec_…` text of key bytes. */
export function formatSecret(key: Uint8Array): string {
  return SECRET_PREFIX + Buffer.from(key).toString('base64');
}

/** The `whpk_…` text of an ed25519 public key, 32 bytes. */
export function formatPublicKey(key: Uint8Array): string {
  return PUBLIC_PREFIX + Buffer.from(key).toString('base64');
}

/** What stands before the 32 bytes of an ed25519 seed in PKCS #8 (RFC 8410). */
const PKCS8_ED25519 = Buffer.from('302e020100300506032b657004220420', 'hex');

function ed25519Key(seed: Uint8Array): KeyObject {
  return createPrivateKey({ key: Buffer.concat([PKCS8_ED25519, seed]), format: 'der', type: 'pkcs8' });
}

/** The 32 bytes of the public key that belongs to an ed25519 seed of 32 bytes. */
export function publicKeyOf(seed: Uint8Array): Buffer {
  const { x } = createPublicKey(ed25519Key(seed)).export({ format: 'jwk' });
  return Buffer.from(x ?? '', 'base64url');
}

/** Memory for the pads of keys that are made together, and end together. */
export type KeyRoom = { readonly pads: Buffer; used: number };

/** Room for this many keys. */
export const keyRoom = (count: number): KeyRoom => ({ pads: Buffer.alloc(count * 2 * BLOCK), used: 0 });

/** Makes secret bytes ready to sign with, once. For v1a the secret is the seed. */
export function signingKey(scheme: SignatureScheme, secret: Uint8Array, room = keyRoom(1)): SigningKey {
  if (scheme === 'v1a') return { scheme, key: ed25519Key(secret) };
  return { scheme, pads: room.pads, at: pad(secret, room) };
}

/** SHA-256 works on blocks of this size. */
const BLOCK = 64;

/** Puts an HMAC's key into a room as RFC 2104 pads it, inner and outer; one longer than a block is hashed first. Says where. */
function pad(secret: Uint8Array, room: KeyRoom): number {
  const key = secret.length > BLOCK ? hash('sha256', secret, 'buffer') : secret;
  const { pads, used: at } = room;
  if (at === pads.length) throw new RangeError('there is no room for another key');
  room.used += 2 * BLOCK;
  pads.fill(0x36, at, at + BLOCK).fill(0x5c, at + BLOCK, room.used);
  for (let i = 0; i < key.length; i++) {
    pads[at + i]! ^= key[i]!;
    pads[at + BLOCK + i]! ^= key[i]!;
  }
  return at;
}

/** Larger bodies are not copied. */
const MAX_COPIED = 4096;

/**
 * HMAC-SHA256 of `head`, which is ASCII, and `body`, from its definition: hash(outer + hash(inner + text)). For small bodies
 * two calls that hash what lies ready take 1.0 µs, an Hmac object takes 2.0 µs and much longer to be collected (Node 24).
 */
export function hmac(key: HmacKey, head: string, body: Uint8Array, encoding: 'base64' | 'hex'): string {
  const last = Buffer.allocUnsafe(BLOCK + 32);
  key.pads.copy(last, 0, key.at + BLOCK, key.at + 2 * BLOCK);
  last.write(innerHash(key, head, body), BLOCK, 'binary');
  return hash('sha256', last, encoding);
}

function innerHash({ pads, at }: HmacKey, head: string, body: Uint8Array): string {
  if (body.length > MAX_COPIED) {
    const hmac = createHash('sha256').update(pads.subarray(at, at + BLOCK));
    return hmac.update(head, 'latin1').update(body).digest('binary');
  }
  const text = Buffer.allocUnsafe(BLOCK + head.length + body.length);
  pads.copy(text, 0, at, at + BLOCK);
  text.write(head, BLOCK, 'latin1');
  text.set(body, BLOCK + head.length);
  return hash('sha256', text, 'binary');
}

/**
 * What ed25519 signs has to lie in one piece, and is not needed when that is done: in the same memory each time, or bodies of 250
 * KB are garbage twice.
 */
let scratch = Buffer.alloc(0);
/** Bytes that are kept for the next. */
const MAX_SCRATCH = 1024 * 1024;

/** `head`, which is ASCII, and `body` in one piece, until the next call. */
function joined(head: string, body: Uint8Array): Buffer {
  const length = head.length + body.length;
  let room = scratch;
  if (length > room.length) {
    room = Buffer.allocUnsafeSlow(Math.max(MAX_COPIED, 2 ** Math.ceil(Math.log2(length))));
    if (room.length <= MAX_SCRATCH) scratch = room;
  }
  room.write(head, 'latin1');
  room.set(body, head.length);
  return room.subarray(0, length);
}

/**
 * The `webhook-signature` header: `v1,<base64>` or `v1a,<base64>` for each key, joined by spaces. `timestamp` is in
 * whole seconds since 1970.
 */
export function signatureHeader(
  keys: readonly SigningKey[],
  id: string,
  timestampSeconds: number,
  body: Uint8Array,
): string {
  const head = `${id}.${timestampSeconds}.`;
  let header = '';
  let signed: Buffer | undefined;
  for (const key of keys) {
    if (header !== '') header += ' ';
    if (key.scheme === 'v1') {
      header += `v1,${hmac(key, head, body, 'base64')}`;
    } else {
      signed ??= joined(head, body);
      header += `v1a,${sign(null, signed, key.key).toString('base64')}`;
    }
  }
  return header;
}

/** The signature of dispatch's predecessor: `sha256=` and the HMAC of the body alone, in hexadecimal. */
export function predecessorSignature(key: HmacKey, body: Uint8Array): string {
  return `sha256=${hmac(key, '', body, 'hex')}`;
}
