import { randomBytes } from 'node:crypto';
import { expect, onTestFinished, test, vi } from 'vitest';
import { type ClaimerDeps, createClaimer } from '../../src/delivery/claimer.ts';
import type { ClaimedDelivery } from '../../src/domain/delivery.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import type { QueueKey, Wanted } from '../../src/storage/claims.ts';
import type { QueueHead, WalkPosition } from '../../src/storage/walk.ts';

/** Queues on a page of a walk. */
const PAGE = 5;
/** How far back claims look. */
const LATE_MS = 5_000;
const queue = { tenantId: 'a' as TenantId, subscriptionId: 'sub_1' as SubscriptionId };

/** A claimer over one queue; `stored` is what it holds, by the time that it is due, in the order of claims. */
function setup(
  stored: number[],
  room: number,
  {
    stepsBack = (): boolean => false,
    cap = 1_000,
    mayClaim = (): boolean => true,
    onClaimed = (): void => {},
    places = {
      room: (): number => room,
      waiting: (): number => 0,
      ofTenant: (): number => room,
      ofAll: (): number => room,
    },
  } = {},
) {
  const claims: { readonly after: number | undefined; readonly brought: number[] }[] = [];
  const accepted: number[] = [];
  const heads: QueueHead[] = [];
  /** The queues of each claim, and those that were looked at for one. */
  const wanted: string[][] = [];
  const looks: QueueKey[] = [];
  let onAccepted = (): void => {};
  let fails = false;
  const failOnce = () => {
    fails = true;
  };
  const take = ({ after, room: count }: Wanted): ClaimedDelivery[] => {
    const from = after === undefined ? 0 : stored.findIndex((dueAtMs) => dueAtMs > after.dueAtMs);
    const brought = from < 0 ? [] : stored.splice(from, count);
    claims.push({ after: after?.dueAtMs, brought });
    return brought.map((dueAtMs) => ({ ...queue, dueAtMs, idBytes: randomBytes(16) }) as ClaimedDelivery);
  };
  const nothing = { deliveries: [], withoutEvent: [], lines: [], reached: '', dueInMs: undefined };
  const deps: ClaimerDeps = {
    walk: async (from) => {
      const first = from?.leaf ?? 0;
      const next = first + PAGE < heads.length ? { leaf: first + PAGE } : undefined;
      return { heads: heads.slice(first, first + PAGE), next: next as WalkPosition | undefined };
    },
    claim: async (queues) => {
      if (fails) {
        fails = false;
        throw new Error('the database is away');
      }
      wanted.push(queues.map(({ tenantId, subscriptionId }) => `${tenantId}/${subscriptionId}`));
      const deliveries = take(queues[0]!);
      onClaimed();
      return { deliveries, withoutEvent: [] };
    },
    claimLines: async () => nothing,
    claimLeftovers: async () => nothing,
    room: places.room,
    waiting: places.waiting,
    totalRoom: places.ofAll,
    tenantRoom: places.ofTenant,
    worthwhile: 1,
    planOf: async (of) => {
      looks.push(of);
      return { cap, perLine: 0, perRequest: 1 };
    },
    foundNothing: () => onAccepted(),
    accept: (deliveries) => {
      accepted.push(...deliveries.map((d) => d.dueAtMs));
      onAccepted();
    },
    acceptLines: () => {},
    withoutEvent: () => {},
    stepsBack,
    mayClaim,
    onError: (error) => {
      if ((error as Error).message !== 'the database is away') throw error;
    },
  };
  const claimer = createClaimer(deps);
  onTestFinished(claimer.stop);
  const until = (isDone: () => boolean) =>
    new Promise<void>((done) => {
      onAccepted = () => {
        if (isDone()) done();
      };
    });
  return { claimer, stored, claims, accepted, heads, wanted, looks, until, failOnce };
}

test('a claim goes on where the last one ended, and the one after a short one looks back', async () => {
  const { claimer, claims, until } = setup([1, 2, 3, 4, 5], 2);
  const done = until(() => claims.length >= 4);
  claimer.poke([queue]);
  await done;
  expect(claims).toEqual([
    { after: undefined, brought: [1, 2] },
    { after: 2, brought: [3, 4] },
    { after: 4, brought: [5] },
    { after: 5 - LATE_MS, brought: [] },
  ]);
});

test('a queue that was emptied is not claimed from the front again, however often it fills', async () => {
  const { claimer, stored, claims, accepted, until } = setup([1_000, 2_000], 3);
  for (const [dueAtMs, count] of [
    [3_000, 2],
    [4_000, 3],
    [5_000, 4],
  ] as const) {
    const isDone = until(() => accepted.length === count);
    claimer.poke([queue]);
    await isDone;
    stored.push(dueAtMs);
  }
  expect(claims).toEqual([
    { after: undefined, brought: [1_000, 2_000] },
    { after: 2_000 - LATE_MS, brought: [3_000] },
    { after: 3_000 - LATE_MS, brought: [4_000] },
  ]);
});

test('what turns up where no claim looks back to is found by the walk, and claimed from the front', async () => {
  const { claimer, stored, claims, accepted, heads, until } = setup([10_000, 20_000], 3);
  const isDrained = until(() => accepted.length === 2);
  claimer.poke([queue]);
  await isDrained;
  stored.push(10);
  heads.push({ ...queue, dueAtMs: 10, dueInMs: -1 });
  const isFound = until(() => accepted.length === 3);
  claimer.poke(undefined);
  await isFound;
  expect(claims).toEqual([
    { after: undefined, brought: [10_000, 20_000] },
    { after: undefined, brought: [10] },
  ]);
});

test('what was put back where no claim looks back to is claimed from the front, without a walk', async () => {
  const { claimer, stored, claims, accepted, until } = setup([10_000, 20_000], 3);
  const isDrained = until(() => accepted.length === 2);
  claimer.poke([queue]);
  await isDrained;
  stored.push(10);
  const isFound = until(() => accepted.length === 3);
  claimer.found([{ ...queue, dueAtMs: 10, dueInMs: -1 }]);
  await isFound;
  expect(claims).toEqual([
    { after: undefined, brought: [10_000, 20_000] },
    { after: undefined, brought: [10] },
  ]);
});

test('the same while a claim of its queue is under way, which comes further meanwhile', async () => {
  const head = { ...queue, dueAtMs: 10, dueInMs: -1 };
  const onClaimed = () => {
    if (claims.length !== 2) return;
    stored.push(10);
    claimer.found([head]);
  };
  const { claimer, stored, claims, accepted, until } = setup([10_000], 3, { onClaimed });
  const isDrained = until(() => accepted.length === 1);
  claimer.poke([queue]);
  await isDrained;
  stored.push(20_000);
  const isFound = until(() => accepted.length === 3);
  claimer.poke([queue]);
  await isFound;
  expect(claims).toEqual([
    { after: undefined, brought: [10_000] },
    { after: 10_000 - LATE_MS, brought: [20_000] },
    { after: undefined, brought: [10] },
  ]);
});

test('what turns up in front of where the claims have come is claimed, too', async () => {
  const { claimer, stored, claims, accepted, until } = setup([10, 20, 30, 40, 50], 2);
  const done = until(() => {
    if (claims.length === 1) stored.unshift(5);
    return accepted.length === 6;
  });
  claimer.poke([queue]);
  await done;
  expect(accepted).toEqual([10, 20, 30, 40, 50, 5]);
});

test('a claim asks for each queue once, however unevenly they are spread over tenants', async () => {
  const { claimer, wanted, until } = setup([], 100);
  const many = Array.from({ length: 7 }, (_, i) => ({
    ...queue,
    subscriptionId: `sub_${i}` as SubscriptionId,
  }));
  const one = { tenantId: 'b' as TenantId, subscriptionId: 'sub_b' as SubscriptionId };
  const isDone = until(() => new Set(wanted.flat()).size === 8);
  claimer.poke([...many, one]);
  await isDone;
  for (const keys of wanted) expect(new Set(keys).size).toBe(keys.length);
});

/** A claimer of one queue with four deliveries, on a clock of the test's; `of` is what there is room for. */
function setupFull(of: { room: number; waiting: number; ofTenant: number; ofAll?: number }, cap?: number) {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const places = {
    room: () => of.room,
    waiting: () => of.waiting,
    ofTenant: () => of.ofTenant,
    ofAll: () => of.ofAll ?? 100,
  };
  const { claimer, claims, heads, looks } = setup([1, 2, 3, 4], 100, {
    places,
    ...(cap === undefined ? {} : { cap }),
  });
  /** How often the queue is looked at while deliveries of others end for half a second. */
  const pass = async () => {
    const before = looks.length;
    for (let ms = 0; ms < 500; ms += 2) {
      claimer.resume();
      await vi.advanceTimersByTimeAsync(2);
    }
    return looks.length - before;
  };
  claimer.poke([queue]);
  return { claimer, claims, heads, looks, pass };
}

test.each([
  ['by its own bound', { waiting: 10, ofTenant: 1_000 }, 10],
  ['by its own bound, and its tenant has no places', { waiting: 10, ofTenant: 0 }, 10],
  ['by what was claimed of it', { waiting: 10, ofTenant: 1_000 }, Number.POSITIVE_INFINITY],
] as const)(
  'a queue that is full %s is looked at once, and again when one of its own has left, whatever ends of others',
  async (_, of, cap) => {
    const now = { ...of, room: 0 } as { room: number; waiting: number; ofTenant: number };
    const { claimer, claims, pass } = setupFull(now, cap);
    expect(await pass()).toBe(1);
    now.ofTenant = 2_000;
    expect(await pass()).toBe(0);
    claimer.freed(queue.tenantId, queue.subscriptionId);
    expect(await pass()).toBe(1);
    now.room = 9;
    now.waiting = 0;
    claimer.freed(queue.tenantId, queue.subscriptionId);
    await pass();
    expect(claims.flatMap(({ brought }) => brought)).toEqual([1, 2, 3, 4]);
  },
);

test('a queue that its tenant has no places for is looked at again when there are, though nothing of its own ends', async () => {
  const of = { room: 0, waiting: 3, ofTenant: 0 };
  const { claims, pass } = setupFull(of);
  expect(await pass()).toBe(1);
  of.ofTenant = 3;
  expect(await pass()).toBe(0);
  of.ofTenant = 4; // half of these and its own three, less what it has
  of.room = 1;
  await pass();
  expect(claims.flatMap(({ brought }) => brought)).toEqual([1, 2, 3, 4]);
});

test('places that all have taken while it looked are waited for, too', async () => {
  const of = { room: 0, waiting: 0, ofTenant: 1_000, ofAll: 100 };
  const { claims, looks, pass } = setupFull(of);
  const push = looks.push.bind(looks);
  looks.push = (queue) => {
    of.ofAll = 0; // what was published just now
    return push(queue);
  };
  await pass();
  expect(looks).toHaveLength(1);
  looks.push = push;
  of.ofAll = 100;
  of.room = 9;
  await pass();
  expect(claims.flatMap(({ brought }) => brought)).toEqual([1, 2, 3, 4]);
});

test('a hint or a walk makes it look at a queue that is full', async () => {
  const of = { room: 0, waiting: 10, ofTenant: 1_000 };
  const { claimer, heads, looks, pass } = setupFull(of, 10);
  await pass();
  claimer.poke([queue]);
  await pass();
  expect(looks).toHaveLength(2);
  heads.push({ ...queue, dueAtMs: 1, dueInMs: -1 });
  claimer.poke(undefined);
  await pass();
  expect(looks).toHaveLength(3);
});

/** One that has stepped back, on a clock of the test's: what each second of hints made it claim. */
function setupBack(stored: number[], cap: number, { room = 1, onClaimed = (): void => {} } = {}) {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const state = { isBack: true };
  const { claimer, claims, accepted, heads, wanted, failOnce } = setup(stored, room, {
    stepsBack: () => state.isBack,
    cap,
    onClaimed,
  });
  const second = async () => {
    claimer.poke([queue]);
    claimer.poke(undefined);
    claimer.resume();
    const before = claims.length;
    await vi.advanceTimersByTimeAsync(1_000);
    return claims.length - before;
  };
  return { claimer, claims, accepted, heads, wanted, failOnce, second, state };
}

test('a worker that has stepped back leaves queues to others, whatever hints it gets, but for a claim each five seconds', async () => {
  const { accepted, heads, second, state } = setupBack([1, 2, 3, 4, 5, 6, 7, 8], Number.POSITIVE_INFINITY);
  heads.push({ ...queue, dueAtMs: 1, dueInMs: 0 });
  await second(); // it finds out
  for (let s = 0; s < 4; s++) expect(await second()).toBe(0);
  expect(await second()).toBe(1);
  for (let s = 0; s < 4; s++) expect(await second()).toBe(0);
  state.isBack = false;
  await second();
  expect(accepted).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
});

test('of a queue with limits it goes on to take its part, which no other takes', async () => {
  const { accepted, second } = setupBack([1, 2, 3, 4, 5, 6, 7, 8], 1);
  await second();
  expect(accepted).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
});

test('one that has stepped back and is needed again looks at once at what it left, without a hint', async () => {
  const { accepted, heads, state } = setupBack([1, 2, 3], Number.POSITIVE_INFINITY);
  await vi.advanceTimersByTimeAsync(1_000);
  heads.push({ ...queue, dueAtMs: 1, dueInMs: 0 });
  await vi.advanceTimersByTimeAsync(1_000);
  expect(accepted).toEqual([]);
  state.isBack = false;
  await vi.advanceTimersByTimeAsync(1_000);
  expect(accepted).toEqual([1, 2, 3]);
});

test('what only it was told of it does not leave: a retry of its own, what it is said to know and what it put back', async () => {
  const { claimer, claims, accepted } = setupBack([1, 2, 3, 4], Number.POSITIVE_INFINITY);
  await vi.advanceTimersByTimeAsync(100);
  claimer.later(queue, 200);
  await vi.advanceTimersByTimeAsync(199);
  expect(claims).toEqual([]);
  await vi.advanceTimersByTimeAsync(10);
  expect(accepted).toEqual([1]);
  claimer.knows([queue]);
  await vi.advanceTimersByTimeAsync(10);
  expect(accepted).toEqual([1, 2]);
  claimer.found([{ ...queue, dueAtMs: 3, dueInMs: -1 }]);
  await vi.advanceTimersByTimeAsync(10);
  expect(accepted).toEqual([1, 2, 3]);
  claimer.poke([queue]);
  await vi.advanceTimersByTimeAsync(10);
  expect(accepted).toEqual([1, 2, 3]);
});

test('queues that it is told of at once go into one claim', async () => {
  const { claimer, wanted } = setupBack([1], Number.POSITIVE_INFINITY, { room: 10 });
  await vi.advanceTimersByTimeAsync(100);
  claimer.knows(['sub_1', 'sub_2'].map((id) => ({ ...queue, subscriptionId: id as SubscriptionId })));
  await vi.advanceTimersByTimeAsync(10);
  expect(wanted[0]).toEqual(['a/sub_1', 'a/sub_2']);
});

test('what only it was told of while that queue was claimed from is not left either', async () => {
  const stored = [1];
  const { claimer, accepted } = setupBack(stored, Number.POSITIVE_INFINITY, {
    onClaimed() {
      if (accepted.length > 0 || stored.length > 0) return;
      stored.push(2);
      claimer.knows([queue]);
    },
  });
  await vi.advanceTimersByTimeAsync(100);
  claimer.knows([queue]);
  await vi.advanceTimersByTimeAsync(10);
  expect(accepted).toEqual([1, 2]);
});

test('what it takes of what others have is of any queue on any page, not of the first ones again and again', async () => {
  const { heads, wanted } = setupBack([], Number.POSITIVE_INFINITY);
  const queues = Array.from({ length: 10 }, (_, i) => `sub_${i}`);
  for (const id of queues) {
    const tenantId = `of-${id}` as TenantId;
    heads.push({ tenantId, subscriptionId: id as SubscriptionId, dueAtMs: 1, dueInMs: 0 });
  }
  await vi.advanceTimersByTimeAsync(200 * 5_000);
  expect(new Set(wanted.flat()).size).toBe(queues.length);
});

test('a hint that names nothing makes one that has stepped back look for its part of queues with limits, once a second', async () => {
  const { claimer, heads, accepted } = setupBack([1, 2], 4);
  await vi.advanceTimersByTimeAsync(2_000);
  heads.push({ ...queue, dueAtMs: 1, dueInMs: 0 });
  claimer.poke(undefined);
  await vi.advanceTimersByTimeAsync(10);
  expect(accepted).toEqual([1, 2]);
});

test('a retry of its own that falls due while its queue is claimed from, or whose claim fails, is not left either', async () => {
  const { claimer, claims, accepted, failOnce } = setupBack([], Number.POSITIVE_INFINITY);
  await vi.advanceTimersByTimeAsync(100);
  failOnce();
  claimer.later(queue, 100);
  await vi.advanceTimersByTimeAsync(101);
  expect(claims).toEqual([]);
  await vi.advanceTimersByTimeAsync(1_000);
  expect(claims.length).toBeGreaterThan(0);
  expect(accepted).toEqual([]);
});

test('while results cannot be recorded nothing is claimed, and that is asked ten times a second', async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  let asked = 0;
  let mayClaim = false;
  const { claimer, accepted } = setup([1], 1, {
    mayClaim: () => {
      asked++;
      return mayClaim;
    },
  });
  claimer.poke([queue]);
  await vi.advanceTimersByTimeAsync(5_000);
  expect(accepted).toEqual([]);
  expect(asked).toBeLessThan(150);
  mayClaim = true;
  await vi.advanceTimersByTimeAsync(200);
  expect(accepted).toEqual([1]);
});
