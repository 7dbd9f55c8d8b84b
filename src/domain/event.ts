// An event: what a producer may state, checked, and what is stored of it.
import { createHash } from 'node:crypto';
import { Violations } from './errors.ts';
import { eventTypeProblem } from './event-type.ts';
import type { TenantId } from './ids.ts';
import { jsonProblem, MAX_JSON_DEPTH } from './json.ts';

/** Largest body of an event, in bytes. */
export const MAX_PAYLOAD_BYTES = 1024 * 1024;
/** How far ahead an event may be delayed. */
export const MAX_DELAY_MS = 30 * 24 * 3600 * 1000;
/** How long an idempotency key is remembered. */
export const IDEMPOTENCY_HOURS = 24;

/** An event as a producer states it, from whichever protocol it came. */
export type EventDraft = {
  readonly type: string;
  readonly body:
    | { readonly kind: 'data'; readonly data: object }
    | { readonly kind: 'payload'; readonly payload: Uint8Array }
    | { readonly kind: 'missing' };
  readonly contentType: string;
  readonly source: string;
  readonly subject: string;
  readonly idempotencyKey: string;
  readonly orderingKey: string;
  /** Ms since 1970; NaN for a time that cannot be. */
  readonly deliverAfterMs: number | undefined;
  readonly metadata: Readonly<Record<string, string>>;
};

/** A checked event, ready to be stored. */
export type NewEvent = {
  readonly tenantId: TenantId;
  readonly type: string;
  readonly payload: Buffer;
  readonly contentType: string;
  readonly source: string;
  readonly subject: string;
  /** Empty when the producer gave none. */
  readonly idempotencyKey: string;
  /** Empty when the producer gave none. */
  readonly orderingKey: string;
  readonly deliverAfterMs: number | undefined;
  readonly metadata: Readonly<Record<string, string>>;
};

const CONTENT_TYPE =
  /^[\w!#$&^.+-]+\/[\w!#$&^.+-]+(?:[ \t]*;[ \t]*[\w!#$&^.+-]+=(?:[\w!#$&^.+-]+|"[\x20-\x21\x23-\x5b\x5d-\x7e]*"))*$/;
const JSON_TYPE = /^application\/(?:[\w.-]+\+)?json\b/i;
const JSON_CONTENT = 'application/json';
const isJson = (contentType: string) => contentType === JSON_CONTENT || JSON_TYPE.test(contentType);
const PRINTABLE_ASCII = /^[\x21-\x7e]+$/;

/** Checks an event. Throws INVALID_ARGUMENT with every wrong field; `path` leads the field names. */
export function parseEvent(tenantId: TenantId, draft: EventDraft, nowMs: number, path = 'event'): NewEvent {
  const wrong = new Violations();
  const typeProblem = eventTypeProblem(draft.type);
  if (typeProblem !== undefined) wrong.add(`${path}.type`, typeProblem);
  const contentType = parseContentType(draft, path, wrong);
  const payload = parseBody(draft, contentType, path, wrong);
  const { type, source, subject, idempotencyKey, orderingKey, deliverAfterMs, metadata } = draft;
  // Names of fields are made only for what is there.
  if (source !== '') checkText(source, 512, `${path}.source`, wrong);
  if (subject !== '') checkText(subject, 512, `${path}.subject`, wrong);
  if (idempotencyKey !== '') checkKey(idempotencyKey, `${path}.idempotency_key`, wrong);
  if (orderingKey !== '') checkKey(orderingKey, `${path}.ordering_key`, wrong);
  checkDeliverAfter(deliverAfterMs, nowMs, path, wrong);
  for (const _ in metadata) {
    checkMetadata(metadata, `${path}.metadata`, wrong);
    break;
  }
  wrong.throwIfAny();
  return {
    tenantId,
    payload,
    contentType,
    type,
    source,
    subject,
    idempotencyKey,
    orderingKey,
    deliverAfterMs,
    metadata,
  };
}

function checkKey(key: string, field: string, wrong: Violations): void {
  const ok = key.length <= 255 && PRINTABLE_ASCII.test(key);
  wrong.check(ok, field, 'must be 1–255 printable ASCII characters without spaces');
}

function parseContentType(draft: EventDraft, path: string, wrong: Violations): string {
  const contentType = draft.contentType === '' ? JSON_CONTENT : draft.contentType;
  if (contentType === JSON_CONTENT) return contentType;
  const field = `${path}.content_type`;
  if (contentType.length > 255 || !CONTENT_TYPE.test(contentType)) {
    wrong.add(field, 'must be a media type such as "application/json" or "text/csv; charset=utf-8"');
  } else if (draft.body.kind === 'data') {
    wrong.add(field, `must be empty or "${JSON_CONTENT}" with data; use payload for other types`);
  }
  return contentType;
}

function parseBody(draft: EventDraft, contentType: string, path: string, wrong: Violations): Buffer {
  const { body } = draft;
  switch (body.kind) {
    case 'missing':
      wrong.add(`${path}.data`, 'is required: give data (a JSON object) or payload (bytes)');
      return Buffer.alloc(0);
    case 'data': {
      const problem = dataProblem(body.data);
      const bytes = problem === undefined ? Buffer.from(JSON.stringify(body.data), 'utf8') : Buffer.alloc(0);
      return checkedBytes(bytes, problem ?? sizeProblem(bytes), path, body.kind, wrong);
    }
    case 'payload': {
      const { payload } = body;
      const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength);
      const problem = sizeProblem(bytes) ?? (isJson(contentType) ? jsonProblem(bytes) : undefined);
      return checkedBytes(bytes, problem, path, body.kind, wrong);
    }
  }
}

/**
 * A body in memory of its own: an event that waits would keep what it came with, the bytes of a request of a thousand
 * events or a piece of Buffer's pool, in V8's old generation (ADR 0032).
 */
function ownBytes(body: Buffer): Buffer {
  if (body.length * 2 > body.buffer.byteLength) return body;
  const own = Buffer.allocUnsafeSlow(body.length); // not in Buffer's pool, which many share as well
  body.copy(own);
  return own;
}

function checkedBytes(
  bytes: Buffer,
  problem: string | undefined,
  path: string,
  field: 'data' | 'payload',
  wrong: Violations,
): Buffer {
  if (problem === undefined) return ownBytes(bytes);
  wrong.add(`${path}.${field}`, problem);
  return bytes;
}

const sizeProblem = ({ length }: Buffer): string | undefined =>
  length <= MAX_PAYLOAD_BYTES ? undefined : `is ${length} bytes; at most ${MAX_PAYLOAD_BYTES} (1 MiB)`;

/** What is wrong with a parsed value that should be JSON, or undefined; no deeper than the limit, whatever it is. */
function dataProblem(value: unknown, level = 1): string | undefined {
  if (typeof value === 'number' && !Number.isFinite(value))
    return `has the number ${value}, which JSON has not; give numbers beyond ±1.8e308 as text`;
  if (typeof value !== 'object' || value === null) return undefined;
  if (level > MAX_JSON_DEPTH) return `is JSON nested deeper than ${MAX_JSON_DEPTH} levels`;
  for (const child of Object.values(value)) {
    const problem = dataProblem(child, level + 1);
    if (problem !== undefined) return problem;
  }
  return undefined;
}

function checkText(text: string, maxLength: number, field: string, wrong: Violations): void {
  wrong.check(text.length <= maxLength, field, `is ${text.length} characters long; at most ${maxLength}`);
  wrong.check(!text.includes('\0'), field, 'contains a NUL character, which cannot be stored');
}

function checkDeliverAfter(ms: number | undefined, nowMs: number, path: string, wrong: Violations): void {
  if (ms === undefined) return;
  const field = `${path}.deliver_after`;
  if (!(ms >= 0)) wrong.add(field, 'is not a valid timestamp; 1970 or later');
  else wrong.check(ms <= nowMs + MAX_DELAY_MS, field, 'is more than 30 days ahead; at most 30 days');
}

/** Checks free labels: at most 32; keys 1–64 characters, values at most 512; nothing that Postgres cannot store. */
export function checkMetadata(
  metadata: Readonly<Record<string, string>>,
  field: string,
  wrong: Violations,
): void {
  let count = 0;
  for (const key in metadata) {
    count++;
    const value = metadata[key]!;
    wrong.check(key.length >= 1 && key.length <= 64, field, 'keys must be 1–64 characters long');
    wrong.check(value.length <= 512, `${field}[${key.slice(0, 64)}]`, 'is longer than 512 characters');
    wrong.check(
      !key.includes('\0') && !value.includes('\0'),
      field,
      'contains a NUL character, which cannot be stored',
    );
  }
  wrong.check(count <= 32, field, `has ${count} entries; at most 32`);
}

/** SHA-256 of everything the producer stated: tells a repeated publish from another event with the same key. */
export function fingerprintOf(event: NewEvent): Buffer {
  const hash = createHash('sha256');
  const labels = Object.entries(event.metadata).sort(([a], [b]) => (a < b ? -1 : 1));
  const head = [
    event.type,
    event.contentType,
    event.source,
    event.subject,
    event.deliverAfterMs ?? null,
    labels,
  ];
  // Only where it is given: fingerprints of events that have none are what they were before there were any.
  if (event.orderingKey !== '') head.push(event.orderingKey);
  return hash.update(JSON.stringify(head)).update('\n').update(event.payload).digest();
}
