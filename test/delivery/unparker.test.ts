import { afterEach, expect, test, vi } from 'vitest';
import { startUnparker } from '../../src/delivery/unparker.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import type { QueueKey } from '../../src/storage/claims.ts';
import { MAX_UNPARK } from '../../src/storage/parking.ts';
import type { QueueHead, WalkPage } from '../../src/storage/walk.ts';

afterEach(() => void vi.useRealTimers());

const head = (subscriptionId: string, dueInMs: number): QueueHead => ({
  tenantId: 'acme' as TenantId,
  subscriptionId: subscriptionId as SubscriptionId,
  dueAtMs: 0,
  dueInMs,
});

/** One whose walks give `pages`, one after the other and from the first again, and whose calls give `counts`. */
function setup(pages: readonly (WalkPage | Error)[], counts: readonly number[]) {
  vi.useFakeTimers();
  const calls: string[][] = [];
  const errors: unknown[] = [];
  let walks = 0;
  const unparker = startUnparker({
    walk: async () => {
      const page = pages[walks++ % pages.length]!;
      if (page instanceof Error) throw page;
      return page;
    },
    unpark: async (queues: readonly QueueKey[]) => {
      calls.push(queues.map(({ subscriptionId }) => subscriptionId));
      return counts[calls.length - 1] ?? 0;
    },
    onError: (error) => errors.push(error),
  });
  return { unparker, calls, errors, walks: () => walks };
}

const position = { leaf: 0, tenantId: 'acme', subscriptionUuid: '' };

test('queues whose first is due within a minute are taken from until there is no more, on every page', async () => {
  const pages = [
    { heads: [head('near', 59_000), head('far', 61_000), head('late', -5)], next: position },
    { heads: [head('last', 0)], next: undefined },
  ];
  const { unparker, calls, walks } = setup(pages, [MAX_UNPARK, MAX_UNPARK, 17]);
  await vi.advanceTimersByTimeAsync(100);
  expect(calls).toEqual([['near', 'late'], ['near', 'late'], ['near', 'late'], ['last']]);
  await vi.advanceTimersByTimeAsync(9_000);
  expect(walks()).toBe(2);
  await vi.advanceTimersByTimeAsync(1_000);
  expect(walks()).toBe(4);
  await unparker[Symbol.asyncDispose]();
});

test('nothing is written where nothing is due soon', async () => {
  const { unparker, calls, walks } = setup([{ heads: [head('far', 60_001)], next: undefined }], []);
  await vi.advanceTimersByTimeAsync(25_000);
  expect([walks(), calls]).toEqual([3, []]);
  await unparker[Symbol.asyncDispose]();
});

test('walks come less often while nothing comes near, and in time for what does', async () => {
  const empty = { heads: [], next: undefined };
  const pages = [
    [head('far', 3_600_000)],
    [head('far', 85_000), head('farther', 200_000)],
    [head('near', 60_000)],
  ];
  const { unparker, calls, walks } = setup(
    [empty, ...pages.map((heads) => ({ heads, next: undefined }))],
    [],
  );
  for (const [afterMs, count] of [
    [29_999, 1],
    [1, 2],
    [29_999, 2],
    [1, 3],
    [24_999, 3],
    [1, 4],
    [9_999, 4],
    [1, 5],
  ] as const) {
    await vi.advanceTimersByTimeAsync(afterMs);
    expect(walks()).toBe(count);
  }
  expect(calls).toEqual([['near']]);
  await unparker[Symbol.asyncDispose]();
});

test('a walk that fails is told of and comes again a second later; after the end none comes', async () => {
  const away = new Error('away');
  const { unparker, errors, walks } = setup([away], []);
  await vi.advanceTimersByTimeAsync(1_500);
  expect(errors).toEqual([away, away]);
  await unparker[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(20_000);
  expect(walks()).toBe(2);
});
