import { describe, expect, test } from 'vitest';
import { DispatchError } from '../../src/domain/errors.ts';
import { type EventDraft, fingerprintOf, MAX_PAYLOAD_BYTES, parseEvent } from '../../src/domain/event.ts';
import { parseTenantId } from '../../src/domain/ids.ts';

const tenant = parseTenantId('acme');
const NOW = 1_795_000_000_000;
const draft = (changes: Partial<EventDraft> = {}): EventDraft => ({
  type: 'order.created',
  body: { kind: 'data', data: { a: 1 } },
  contentType: '',
  source: '',
  subject: '',
  idempotencyKey: '',
  orderingKey: '',
  deliverAfterMs: undefined,
  metadata: {},
  ...changes,
});
const payload = (text: string) => ({ kind: 'payload' as const, payload: Buffer.from(text) });

function violationsOf(changes: Partial<EventDraft>): string[] {
  try {
    parseEvent(tenant, draft(changes), NOW);
    return [];
  } catch (error) {
    if (!(error instanceof DispatchError)) throw error;
    expect(error.code).toBe('INVALID_ARGUMENT');
    return error.violations.map((v) => v.field);
  }
}

const nested = (depth: number): object => (depth === 1 ? {} : { a: nested(depth - 1) });

describe('an event', () => {
  test('keeps no bytes of the request that it came in but its own', () => {
    const request = Buffer.alloc(64 * 1024, '"x"');
    const parsed = (body: Uint8Array) =>
      parseEvent(tenant, draft({ body: { kind: 'payload', payload: body } }), NOW).payload;
    const one = parsed(request.subarray(300, 303));
    expect([one.toString(), one.buffer.byteLength]).toEqual(['"x"', 3]);
    const data = parseEvent(tenant, draft({ body: { kind: 'data', data: { a: 1 } } }), NOW).payload;
    expect([data.toString(), data.buffer.byteLength]).toEqual(['{"a":1}', 7]); // nor others' in Buffer's pool
    const alone = Buffer.from(new Uint8Array([...'"only this"'].map((c) => c.charCodeAt(0))).buffer);
    expect(parsed(alone).buffer).toBe(alone.buffer); // no copy of what is all there is
  });

  test('keeps the bytes of a payload exactly, whatever its spelling', () => {
    const text = '{ "b":1.0,\n"a":[ 1e2 ] }';
    expect(parseEvent(tenant, draft({ body: payload(text) }), NOW).payload.toString()).toBe(text);
  });

  test('reports every wrong field at once', () => {
    expect(
      violationsOf({ type: 'a b', body: { kind: 'missing' }, source: 'x'.repeat(513), idempotencyKey: 'ä' }),
    ).toEqual(['event.type', 'event.data', 'event.source', 'event.idempotency_key']);
  });

  test.each<[string, Partial<EventDraft>, string]>([
    ['a payload over 1 MiB', { body: payload(`1${' '.repeat(MAX_PAYLOAD_BYTES)}`) }, 'event.payload'],
    ['data over 1 MiB', { body: { kind: 'data', data: { a: 'x'.repeat(MAX_PAYLOAD_BYTES) } } }, 'event.data'],
    ['JSON that is not JSON', { body: payload('{') }, 'event.payload'],
    ['an empty payload that should be JSON', { body: payload('') }, 'event.payload'],
    [
      'JSON that is not UTF-8',
      { body: { kind: 'payload', payload: Buffer.from([0x22, 0xff, 0x22]) } },
      'event.payload',
    ],
    ['65 levels of payload', { body: payload(`${'['.repeat(65)}${']'.repeat(65)}`) }, 'event.payload'],
    ['a million levels of payload', { body: payload('['.repeat(1_000_000)) }, 'event.payload'],
    [
      'an infinite number in data',
      { body: { kind: 'data', data: { a: [1, Number.NEGATIVE_INFINITY] } } },
      'event.data',
    ],
    ['what is no number in data', { body: { kind: 'data', data: { a: Number.NaN } } }, 'event.data'],
    ['65 levels of data', { body: { kind: 'data', data: nested(65) } }, 'event.data'],
    [
      'a header break in content_type',
      { body: payload('x'), contentType: 'text/plain\r\nx: y' },
      'event.content_type',
    ],
    ['data with another content_type', { contentType: 'text/plain' }, 'event.content_type'],
    ['31 days of delay', { deliverAfterMs: NOW + 31 * 24 * 3600 * 1000 }, 'event.deliver_after'],
    ['a time before 1970', { deliverAfterMs: -1 }, 'event.deliver_after'],
    [
      'a NUL in content_type',
      { body: payload('x'), contentType: 'text/plain; a="\0"' },
      'event.content_type',
    ],
    [
      'a line break in content_type',
      { body: payload('x'), contentType: 'text/plain;\na=b' },
      'event.content_type',
    ],
    [
      'other letters in content_type',
      { body: payload('x'), contentType: 'text/plain; a="т"' },
      'event.content_type',
    ],
    ['a blank in the ordering key', { orderingKey: 'a b' }, 'event.ordering_key'],
    ['a NUL in the subject', { subject: 'a\0b' }, 'event.subject'],
    ['a long label', { metadata: { a: 'x'.repeat(513) } }, 'event.metadata[a]'],
  ])('refuses %s', (_name, changes, field) => {
    expect(violationsOf(changes)).toEqual([field]);
  });

  test.each<[string, Partial<EventDraft>]>([
    ['64 levels of payload', { body: payload(`${'['.repeat(64)}${']'.repeat(64)}`) }],
    ['64 levels of data', { body: { kind: 'data', data: nested(64) } }],
    ['brackets inside strings', { body: payload(`"${'['.repeat(100)}\\"${'{'.repeat(100)}"`) }],
    [
      'any bytes of another type',
      { body: { kind: 'payload', payload: Buffer.from([0, 255]) }, contentType: 'application/octet-stream' },
    ],
    [
      'exactly 1 MiB',
      { body: { kind: 'payload', payload: Buffer.alloc(MAX_PAYLOAD_BYTES) }, contentType: 'a/b' },
    ],
    ['a type with parameters', { body: payload('x'), contentType: 'text/csv; charset=utf-8; header="a b"' }],
  ])('takes %s', (_name, changes) => {
    expect(violationsOf(changes)).toEqual([]);
  });

  test('has the same fingerprint when repeated and another when anything differs', () => {
    const of = (changes: Partial<EventDraft>) =>
      fingerprintOf(parseEvent(tenant, draft({ metadata: { a: '1', b: '2' }, ...changes }), NOW)).toString(
        'hex',
      );
    expect(of({ metadata: { b: '2', a: '1' } })).toBe(of({}));
    const others = [
      { type: 'x' },
      { source: 's' },
      { subject: 's' },
      { metadata: {} },
      { deliverAfterMs: NOW },
      { body: payload('{"a":2}') },
    ];
    expect(new Set([of({}), ...others.map(of)]).size).toBe(others.length + 1);
  });
});
