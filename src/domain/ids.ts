// Identifiers: TypeIDs (prefix + UUIDv7 in Crockford base32) outside, 16 bytes inside.
// The layout of event and delivery ids is ADR 0003: the last 3 bytes of an event id are zero, and the
// deliveries of an event are its id with their ordinal there, so that each is found from the other by key.
import { DispatchError, invalidField } from './errors.ts';

declare const brand: unique symbol;
type Branded<Name> = string & { readonly [brand]: Name };

export type TenantId = Branded<'tenant'>;
export type EventId = Branded<'event'>;
export type SubscriptionId = Branded<'subscription'>;
export type DeliveryId = Branded<'delivery'>;
export type KeyId = Branded<'key'>;
export type ReplayId = Branded<'replay'>;
export type AuditId = Branded<'audit'>;

const TENANT_ID = /^[a-z0-9][a-z0-9_-]{0,62}$/;

/** The tenant id, checked. Throws INVALID_ARGUMENT naming `field`. */
export function parseTenantId(text: string, field = 'tenant_id'): TenantId {
  if (TENANT_ID.test(text)) return text as TenantId;
  const problem = text === '' ? 'is required' : 'is not a tenant id';
  throw invalidField(field, `${problem}: 1–63 of a–z, 0–9, "_" and "-", beginning with a letter or digit`);
}

const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz';
const VALUE_OF = new Int8Array(128).fill(-1);
for (let i = 0; i < 32; i++) VALUE_OF[ALPHABET.charCodeAt(i)] = i;
const PAIRS = Array.from({ length: 1024 }, (_, i) => ALPHABET[i >> 5]! + ALPHABET[i & 31]!);

/** TypeID text of 16 bytes: `prefix_` and 26 base32 characters. */
export function encodeId(prefix: string, b: Uint8Array): string {
  const p = PAIRS;
  // 128 bits with two zero bits in front are 13 groups of 10 bits: 3 bits first, then 5 bytes make 4 groups.
  let text = `${prefix}_${p[b[0]!]!}`;
  for (let i = 1; i < 16; i += 5) {
    const b0 = b[i]!;
    const b1 = b[i + 1]!;
    const b2 = b[i + 2]!;
    const b3 = b[i + 3]!;
    const b4 = b[i + 4]!;
    text +=
      p[(b0 << 2) | (b1 >> 6)]! +
      p[((b1 & 63) << 4) | (b2 >> 4)]! +
      p[((b2 & 15) << 6) | (b3 >> 2)]! +
      p[((b3 & 3) << 8) | b4]!;
  }
  return text;
}

/** The 16 bytes of a TypeID that this service made. Throws INTERNAL on anything else. */
export function idBytes(id: string): Buffer {
  const bytes = tryIdBytes(id);
  if (bytes === undefined) throw new DispatchError('INTERNAL', 'an identifier is malformed');
  return bytes;
}

function tryIdBytes(id: string): Buffer | undefined {
  const start = id.length - 26;
  if (start < 2 || id.charCodeAt(start) > 55) return undefined; // the first character holds 3 bits: '0'–'7'
  const bytes = Buffer.allocUnsafe(16);
  let bits = 0;
  let value = 0;
  let at = 0;
  for (let i = start; i < id.length; i++) {
    const code = id.charCodeAt(i);
    const digit = code < 128 ? VALUE_OF[code]! : -1;
    if (digit < 0) return undefined;
    value = (value << 5) | digit;
    bits += i === start ? 3 : 5;
    if (bits >= 8) {
      bits -= 8;
      bytes[at++] = (value >> bits) & 255;
      value &= (1 << bits) - 1;
    }
  }
  return bytes;
}

/** TypeID text of a uuid in its usual hexadecimal form, as Postgres prints it. */
export function idFromUuid(prefix: string, uuid: string): string {
  return encodeId(prefix, Buffer.from(uuid.replaceAll('-', ''), 'hex'));
}

/** The uuid, in its usual hexadecimal form, of a TypeID. */
export function uuidOf(id: string): string {
  const h = idBytes(id).toString('hex');
  return `${h.slice(0, 8)}-${h.slice(8, 12)}-${h.slice(12, 16)}-${h.slice(16, 20)}-${h.slice(20)}`;
}

function parseId<Id extends string>(prefix: string, text: string, field: string): Id {
  if (text.startsWith(`${prefix}_`) && text.length === prefix.length + 27 && tryIdBytes(text) !== undefined) {
    return text as Id;
  }
  const problem = text === '' ? 'is required' : 'is malformed';
  throw invalidField(field, `${problem}: ${prefix}_ followed by 26 characters`);
}

export const parseEventId = (text: string, field = 'event_id'): EventId => parseId('evt', text, field);
export const parseSubscriptionId = (text: string, field = 'subscription_id'): SubscriptionId =>
  parseId('sub', text, field);
export const parseDeliveryId = (text: string, field = 'delivery_id'): DeliveryId =>
  parseId('dlv', text, field);
export const parseKeyId = (text: string, field = 'key_id'): KeyId => parseId('key', text, field);
export const parseReplayId = (text: string, field = 'replay_id'): ReplayId => parseId('rpl', text, field);

/** The largest number of deliveries that one event can ever have. */
export const MAX_ORDINAL = 0xffffff;

/** The id of the `ordinal`-th (1-based, ≤ MAX_ORDINAL) delivery of an event. */
export function deliveryIdOf(event: Uint8Array, ordinal: number): Buffer {
  const bytes = Buffer.from(event);
  bytes.writeUIntBE(ordinal, 13, 3);
  return bytes;
}

/** The id of the event that a delivery delivers. */
export function eventIdOf(delivery: Uint8Array): Buffer {
  return deliveryIdOf(delivery, 0);
}

/** When the event behind an event or delivery id was accepted, in ms since 1970. */
export function timeOfId(bytes: Uint8Array): number {
  return Buffer.from(bytes.buffer, bytes.byteOffset, 16).readUIntBE(0, 6);
}

/** Lowest possible id of a given time: a range bound for keys that are UUIDv7. */
export function lowestUuidAt(ms: number): string {
  const h = Math.max(0, Math.floor(ms)).toString(16).padStart(12, '0').slice(-12);
  return `${h.slice(0, 8)}-${h.slice(8)}-0000-0000-000000000000`;
}

/** Makes ids. */
export type IdSource = {
  /** 16 bytes of a UUIDv7 whose last 3 bytes are zero (49 random bits a millisecond). */
  readonly eventBytes: () => Buffer;
  /** 16 bytes of a UUIDv7 (73 random bits a millisecond). */
  readonly bytes: () => Buffer;
  /** A new TypeID. */
  readonly next: <Id extends string>(prefix: 'sub' | 'key' | 'rpl' | 'aud') => Id;
};

/**
 * Makes ids from a clock in ms and a source of random bytes. Those of one millisecond ascend by random steps, so that what
 * was published in a row is claimed in a row.
 */
export function createIdSource(now: () => number, randomBytes: (size: number) => Buffer): IdSource {
  const pool = { bytes: randomBytes(4096), at: 0 };
  const fill = (target: Buffer, start: number, end: number) => {
    if (pool.at + 16 > pool.bytes.length) {
      pool.bytes = randomBytes(4096);
      pool.at = 0;
    }
    pool.bytes.copy(target, start, pool.at, pool.at + end - start);
    pool.at += end - start;
  };
  const step = Buffer.alloc(2);
  /** Ids whose random part ends before byte `end`; those of one millisecond ascend. */
  const maker = (end: number) => {
    let last = Buffer.alloc(16);
    return () => {
      const id = Buffer.alloc(16);
      const nowMs = now();
      fill(step, 0, 2);
      const following = last.readUInt32BE(end - 4) + 1 + step.readUInt16BE();
      if (nowMs === last.readUIntBE(0, 6) && following <= 0xffff_ffff) {
        last.copy(id);
        id.writeUInt32BE(following, end - 4);
      } else {
        fill(id, 6, end);
        id.writeUIntBE(nowMs, 0, 6);
        id[6] = 0x70 | (id[6]! & 0x0f);
        id[8] = 0x80 | (id[8]! & 0x3f);
        id[end - 4]! &= 0x7f; // room for those that follow
      }
      last = id;
      return id;
    };
  };
  const event = maker(13);
  const any = maker(16);
  return {
    eventBytes: event,
    bytes: any,
    next: <Id extends string>(prefix: 'sub' | 'key' | 'rpl' | 'aud') => encodeId(prefix, any()) as Id,
  };
}
