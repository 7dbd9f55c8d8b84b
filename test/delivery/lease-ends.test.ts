import { afterEach, expect, test, vi } from 'vitest';
import { startLeaseEnds } from '../../src/delivery/lease-ends.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import { type LeaseEnds, MAX_PUT_BACK } from '../../src/storage/leases.ts';

afterEach(() => void vi.useRealTimers());

const queue = (id: string) => ({ tenantId: 'acme' as TenantId, subscriptionId: id as SubscriptionId });
const NOTHING = { queues: [], count: 0, nextInMs: undefined };
const BACK_MS = 5_000;

/** Looks that find `found`, one after the other and the last from then on; `calls` says when each came and after what, in ms. */
function setup(found: readonly (Omit<LeaseEnds, 'nowUs'> | Error)[], tookMs = 0) {
  vi.useFakeTimers({ now: 0 });
  const calls: { atMs: number; afterMs: number }[] = [];
  const back: string[][] = [];
  const errors: unknown[] = [];
  const leaseEnds = startLeaseEnds({
    async putBack(afterUs) {
      const next = found[Math.min(calls.length, found.length - 1)]!;
      const nowUs = Date.now() * 1000;
      calls.push({ atMs: Date.now(), afterMs: afterUs / 1000 });
      if (tookMs > 0) await new Promise((done) => setTimeout(done, tookMs));
      if (next instanceof Error) throw next;
      return { ...next, nowUs };
    },
    onBack: (queues) => back.push(queues.map(({ subscriptionId }) => subscriptionId)),
    onError: (error) => errors.push(error),
  });
  return { leaseEnds, calls, back, errors, times: () => calls.map(({ atMs }) => atMs) };
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
  const full = { queues: [queue('a'), queue('b')], count: MAX_PUT_BACK, nextInMs: undefined };
  const { leaseEnds, times, back } = setup([full, { ...full, queues: [queue('b')], count: 7 }, NOTHING]);
  await vi.advanceTimersByTimeAsync(9_999);
  expect(times()).toEqual([0, 0]);
  expect(back).toEqual([['a', 'b'], ['b']]);
  await leaseEnds[Symbol.asyncDispose]();
});

test('a look goes on shortly before the last one, and each minute begins at the front', async () => {
  const { leaseEnds, calls } = setup([NOTHING]);
  await vi.advanceTimersByTimeAsync(70_000);
  const afterMs = [0, ...[0, 1, 2, 3, 4].map((i) => i * 10_000 - BACK_MS), 0, 60_000 - BACK_MS];
  expect(calls.map((call) => call.afterMs)).toEqual(afterMs);
  await leaseEnds[Symbol.asyncDispose]();
});

test('the front is looked at less often where that takes long', async () => {
  const { leaseEnds, calls } = setup([NOTHING], 10_000);
  await vi.advanceTimersByTimeAsync(230_000);
  expect(calls.filter(({ afterMs }) => afterMs === 0).map(({ atMs }) => atMs)).toEqual([0, 220_000]);
  await leaseEnds[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(20_000);
});

test('a look that fails is told of and comes again a second later from where it was to begin; after the end none comes', async () => {
  const away = new Error('away');
  const { leaseEnds, calls, errors } = setup([NOTHING, away, NOTHING]);
  await vi.advanceTimersByTimeAsync(11_500);
  expect(errors).toEqual([away]);
  expect(calls).toEqual([
    { atMs: 0, afterMs: 0 },
    { atMs: 10_000, afterMs: -BACK_MS },
    { atMs: 11_000, afterMs: -BACK_MS },
  ]);
  await leaseEnds[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(20_000);
  expect(calls).toHaveLength(3);
});
