import { describe, expect, test, vi } from 'vitest';
import {
  createScheduler as create,
  limitsFor,
  type SchedulerDeps,
  type SchedulerLimits,
  type Turn,
  targetOf,
  worthwhileOf,
} from '../../src/delivery/scheduler.ts';
import type { ClaimedDelivery } from '../../src/domain/delivery.ts';
import type { DeliveryId, EventId, SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import type { TenantConfig } from '../../src/storage/read-config.ts';
import type { Target } from '../../src/storage/targets.ts';

let serial = 0;
function delivery(tenant: string, subscription: string, bytes = 10): ClaimedDelivery {
  serial++;
  return {
    tenantId: tenant as TenantId,
    deliveryId: `dlv_${serial}` as DeliveryId,
    idBytes: Buffer.alloc(16),
    subscriptionId: subscription as SubscriptionId,
    attemptCount: 0,
    retryBase: 0,
    roundAtMs: undefined,
    lease: Buffer.alloc(16),
    leaseUntilMs: 0,
    dueAtMs: 0,
    isOrdered: false,
    place: undefined,
    event: {
      eventId: 'evt_x' as EventId,
      type: 'a',
      contentType: 'application/json',
      payload: Buffer.alloc(bytes),
      source: '',
      subject: '',
    },
  };
}
const createScheduler = (
  bounds: SchedulerLimits,
  weights: Readonly<Record<string, number>> = {},
  told: Partial<Pick<SchedulerDeps, 'onFreed' | 'onDropped' | 'onGivenBack'>> = {},
) =>
  create(bounds, {
    now: () => 0,
    weightOf: (tenantId) => weights[tenantId] ?? 1,
    onFreed: () => {},
    onDropped: () => {},
    onGivenBack: () => {},
    ...told,
  });
const limits = (changes: Partial<SchedulerLimits> = {}): SchedulerLimits => ({
  ...limitsFor(100),
  ...changes,
});
const name = (turn: Turn | undefined) =>
  turn === undefined ? undefined : `${turn.delivery.tenantId}/${turn.delivery.subscriptionId}`;
const tenantOf = (turn: Turn | undefined) => turn?.delivery.tenantId;

function take(scheduler: ReturnType<typeof createScheduler>, count: number): (string | undefined)[] {
  return Array.from({ length: count }, () => name(scheduler.next()));
}

describe('the scheduler', () => {
  test('goes round over tenants, however much one of them has waiting', () => {
    const scheduler = createScheduler(limits());
    for (let i = 0; i < 50; i++) scheduler.offer(delivery('big', 's'));
    for (let i = 0; i < 3; i++) scheduler.offer(delivery('small', 's'));
    expect(take(scheduler, 6)).toEqual(['big/s', 'small/s', 'big/s', 'small/s', 'big/s', 'small/s']);
  });

  test('goes round over a tenant’s subscriptions, and keeps the order within one', () => {
    const scheduler = createScheduler(limits());
    const first = [delivery('a', 'x'), delivery('a', 'x'), delivery('a', 'x')];
    for (const d of first) scheduler.offer(d);
    scheduler.offer(delivery('a', 'y'));
    const got = [scheduler.next(), scheduler.next(), scheduler.next(), scheduler.next()];
    expect(got.map(name)).toEqual(['a/x', 'a/y', 'a/x', 'a/x']);
    expect(got.filter((turn) => name(turn) === 'a/x').map((turn) => turn!.delivery)).toEqual(first);
  });

  test('gives a tenant of weight 3 three turns for each one of a tenant of weight 1', () => {
    const scheduler = createScheduler(limits(), { heavy: 3 });
    for (let i = 0; i < 20; i++) for (const t of ['heavy', 'light']) scheduler.offer(delivery(t, 's'));
    const got = take(scheduler, 8);
    expect(got.filter((n) => n === 'heavy/s')).toHaveLength(6);
    expect(got.filter((n) => n === 'light/s')).toHaveLength(2);
  });

  test('a tenant whose bodies are large has fewer turns, and still has them', () => {
    const scheduler = createScheduler(limits());
    for (let i = 0; i < 40; i++) scheduler.offer(delivery('small', 's'));
    for (let i = 0; i < 10; i++) scheduler.offer(delivery('large', 's', 64 * 1024));
    const got: Turn[] = [];
    for (let i = 0; i < 30; i++) {
      const next = scheduler.next()!;
      got.push(next);
      scheduler.finished(next);
    }
    const large = got.filter((turn) => name(turn) === 'large/s').length;
    expect(large).toBeGreaterThanOrEqual(4);
    expect(large).toBeLessThanOrEqual(7);
  });

  test('asked for one of a quiet tenant, it keeps all others where they are', () => {
    const scheduler = createScheduler(limits());
    for (let i = 0; i < 3; i++) for (const tenant of ['a', 'b']) scheduler.offer(delivery(tenant, 's'));
    const first = [scheduler.next(), scheduler.next()];
    expect(first.map(tenantOf)).toEqual(['a', 'b']);
    expect(scheduler.next(undefined, true)).toBe(undefined);
    scheduler.offer(delivery('quiet', 's'));
    scheduler.offer(delivery('quiet', 's'));
    expect(tenantOf(scheduler.next(undefined, true))).toBe('quiet');
    // It has one in flight now.
    expect(scheduler.next(undefined, true)).toBe(undefined);
    expect([1, 2, 3].map(() => tenantOf(scheduler.next()))).toEqual(['a', 'b', 'quiet']);
    expect(scheduler.inFlightCount()).toBe(6);
  });

  test('a tenant is quiet with four deliveries here, not with five, and not for a while after it has sent a large one', () => {
    const goesWith = (count: number) => {
      const scheduler = createScheduler(limits());
      for (let i = 0; i < count; i++) scheduler.offer(delivery('a', 's'));
      return tenantOf(scheduler.next(undefined, true));
    };
    expect([goesWith(4), goesWith(5)]).toEqual(['a', undefined]);
    const scheduler = createScheduler(limits());
    for (let i = 0; i < 2; i++) scheduler.offer(delivery('a', 's', 64 * 1024));
    const large = scheduler.next(undefined, true);
    expect(tenantOf(large)).toBe('a');
    scheduler.finished(large!);
    expect(scheduler.next(undefined, true)).toBe(undefined);
    expect(tenantOf(scheduler.next())).toBe('a');
  });

  test('asked for one of a quiet tenant, it lets none of another go where that one may not', () => {
    const scheduler = createScheduler(limits());
    for (const tenant of ['a', 'a', 'quiet']) scheduler.offer(delivery(tenant, 's'));
    scheduler.next();
    const hold = { hold: 'queue', ms: 1_000 } as const;
    const admitted: string[] = [];
    const turn = scheduler.next(({ tenant }) => {
      admitted.push(tenant.tenantId);
      return tenant.tenantId === 'quiet' ? hold : 'go';
    }, true);
    expect([turn, admitted]).toEqual([undefined, ['quiet']]);
    scheduler.release('quiet' as TenantId, 's' as SubscriptionId);
    scheduler.offer(delivery('another', 's'));
    const next = scheduler.next(({ tenant }) => (tenant.tenantId === 'quiet' ? hold : 'go'), true);
    expect(tenantOf(next)).toBe('another');
    expect(tenantOf(scheduler.next())).toBe('a');
  });

  test('looking for quiet tenants in vain, also at a few of many only, takes no turn from anybody', () => {
    const scheduler = createScheduler(limits({ maxInFlight: 1_000 }));
    const names = Array.from({ length: 12 }, (_, i) => `t${i}`);
    for (let i = 0; i < 20; i++) for (const tenant of names) scheduler.offer(delivery(tenant, 's'));
    const hung = names.map(() => scheduler.next());
    expect(hung.map(tenantOf)).toEqual(names);
    const sent = new Map<string, number>();
    for (let i = 0; i < 120; i++) {
      const turn = scheduler.next()!;
      sent.set(turn.delivery.tenantId, (sent.get(turn.delivery.tenantId) ?? 0) + 1);
      scheduler.finished(turn);
      for (let look = 0; look < 1 + (i % 4); look++) expect(scheduler.next(undefined, true)).toBe(undefined);
    }
    expect([...sent]).toEqual(names.map((tenant) => [tenant, 10]));
    scheduler.offer(delivery('quiet', 's'));
    expect(scheduler.next(undefined, true)).toBe(undefined); // behind twelve, of which eight are looked at
  });

  test('a tenant has half of what the others leave: one a half, two a third each, and something is always left', () => {
    const scheduler = createScheduler(limits({ maxInFlight: 60 }));
    const inFlight = (tenant: string) => {
      for (let i = 0; i < 8; i++) for (let s = 0; s < 20; s++) scheduler.offer(delivery(tenant, `s${s}`));
    };
    const drain = () => {
      const got: (string | undefined)[] = [];
      for (let next = scheduler.next(); next !== undefined; next = scheduler.next()) got.push(tenantOf(next));
      return got;
    };
    inFlight('a');
    const alone = drain().length; // by the same rule its subscriptions leave something for another one, too
    expect([alone >= 28, alone <= 30]).toEqual([true, true]);
    inFlight('b');
    const second = drain().filter((t) => t === 'b').length;
    expect([second >= 13, second <= 16]).toEqual([true, true]);
    scheduler.offer(delivery('quiet', 's'));
    expect(tenantOf(scheduler.next())).toBe('quiet');
  });

  test('a subscription has half of what the tenant’s others leave, and does not stop them', () => {
    const scheduler = createScheduler(limits({ maxInFlight: 16 }));
    for (let i = 0; i < 10; i++) scheduler.offer(delivery('a', 'slow'));
    expect(take(scheduler, 5)).toEqual(['a/slow', 'a/slow', 'a/slow', 'a/slow', undefined]);
    scheduler.offer(delivery('a', 'fast'));
    expect(take(scheduler, 2)).toEqual(['a/fast', undefined]);
  });

  test('what waited for its share goes when one of another tenant’s ends', () => {
    const scheduler = createScheduler(limits({ maxInFlight: 4 }));
    for (let i = 0; i < 4; i++) scheduler.offer(delivery('a', `s${i}`));
    for (let i = 0; i < 4; i++) scheduler.offer(delivery('b', `s${i}`));
    const got = [scheduler.next()!, scheduler.next()!, scheduler.next()!];
    expect(scheduler.next()).toBeUndefined();
    scheduler.finished(got.find((turn) => tenantOf(turn) === 'b')!);
    expect(scheduler.next()).toBeDefined();
  });

  test('has fewer places of a queue for what claims bring, as many more in batches, and none of them is for what is handed over', () => {
    const scheduler = createScheduler(limits({ maxWaiting: 64, maxClaimed: 4 }));
    const [a, x, y] = ['a' as TenantId, 'x' as SubscriptionId, 'y' as SubscriptionId];
    const rooms = () => [scheduler.room(a, x, 1), scheduler.room(a, x, 3), scheduler.room(a, y, 1)];
    expect(rooms()).toEqual([4, 12, 4]);
    for (let i = 0; i < 4; i++) scheduler.offer(delivery('a', 'x'));
    expect(rooms()).toEqual([0, 8, 4]);
    for (let i = 0; i < 3; i++) {
      const place = scheduler.reserve(a, x);
      expect(place).toBeDefined();
      scheduler.offer({ ...delivery('a', 'x'), place });
    }
    expect([...rooms(), scheduler.waitingOf(a, x)]).toEqual([0, 8, 4, 7]);
    take(scheduler, 2);
    expect([...rooms(), scheduler.waitingOf(a, x)]).toEqual([2, 10, 4, 5]);
    take(scheduler, 5);
    expect([...rooms(), scheduler.waitingOf(a, x)]).toEqual([4, 12, 4, 0]);
  });

  test('has room for a claim that is worth its while in every queue, however few may be in flight and whatever waits for its batch', () => {
    for (const maxInFlight of [1, 2, 3, 10, 64, 100, 126, 127, 128, 512, 1_001, 10_000]) {
      const scheduler = createScheduler(limitsFor(maxInFlight));
      const roomOf = (tenant: string, perRequest = 1) =>
        scheduler.room(tenant as TenantId, 's' as SubscriptionId, perRequest);
      expect([maxInFlight, roomOf('a') >= worthwhileOf(maxInFlight)]).toEqual([maxInFlight, true]);
      expect([maxInFlight, Number.isInteger(roomOf('a'))]).toEqual([maxInFlight, true]);
    }
    const scheduler = createScheduler(limitsFor(512));
    const room = (tenant: string, perRequest: number) =>
      scheduler.room(tenant as TenantId, 's' as SubscriptionId, perRequest);
    for (let t = 0; t < 30; t++) {
      for (let i = 0; i < 100; i++) scheduler.offer(delivery(`holds-${t}`, 's'));
    }
    expect(room('late', 1)).toBeGreaterThanOrEqual(worthwhileOf(512));
    expect(room('batches', 1_000)).toBeGreaterThanOrEqual(1_000);
  });

  test('counts reserved places and those behind in lines as taken, and gives them back', () => {
    const scheduler = createScheduler(limits({ maxWaiting: 16 }));
    const a = 'a' as TenantId;
    const x = 'x' as SubscriptionId;
    const before = scheduler.room(a, x, 1);
    expect(before).toBe(4);
    const behind = delivery('a', 'x');
    const places = [scheduler.reserve(a, x)!, scheduler.reserve(a, x)!];
    scheduler.holdBehind(behind);
    expect([scheduler.room(a, x, 1), scheduler.waitingOf(a, x)]).toEqual([1, 3]);
    for (const place of places) scheduler.unreserve(place);
    scheduler.leaveBehind(behind);
    expect([scheduler.room(a, x, 1), scheduler.waitingOf(a, x)]).toEqual([before, 0]);
  });

  test('says of which queue a delivery or a held place has left, whichever way it went', () => {
    const freed: string[] = [];
    const onFreed = (tenantId: TenantId, subscriptionId: SubscriptionId) =>
      void freed.push(`${tenantId}/${subscriptionId}`);
    const scheduler = createScheduler(limits(), {}, { onFreed });
    const queues = ['next', 'along', 'dropped', 'place', 'behind'];
    const all = queues.map((subscription) => delivery('a', subscription));
    for (const d of all.slice(0, 3)) scheduler.offer(d);
    scheduler.holdBehind(all[4]!);
    const place = scheduler.reserve(all[3]!.tenantId, all[3]!.subscriptionId)!;
    expect(freed).toEqual([]);
    expect(name(scheduler.next())).toBe('a/next');
    scheduler.takeAlong(all[1]!.tenantId, all[1]!.subscriptionId, () => true);
    scheduler.next(() => 'drop');
    scheduler.unreserve(place);
    scheduler.leaveBehind(all[4]!);
    expect(freed).toEqual(queues.map((subscription) => `a/${subscription}`));
  });

  test('what is taken along in a request waits no more, and leaves nothing behind it', () => {
    const scheduler = createScheduler(limits());
    const all = [delivery('a', 'x'), delivery('a', 'x'), delivery('a', 'x', 500)];
    for (const d of all) scheduler.offer(d);
    const first = scheduler.next()!.delivery;
    const small = (d: ClaimedDelivery) => d.event.payload.length < 100;
    expect(scheduler.takeAlong(first.tenantId, first.subscriptionId, small)).toBe(all[1]);
    expect(scheduler.takeAlong(first.tenantId, first.subscriptionId, small)).toBeUndefined();
    expect(scheduler.takeAlong(first.tenantId, first.subscriptionId, () => true)).toBe(all[2]);
    expect([scheduler.next(), scheduler.inFlightCount(), scheduler.waitingCount()]).toEqual([
      undefined,
      1,
      0,
    ]);
  });

  test('says what it dropped, and what is to be given back', () => {
    const dropped: ClaimedDelivery[] = [];
    const givenBack: ClaimedDelivery[] = [];
    const scheduler = createScheduler(
      limits(),
      {},
      { onDropped: (d) => dropped.push(d), onGivenBack: (d) => givenBack.push(d) },
    );
    for (const [admission, told] of [
      ['drop', dropped],
      ['give-back', givenBack],
    ] as const) {
      const all = [delivery('a', 'x'), delivery('a', 'x')];
      for (const d of all) scheduler.offer(d);
      expect(scheduler.next(() => admission)).toBeUndefined();
      expect(told).toEqual(all);
    }
    expect([dropped.length, givenBack.length, scheduler.waitingCount()]).toEqual([2, 2, 0]);
  });

  test('has no room while the bodies that wait are too large together', () => {
    const scheduler = createScheduler(limits({ maxWaitingBytes: 100 }));
    scheduler.offer(delivery('a', 'x', 100));
    expect(scheduler.room('b' as TenantId, 'y' as SubscriptionId, 1)).toBe(0);
    scheduler.next();
    expect(scheduler.room('b' as TenantId, 'y' as SubscriptionId, 1)).toBeGreaterThan(0);
  });

  test('drained, it holds nothing that waits and still counts what is in flight', () => {
    const scheduler = createScheduler(limits());
    const all = [delivery('a', 'x'), delivery('a', 'y'), delivery('b', 'x')];
    for (const d of all) scheduler.offer(d);
    const first = scheduler.next()!;
    expect(new Set(scheduler.drain())).toEqual(new Set(all.filter((d) => d !== first.delivery)));
    expect([scheduler.waitingCount(), scheduler.inFlightCount(), scheduler.next()]).toEqual([
      0,
      1,
      undefined,
    ]);
    scheduler.finished(first);
    scheduler.offer(all[2]!);
    expect(scheduler.next()?.delivery).toBe(all[2]);
  });

  test('forgets tenants that nothing is here of when there are many, and none that something is here of', () => {
    const scheduler = createScheduler(limits({ maxInFlight: 4 }));
    const kept = delivery('kept', 'waits');
    scheduler.offer(delivery('kept', 'flies'));
    const flying = scheduler.next()!;
    for (let i = 0; i < 1_000; i++) {
      scheduler.offer(delivery(`t${i}`, 's'));
      for (let turn = scheduler.next(); turn !== undefined; turn = scheduler.next()) scheduler.finished(turn);
    }
    scheduler.offer(kept);
    scheduler.finished(flying);
    expect(scheduler.tenantCount()).toBeLessThanOrEqual(257);
    expect([name(scheduler.next()), scheduler.waitingCount(), scheduler.inFlightCount()]).toEqual([
      'kept/waits',
      0,
      1,
    ]);
  });

  test('what waits for its share goes also when what was parked before it has nothing left', () => {
    const scheduler = createScheduler(limits({ maxInFlight: 16 }));
    const flying: Turn[] = [];
    for (const queue of ['x', 'y', 'z']) {
      for (let i = 0; i < 9; i++) scheduler.offer(delivery('a', queue));
      for (let turn = scheduler.next(); turn !== undefined; turn = scheduler.next()) flying.push(turn);
    }
    expect(flying.map(name).join(' ')).toBe('a/x a/x a/x a/x a/y a/y a/z');
    for (let i = 0; i < 9; i++) scheduler.takeAlong('a' as TenantId, 'x' as SubscriptionId, () => true);
    const ofX = flying.filter((turn) => name(turn) === 'a/x');
    for (const turn of ofX.slice(0, 2)) scheduler.finished(turn);
    expect(name(scheduler.next())).toBe('a/z');
  });

  test('a queue’s target is looked up once in a configuration, and anew in the next one', () => {
    const scheduler = createScheduler(limits());
    for (let i = 0; i < 2; i++) scheduler.offer(delivery('a', 'x'));
    const { queue } = scheduler.next()!;
    let serial = 0;
    const configOf = (target: Partial<Target> | undefined) => {
      const get = vi.fn(() => target);
      return { get, config: { serial: ++serial, targets: { get } } as unknown as TenantConfig };
    };
    const [first, changed, gone] = [
      configOf({ url: 'first' }),
      configOf({ url: 'changed' }),
      configOf(undefined),
    ];
    expect([1, 2].map(() => targetOf(queue, first.config)?.url)).toEqual(['first', 'first']);
    expect([1, 2].map(() => targetOf(scheduler.next()?.queue ?? queue, changed.config)?.url)).toEqual([
      'changed',
      'changed',
    ]);
    expect([1, 2].map(() => targetOf(queue, gone.config))).toEqual([undefined, undefined]);
    expect([first, changed, gone].map(({ get }) => get.mock.calls)).toEqual([[['x']], [['x']], [['x']]]);
  });

  test('any order of offers, takes and ends leaves the counts right and loses nothing', () => {
    const scheduler = createScheduler(limits({ maxInFlight: 7 }), { t0: 5, t1: 2 });
    let seed = 12345;
    const random = (n: number) => {
      seed = (seed * 1103515245 + 12345) % 2147483648;
      return Math.floor((seed / 2147483648) * n);
    };
    const inFlight: Turn[] = [];
    const done = new Set<string>();
    let offered = 0;
    for (let step = 0; step < 20_000 || done.size < offered; step++) {
      const what = random(3);
      if (what === 0 && step < 20_000) {
        scheduler.offer(delivery(`t${random(5)}`, `s${random(4)}`));
        offered++;
      } else if (what === 1) {
        const ofQuiet = random(2) === 0;
        const next = scheduler.next(undefined, ofQuiet);
        if (next !== undefined) {
          const isOfSame = ({ delivery: { tenantId } }: Turn) => tenantId === next.delivery.tenantId;
          expect(ofQuiet && inFlight.some(isOfSame)).toBe(false);
          inFlight.push(next);
        }
      } else if (inFlight.length > 0) {
        const [ended] = inFlight.splice(random(inFlight.length), 1);
        scheduler.finished(ended!);
        expect(done.has(ended!.delivery.deliveryId)).toBe(false);
        done.add(ended!.delivery.deliveryId);
      }
      expect(scheduler.inFlightCount()).toBe(inFlight.length);
      expect(inFlight.length).toBeLessThanOrEqual(7);
    }
    expect([done.size, scheduler.waitingCount(), scheduler.inFlightCount()]).toEqual([offered, 0, 0]);
  });
});
