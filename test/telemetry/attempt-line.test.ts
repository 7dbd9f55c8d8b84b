// The spelled-out log line of an attempt: the same JSON as a logger would write.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createAttemptLine } from '../../src/telemetry/attempt-line.ts';
import type { AttemptEvent } from '../../src/telemetry/events.ts';

const EVENT: AttemptEvent = {
  tenantId: 'acme',
  eventId: 'evt_01m85g4y5afdm9ybezgx200000',
  eventType: 'order.created',
  subscriptionId: 'sub_01m85g4y5afdm9ybezgx200001',
  deliveryId: 'dlv_01m85g4y5afdm9ybezgx200002',
  attempt: 1,
  outcome: 'succeeded',
  status: 204,
  errorClass: undefined,
  origin: 'https://example.org',
  durationMs: 1.5,
  lagMs: 0.25,
  retryInMs: undefined,
  payloadBytes: 452,
};

test('a line says what an event holds, leaves out what is undefined, and ends with a newline', () => {
  const lineOf = createAttemptLine(42, () => Date.UTC(2026, 10, 25, 7, 0, 0, 5));
  const events: AttemptEvent[] = [
    EVENT,
    { ...EVENT, outcome: 'retry', status: 0, errorClass: 'timeout', retryInMs: 5_000 },
    { ...EVENT, batchSize: 3 },
  ];
  for (const event of events) {
    const line = lineOf(event);
    expect(line.endsWith('}\n')).toBe(true);
    const head = { level: 'info', time: '2026-11-25T07:00:00.005Z', pid: 42 };
    const said = Object.fromEntries(Object.entries(event).filter(([, value]) => value !== undefined));
    expect(JSON.parse(line)).toEqual({ ...head, ...said, msg: 'attempt' });
  }
});

test('the time goes on', () => {
  let nowMs = 1_000;
  const lineOf = createAttemptLine(42, () => nowMs);
  lineOf(EVENT);
  nowMs = 2_000;
  expect(JSON.parse(lineOf(EVENT)).time).toBe('1970-01-01T00:00:02.000Z');
});

test('any text of a type or an origin comes back as it was, on one line', () => {
  const lineOf = createAttemptLine(42, () => 0);
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' }), (eventType, origin) => {
      const line = lineOf({ ...EVENT, eventType, origin });
      expect(line.indexOf('\n')).toBe(line.length - 1);
      expect(JSON.parse(line)).toMatchObject({ eventType, origin });
    }),
  );
});
