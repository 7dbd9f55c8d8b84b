import { afterEach, expect, test, vi } from 'vitest';
import { startLeaseEnds } from '../../src/delivery/lease-ends.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import { type LeaseEnds, MAX_PUT_BACK } from '../../src/storage/leases.ts';

afterEach(() => void vi.useRealTimers());

const head = (id: string) => ({
  tenantId: 'acme' as TenantId,
  subscriptionId: id as SubscriptionId,
  dueAtMs: 0,
  dueInMs: 0,
});
const NOTHING = { queues: [], count: 0, nextInMs: undefined };
const BACK_MS = 5_000;
type Look = Omit<LeaseEnds, 'nowUs'> | Error;

/** One whose looks find `found`, one after the other and the last from then on; those from the front find `inFront`. */
function setup(found: readonly Look[], inFront: Look = NOTHING, tookMs = { front: 0, other: 0 }) {
  vi.useFakeTimers({ now: 0 });
  const fronts: number[] = [];
  const looks: { atMs: number; afterMs: number | undefined }[] = [];
  const back: string[][] = [];
  const errors: unknown[] = [];
  const leaseEnds = startLeaseEnds({
    async putBack(afterUs) {
      const isFront = afterUs === 0;
      const next = isFront ? inFront : found[Math.min(looks.length, found.length - 1)]!;
      const nowUs = Date.now() * 1000;
      if (isFront) fronts.push(Date.now());
      else looks.push({ atMs: Date.now(), afterMs: afterUs === undefined ? undefined : afterUs / 1000 });
      const ms = isFront ? tookMs.front : tookMs.other;
      if (ms > 0) await new Promise((done) => setTimeout(done, ms));
      if (next instanceof Error) throw next;
      return { ...next, nowUs };
    },
    onBack: (queues) => back.push(queues.map(({ subscriptionId }) => subscriptionId)),
    onError: (error) => errors.push(error),
  });
  return { leaseEnds, fronts, looks, back, errors, times: () => looks.map(({ atMs }) => atMs) };
}

test('a look comes as the first lease that was seen ends, and before any that could not be seen', async () => {
  const ends = [4_000, undefined, 10, 9_999].map((nextInMs) => ({ ...NOTHING, nextInMs }));
  const { leaseEnds, times, back } = setup(ends);
  await vi.advanceTimersByTimeAsync(25_000);
  expect(times()).toEqual([0, 4_000, 14_000, 14_250, 24_249]);
  expect(back).toEqual([]);
  await leaseEnds[Symbol.asyncDispose]();
});

test('what was put back is told of, and looked for again at once while there may be more', async () => {
  const full = { queues: [head('a'), head('b')], count: MAX_PUT_BACK, nextInMs: undefined };
  const { leaseEnds, times, back } = setup([full, { ...full, queues: [head('b')], count: 7 }, NOTHING]);
  await vi.advanceTimersByTimeAsync(9_999);
  expect(times()).toEqual([0, 0]);
  expect(back).toEqual([['a', 'b'], ['b']]);
  await leaseEnds[Symbol.asyncDispose]();
});

test('a look goes on shortly before the one before the last, and each minute one begins at the front', async () => {
  const { leaseEnds, fronts, looks } = setup([NOTHING]);
  await vi.advanceTimersByTimeAsync(65_000);
  expect(fronts).toEqual([0, 60_000]);
  const afterMs = [0, 0, 1, 2, 3, 4].map((i) => i * 10_000 - BACK_MS);
  expect(looks.map((look) => look.afterMs)).toEqual([undefined, ...afterMs]);
  await leaseEnds[Symbol.asyncDispose]();
});

test('looks that take long come less often, and those from the front the less', async () => {
  const soon = { ...NOTHING, nextInMs: 1 };
  const { leaseEnds, fronts, times } = setup([soon], NOTHING, { front: 10_000, other: 100 });
  await vi.advanceTimersByTimeAsync(5_000);
  expect(times()).toEqual([0, 2_100, 4_200]);
  await vi.advanceTimersByTimeAsync(210_000);
  expect(fronts).toEqual([0, 210_000]);
  const ended = leaseEnds[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(10_000);
  await ended;
});

test('a look that fails is told of and comes again a second later from where it was to begin; after the end none comes', async () => {
  const away = new Error('away');
  const { leaseEnds, looks, errors } = setup([NOTHING, away, NOTHING]);
  await vi.advanceTimersByTimeAsync(11_500);
  expect(errors).toEqual([away]);
  expect(looks).toEqual([
    { atMs: 0, afterMs: undefined },
    { atMs: 10_000, afterMs: -BACK_MS },
    { atMs: 11_000, afterMs: -BACK_MS },
  ]);
  await leaseEnds[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(20_000);
  expect(looks).toHaveLength(3);
});

test('where the front cannot be looked at in time, the other looks go on meanwhile and after', async () => {
  const tooLong = new Error('statement timeout');
  const { leaseEnds, fronts, times, errors } = setup([NOTHING], tooLong, { front: 30_000, other: 0 });
  await vi.advanceTimersByTimeAsync(62_000);
  expect([errors, fronts]).toEqual([[tooLong], [0]]);
  expect(times()).toEqual([0, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000]);
  await vi.advanceTimersByTimeAsync(568_000);
  expect(fronts).toEqual([0, 630_000]);
  const ended = leaseEnds[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(30_000);
  await ended;
});

test('however long a look from the front took, the next comes ten minutes later', async () => {
  const { leaseEnds, fronts } = setup([NOTHING], NOTHING, { front: 3_600_000, other: 0 });
  await vi.advanceTimersByTimeAsync(4_200_000);
  expect(fronts).toEqual([0, 4_200_000]);
  const ended = leaseEnds[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(3_600_000);
  await ended;
});

test('a look from the front that fails at once comes again a second later', async () => {
  const { leaseEnds, fronts } = setup([NOTHING], new Error('away'));
  await vi.advanceTimersByTimeAsync(2_500);
  expect(fronts).toEqual([0, 1_000, 2_000]);
  await leaseEnds[Symbol.asyncDispose]();
});
