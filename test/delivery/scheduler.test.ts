import { describe, expect, test } from 'vitest';
import { createScheduler, limitsFor, type SchedulerLimits } from '../../src/delivery/scheduler.ts';
import type { ClaimedDelivery } from '../../src/domain/delivery.ts';
import type { DeliveryId, EventId, SubscriptionId, TenantId } from '../../src/domain/ids.ts';

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
    event: {
      eventId: 'evt_x' as EventId,
      type: 'a',
      contentType: 'application/json',
      payload: Buffer.alloc(bytes),
    },
  };
}
const limits = (changes: Partial<SchedulerLimits> = {}): SchedulerLimits => ({
  ...limitsFor(100),
  ...changes,
});
const name = (d: ClaimedDelivery | undefined) =>
  d === undefined ? undefined : `${d.tenantId}/${d.subscriptionId}`;

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
    expect(got.filter((d) => d?.subscriptionId === ('x' as SubscriptionId))).toEqual(first);
  });

  test('keeps the caps on what is in flight, in all, of a tenant and of a subscription', () => {
    const scheduler = createScheduler(
      limits({ maxInFlight: 6, maxInFlightOfTenant: 4, maxInFlightOfSubscription: 3 }),
    );
    for (let i = 0; i < 10; i++) for (const s of ['x', 'y']) scheduler.offer(delivery('a', s));
    for (let i = 0; i < 10; i++) scheduler.offer(delivery('b', 'z'));
    const got = Array.from({ length: 6 }, () => scheduler.next());
    expect(got.map(name).sort()).toEqual(['a/x', 'a/x', 'a/y', 'b/z', 'b/z', 'b/z']);
    expect(scheduler.next()).toBeUndefined();
    expect(scheduler.inFlightCount()).toBe(6);
    scheduler.finished(got[0]!);
    expect(scheduler.next()).toBeDefined();
    expect(scheduler.next()).toBeUndefined();
  });

  test('one subscription at its cap does not stop the tenant’s others', () => {
    const scheduler = createScheduler(limits({ maxInFlightOfSubscription: 1 }));
    for (let i = 0; i < 3; i++) scheduler.offer(delivery('a', 'slow'));
    scheduler.offer(delivery('a', 'fast'));
    expect(take(scheduler, 3)).toEqual(['a/slow', 'a/fast', undefined]);
  });

  test('counts reserved places as taken and gives them back', () => {
    const scheduler = createScheduler(limits({ maxWaitingOfSubscription: 2, maxWaiting: 3 }));
    const a = 'a' as TenantId;
    const x = 'x' as SubscriptionId;
    expect([scheduler.reserve(a, x), scheduler.reserve(a, x), scheduler.reserve(a, x)]).toEqual([
      true,
      true,
      false,
    ]);
    expect(scheduler.room(a, x)).toBe(0);
    expect(scheduler.room(a, 'y' as SubscriptionId)).toBe(1);
    scheduler.unreserve(a, x);
    expect(scheduler.room(a, x)).toBe(1);
    scheduler.unreserve(a, x);
    expect(scheduler.room(a, x)).toBe(2);
  });

  test('has no room while the bodies that wait are too large together', () => {
    const scheduler = createScheduler(limits({ maxWaitingBytes: 100 }));
    scheduler.offer(delivery('a', 'x', 100));
    expect(scheduler.room('b' as TenantId, 'y' as SubscriptionId)).toBe(0);
    scheduler.next();
    expect(scheduler.room('b' as TenantId, 'y' as SubscriptionId)).toBeGreaterThan(0);
  });

  test('drained, it holds nothing that waits and still counts what is in flight', () => {
    const scheduler = createScheduler(limits());
    const all = [delivery('a', 'x'), delivery('a', 'y'), delivery('b', 'x')];
    for (const d of all) scheduler.offer(d);
    const first = scheduler.next()!;
    expect(new Set(scheduler.drain())).toEqual(new Set(all.filter((d) => d !== first)));
    expect([scheduler.waitingCount(), scheduler.inFlightCount(), scheduler.next()]).toEqual([
      0,
      1,
      undefined,
    ]);
    scheduler.finished(first);
    scheduler.offer(all[2]!);
    expect(scheduler.next()).toBe(all[2]);
  });

  test('any order of offers, takes and ends leaves the counts right and loses nothing', () => {
    const scheduler = createScheduler(
      limits({ maxInFlight: 7, maxInFlightOfTenant: 4, maxInFlightOfSubscription: 2 }),
    );
    let seed = 12345;
    const random = (n: number) => {
      seed = (seed * 1103515245 + 12345) % 2147483648;
      return Math.floor((seed / 2147483648) * n);
    };
    const inFlight: ClaimedDelivery[] = [];
    const done = new Set<string>();
    let offered = 0;
    for (let step = 0; step < 20_000 || done.size < offered; step++) {
      const what = random(3);
      if (what === 0 && step < 20_000) {
        scheduler.offer(delivery(`t${random(5)}`, `s${random(4)}`));
        offered++;
      } else if (what === 1) {
        const next = scheduler.next();
        if (next !== undefined) inFlight.push(next);
      } else if (inFlight.length > 0) {
        const [ended] = inFlight.splice(random(inFlight.length), 1);
        scheduler.finished(ended!);
        expect(done.has(ended!.deliveryId)).toBe(false);
        done.add(ended!.deliveryId);
      }
      expect(scheduler.inFlightCount()).toBe(inFlight.length);
      expect(inFlight.length).toBeLessThanOrEqual(7);
    }
    expect([done.size, scheduler.waitingCount(), scheduler.inFlightCount()]).toEqual([offered, 0, 0]);
  });
});
