// When a backlog is counted, and what is let in in between. What is refused over the wire is for test/e2e/quotas.test.ts.
import { expect, test } from 'vitest';
import { createPatternIndex } from '../../src/domain/event-type.ts';
import type { TenantId } from '../../src/domain/ids.ts';
import { DEFAULT_QUOTA } from '../../src/domain/quota.ts';
import { createAdmission } from '../../src/publishing/admission.ts';
import type { TenantConfig } from '../../src/storage/read-config.ts';
import type { Target } from '../../src/storage/targets.ts';

const LIMIT = 1_000;

const configOf = (maxBacklog: number): TenantConfig => ({
  tenantId: 'acme' as TenantId,
  serial: 1,
  version: 1,
  state: 'active',
  quota: { ...DEFAULT_QUOTA, maxBacklog },
  targets: new Map(),
  matches: createPatternIndex<Target>([], () => 0),
  isOrdered: true,
  hasBatches: false,
});

/** An admission on a clock and over a backlog that a test sets; publish() says whether so many deliveries may pass. */
function start() {
  const is = { nowMs: 0, backlog: 0, countings: 0, fails: false };
  const admission = createAdmission({
    rate: { take: () => expect.fail('no rate is asked for') },
    countBacklog: async (_tenantId, upTo) => {
      is.countings++;
      if (is.fails) throw new Error('the database is away');
      return Math.min(is.backlog, upTo);
    },
    now: () => is.nowMs,
    onError: () => {},
  });
  const publish = async (count: number, limit = LIMIT) => {
    const refusal = admission.refusal(configOf(limit), 10, count);
    await Promise.resolve(); // a count that began is over
    await Promise.resolve();
    await Promise.resolve();
    return refusal === undefined;
  };
  return { is, publish };
}

test('a backlog is counted at the first publish, and again every 2 s from a quarter of its limit on', async () => {
  const { is, publish } = start();
  is.backlog = 300;
  expect(await publish(1)).toBe(true);
  expect(is.countings).toBe(1);
  is.nowMs = 1_999;
  await publish(1);
  expect(is.countings).toBe(1);
  is.nowMs = 2_000;
  await publish(1);
  expect(is.countings).toBe(2);
});

test('a backlog far from its limit is not counted again for 5 minutes, however often is published', async () => {
  const { is, publish } = start();
  is.backlog = 100;
  await publish(1);
  for (is.nowMs = 2_000; is.nowMs < 300_000; is.nowMs += 3_000) await publish(1);
  expect(is.countings).toBe(1);
  is.nowMs = 300_000;
  await publish(1);
  expect(is.countings).toBe(2);
});

test('a backlog far from its limit is counted once a further eighth of the limit was let in, and not more often than every 2 s', async () => {
  const { is, publish } = start();
  await publish(1);
  is.nowMs = 1_000;
  await publish(LIMIT / 8);
  await publish(1);
  expect(is.countings).toBe(1); // it is a second since the last count
  is.nowMs = 2_000;
  is.backlog = LIMIT / 8 + 2;
  await publish(1);
  expect(is.countings).toBe(2);
  is.nowMs = 60_000;
  await publish(LIMIT / 8 - 20);
  await publish(1);
  expect(is.countings).toBe(2); // less than an eighth since it was counted
});

test('what others let in is found by the next count, and refused from then on until some of it is delivered', async () => {
  const { is, publish } = start();
  await publish(1);
  is.backlog = LIMIT;
  is.nowMs = 2_000;
  expect(await publish(LIMIT / 8)).toBe(true);
  expect(await publish(1)).toBe(true); // this one has it counted
  expect(is.countings).toBe(2);
  expect(await publish(1)).toBe(false);
  is.backlog = 10;
  is.nowMs = 4_000;
  await publish(1);
  expect(await publish(1)).toBe(true);
});

test('what is let in while it is counted is added to what was counted', async () => {
  const { publish } = start();
  expect(await Promise.all([publish(1), publish(LIMIT - 1)])).toEqual([true, true]);
  expect(await publish(1)).toBe(false);
});

test('a count that failed changes nothing: what was let in goes on being added up', async () => {
  const { is, publish } = start();
  is.fails = true;
  expect(await publish(LIMIT)).toBe(true);
  expect(is.countings).toBe(1);
  expect(await publish(1)).toBe(false);
});

test('a count that failed, the first or a later one, is tried again after 2 s, however small the backlog is taken to be', async () => {
  const { is, publish } = start();
  const countingsAt = async (nowMs: number, fails: boolean) => {
    Object.assign(is, { nowMs, fails });
    await publish(1);
    return is.countings;
  };
  expect(await countingsAt(0, true)).toBe(1);
  expect(await countingsAt(1_999, false)).toBe(1);
  expect(await countingsAt(2_000, false)).toBe(2);
  expect(await countingsAt(4_000, false)).toBe(2); // it was counted, and is far from its limit
  expect(await countingsAt(302_000, true)).toBe(3);
  expect(await countingsAt(304_000, false)).toBe(4);
  expect(await countingsAt(306_000, false)).toBe(4);
});

test('a limit that is set again after there was none is held against a new count', async () => {
  const { is, publish } = start();
  await publish(1);
  is.nowMs = 10_000;
  is.backlog = LIMIT;
  expect(await publish(500, 0)).toBe(true);
  expect(is.countings).toBe(1); // nothing is counted where nothing is limited
  await publish(1);
  expect(is.countings).toBe(2);
  expect(await publish(1)).toBe(false);
});
