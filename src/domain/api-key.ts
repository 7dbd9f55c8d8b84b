// API keys: `dsp_live_<id>_<secret><checksum>`. The id finds the record; only a SHA-256 of the key is stored.
import { hash, timingSafeEqual } from 'node:crypto';
import { crc32 } from 'node:zlib';
import type { KeyId } from './ids.ts';

const PREFIX = 'dsp_live_';
const BASE62 = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const SECRET_LENGTH = 43; // 62^43 > 2^256
const CHECKSUM_LENGTH = 6; // 62^6 > 2^32
// The first character of an id holds 3 bits. The checksum is no secret: what is let through here is looked up.
const FORM = new RegExp(
  `^${PREFIX}([0-7][0-9a-hjkmnp-tv-z]{25})_([0-9A-Za-z]{${SECRET_LENGTH}})([0-9A-Za-z]{${CHECKSUM_LENGTH}})$`,
);

/** The text of a key: `random` is 32 random bytes. The checksum lets scanners and typos be told from real keys. */
export function formatApiKey(keyId: KeyId, random: Buffer): string {
  const head = `${PREFIX}${keyId.slice('key_'.length)}_${base62(BigInt(`0x${random.toString('hex')}`), SECRET_LENGTH)}`;
  return head + checksumOf(head);
}

/** The id of the record that a key belongs to, or undefined if the text is not a well-formed key. */
export function keyIdOf(text: string): KeyId | undefined {
  const match = FORM.exec(text);
  if (match === null) return undefined;
  const head = text.slice(0, -CHECKSUM_LENGTH);
  return match[3] === checksumOf(head) ? (`key_${match[1]}` as KeyId) : undefined;
}

/** What is stored of a key. */
export function hashApiKey(text: string): Buffer {
  return hash('sha256', text, 'buffer');
}

/** Whether a presented key has this hash; takes the same time either way. */
export function apiKeyMatches(text: string, stored: Uint8Array): boolean {
  return timingSafeEqual(hashApiKey(text), stored);
}

function checksumOf(head: string): string {
  return base62(BigInt(crc32(head)), CHECKSUM_LENGTH);
}

function base62(value: bigint, length: number): string {
  let text = '';
  for (let rest = value, i = 0; i < length; i++, rest /= 62n) text = BASE62[Number(rest % 62n)]! + text;
  return text;
}
