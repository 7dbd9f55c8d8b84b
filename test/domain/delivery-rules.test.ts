import { createHmac, createPrivateKey, randomBytes, sign } from 'node:crypto';
import fc from 'fast-check';
import { Webhook } from 'standardwebhooks';
import { describe, expect, test } from 'vitest';
import {
  DEFAULT_RETRY_POLICY,
  parseRetryAfter,
  RETRY_AFTER_CAP_MS,
  type RetryPolicy,
  retryDelayMs,
  scheduledDelayMs,
} from '../../src/domain/backoff.ts';
import type { SendResult } from '../../src/domain/delivery.ts';
import {
  formatSecret,
  keyRoom,
  parseSecret,
  signatureHeader,
  signingKey,
} from '../../src/domain/signature.ts';
import { judge } from '../../src/domain/verdict.ts';

const list: RetryPolicy = { schedule: { kind: 'list', delaysMs: [1000, 2000] }, jitter: 'none' };
const exponential: RetryPolicy = {
  schedule: { kind: 'exponential', baseMs: 1000, factor: 3, capMs: 5000, maxAttempts: 4 },
  jitter: 'none',
};

describe('the retry schedule', () => {
  test('a list of n delays allows n + 1 attempts', () => {
    expect([1, 2, 3].map((n) => scheduledDelayMs(list, n))).toEqual([1000, 2000, undefined]);
  });
  test('an exponential one grows to its cap and ends', () => {
    expect([1, 2, 3, 4].map((n) => scheduledDelayMs(exponential, n))).toEqual([1000, 3000, 5000, undefined]);
  });
  test('the default makes 9 attempts in all', () => {
    const delays = Array.from({ length: 9 }, (_, i) => scheduledDelayMs(DEFAULT_RETRY_POLICY, i + 1));
    expect(delays.map((ms) => (ms === undefined ? ms : ms / 1000))).toEqual([
      5,
      30,
      300,
      1800,
      7200,
      18000,
      36000,
      36000,
      undefined,
    ]);
  });
  test('full jitter stays between 0 and the delay, and Retry-After only lengthens it', () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 0.999999, noNaN: true }), fc.nat(200_000_000), (random, hint) => {
        const policy: RetryPolicy = { ...list, jitter: 'full' };
        expect(retryDelayMs(policy, 1, undefined, random)).toBeLessThanOrEqual(1000);
        const delay = retryDelayMs(policy, 1, hint, random)!;
        expect(delay).toBeGreaterThanOrEqual(Math.min(hint, RETRY_AFTER_CAP_MS));
        expect(delay).toBeLessThanOrEqual(Math.max(1000, RETRY_AFTER_CAP_MS));
      }),
    );
  });
  const now = Date.UTC(2026, 10, 23);
  test.each<[string | undefined, number | undefined]>([
    [undefined, undefined],
    ['0', 0],
    ['120', 120_000],
    [' 7 ', 7_000],
    ['-1', undefined],
    ['1e3', undefined],
    ['1000000000000', RETRY_AFTER_CAP_MS],
    ['99999999999999999999', undefined],
    ['Mon, 23 Nov 2026 00:01:00 GMT', 60_000],
    ['Sun, 22 Nov 2026 00:00:00 GMT', undefined],
    ['rubbish', undefined],
    ['', undefined],
  ])('Retry-After %j asks for %j ms', (header, ms) => {
    expect(parseRetryAfter(header, now)).toBe(ms);
  });
});

describe('the verdict', () => {
  const response = (status: number, retryAfter?: string): SendResult => ({
    kind: 'response',
    status,
    retryAfter,
    body: Buffer.alloc(0),
    control: undefined,
    headers: {},
    timing: {},
  });
  const verdict = (result: SendResult, attemptOfRound = 1, more: Partial<Parameters<typeof judge>[0]> = {}) =>
    judge({ result, policy: list, attemptOfRound, ageMs: 0, nowMs: 0, random: 0.5, ...more });

  test.each([200, 201, 204, 299])('%i succeeds', (status) => {
    expect(verdict(response(status))).toEqual({ kind: 'succeeded', disable: false });
  });
  test('webhook-delivery: disable disables whatever the status; abort gives up what failed, and nothing else', () => {
    const asking = (status: number, control: string) => ({ ...response(status), control }) as SendResult;
    expect(verdict(asking(200, 'disable'))).toEqual({ kind: 'succeeded', disable: true });
    expect(verdict(asking(500, ' Disable '))).toMatchObject({ kind: 'retry', disable: true });
    expect(verdict(asking(500, 'abort'))).toMatchObject({ kind: 'dead', reason: 'aborted', disable: false });
    expect(verdict(asking(204, 'abort'))).toEqual({ kind: 'succeeded', disable: false });
    expect(verdict(asking(500, 'rubbish'))).toMatchObject({ kind: 'retry', disable: false });
  });
  test.each([
    [301, 'redirect'],
    [302, 'redirect'],
    [304, 'redirect'],
    [400, 'http_status'],
    [404, 'http_status'],
    [500, 'http_status'],
    [429, 'http_status'],
  ])('%i is tried again as %s', (status, errorClass) => {
    expect(verdict(response(status))).toMatchObject({
      kind: 'retry',
      delayMs: 1000,
      errorClass,
      disable: false,
    });
  });
  test('410 disables the subscription, also on the last attempt', () => {
    expect(verdict(response(410))).toMatchObject({ kind: 'retry', disable: true });
    expect(verdict(response(410), 3)).toMatchObject({
      kind: 'dead',
      reason: 'attempts_exhausted',
      disable: true,
    });
  });
  test('Retry-After counts on 429 and 503 only', () => {
    expect(verdict(response(503, '60'))).toMatchObject({ delayMs: 60_000 });
    expect(verdict(response(429, '60'))).toMatchObject({ delayMs: 60_000 });
    expect(verdict(response(500, '60'))).toMatchObject({ delayMs: 1000 });
  });
  test('a delivery that would be too old by its next attempt is dead', () => {
    const policy = { ...list, maxAgeMs: 5_000 };
    expect(verdict(response(500), 1, { policy, ageMs: 3_999 })).toMatchObject({ kind: 'retry' });
    expect(verdict(response(500), 1, { policy, ageMs: 4_001 })).toMatchObject({
      kind: 'dead',
      reason: 'max_age_exceeded',
    });
  });
});

describe('signatures', () => {
  test('verify with the official library, for any body and key', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary' }),
        fc.uint8Array({ minLength: 24, maxLength: 64 }),
        (body, key) => {
          const timestamp = Math.floor(Date.now() / 1000);
          const signature = signatureHeader([signingKey('v1', key)], 'evt_1', timestamp, Buffer.from(body));
          const headers = {
            'webhook-id': 'evt_1',
            'webhook-timestamp': String(timestamp),
            'webhook-signature': signature,
          };
          const json = JSON.stringify({ body });
          const signed = signatureHeader([signingKey('v1', key)], 'evt_1', timestamp, Buffer.from(json));
          expect(
            new Webhook(formatSecret(key)).verify(json, { ...headers, 'webhook-signature': signed }),
          ).toEqual({ body });
          expect(() =>
            new Webhook(formatSecret(randomBytes(24))).verify(json, {
              ...headers,
              'webhook-signature': signed,
            }),
          ).toThrow();
        },
      ),
      { numRuns: 50 },
    );
  });
  test('are the HMAC of id, time and body, for keys and bodies of any size', () => {
    const size = fc.oneof(fc.nat({ max: 200 }), fc.integer({ min: 4_000, max: 4_200 }), fc.constant(1 << 20));
    fc.assert(
      fc.property(size, fc.uint8Array({ minLength: 1, maxLength: 100, size: 'max' }), (bodyBytes, key) => {
        const body = randomBytes(bodyBytes);
        const expected = createHmac('sha256', key).update('evt_1.1700000000.').update(body).digest('base64');
        expect(signatureHeader([signingKey('v1', key)], 'evt_1', 1_700_000_000, body)).toBe(`v1,${expected}`);
      }),
    );
  });
  test('by keys that share a room are those of each alone, and a room takes as many as it was made for', () => {
    const room = keyRoom(3);
    const secrets = [24, 100, 64].map((bytes) => randomBytes(bytes));
    const keys = secrets.map((secret) => signingKey('v1', secret, room));
    for (const body of [Buffer.from('{}'), randomBytes(5_000)]) {
      const header = signatureHeader(keys, 'evt_1', 1_700_000_000, body);
      const expected = secrets.map((secret) => {
        const hmac = createHmac('sha256', secret).update('evt_1.1700000000.').update(body);
        return `v1,${hmac.digest('base64')}`;
      });
      expect(header).toBe(expected.join(' '));
    }
    expect(() => signingKey('v1', randomBytes(32), room)).toThrow('no room');
  });
  test('of ed25519 are those of id, time and body, for bodies of any size one after the other', () => {
    const seed = randomBytes(32);
    const der = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), seed]); // RFC 8410
    const privateKey = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
    for (const size of [10, 5_000, 0, 300_000, 4_096, 3_000_000, 20]) {
      const body = randomBytes(size);
      const signed = Buffer.concat([Buffer.from('evt_1.1700000000.'), body]);
      const expected = sign(null, signed, privateKey).toString('base64');
      expect(signatureHeader([signingKey('v1a', seed)], 'evt_1', 1_700_000_000, body)).toBe(
        `v1a,${expected}`,
      );
    }
  });

  test('with two keys there are two, and either verifies', () => {
    const keys = [randomBytes(32), randomBytes(32)];
    const ready = keys.map((key) => signingKey('v1', key));
    const timestamp = Math.floor(Date.now() / 1000);
    const header = signatureHeader(ready, 'evt_1', timestamp, Buffer.from('{}'));
    expect(header.split(' ')).toHaveLength(2);
    for (const key of keys) {
      const headers = {
        'webhook-id': 'evt_1',
        'webhook-timestamp': String(timestamp),
        'webhook-signature': header,
      };
      expect(new Webhook(formatSecret(key)).verify('{}', headers)).toEqual({});
    }
  });
  test.each([
    '',
    'whsec_',
    'whsec_AAAA',
    'AAAA',
    `whsec_${Buffer.alloc(65).toString('base64')}`,
    `whsec_${'!'.repeat(40)}`,
  ])('refuses the secret %j', (text) => {
    expect(parseSecret(text)).toHaveProperty('problem');
  });
  test('takes its own secrets back', () => {
    const key = randomBytes(32);
    expect(parseSecret(formatSecret(key))).toEqual({ key });
  });
});
