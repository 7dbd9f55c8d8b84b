import { describe, expect, test } from 'vitest';
import { createDueQueues, type DueQueues } from '../../src/delivery/due-queues.ts';
import { createScheduler, limitsFor, placesFor, type Turn } from '../../src/delivery/scheduler.ts';
import type { ClaimedDelivery } from '../../src/domain/delivery.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import type { QueueKey } from '../../src/storage/claims.ts';

const queueOf = (tenant: string, subscription: string): QueueKey => ({
  tenantId: tenant as TenantId,
  subscriptionId: subscription as SubscriptionId,
});
const nameOf = (queue: QueueKey | undefined) =>
  queue === undefined ? undefined : `${queue.tenantId}/${queue.subscriptionId}`;
/** The queues that are ready, in turn; none is any more. */
function drain(due: DueQueues): (string | undefined)[] {
  const names: (string | undefined)[] = [];
  for (let queue = due.next(); queue !== undefined; queue = due.next()) {
    names.push(nameOf(queue));
    due.delete(queue);
  }
  return names;
}

describe('due queues', () => {
  test('are looked at round over the tenants, and over the queues of each', () => {
    const due = createDueQueues();
    for (const [tenant, subscription] of ['ax', 'ay', 'az', 'bx']) due.add(queueOf(tenant!, subscription!));
    due.add(queueOf('a', 'x'));
    expect(due.readyCount()).toBe(4);
    const names = [1, 2, 3, 4, 5, 6].map(() => nameOf(due.next()));
    expect(names).toEqual(['a/x', 'b/x', 'a/y', 'b/x', 'a/z', 'b/x']);
  });

  test('that rest are not looked at, until they are due anew', () => {
    const due = createDueQueues();
    for (const needs of [undefined, { ofTenant: 10, ofAll: 10 }]) {
      due.add(queueOf('a', 'x'));
      due.rest(queueOf('a', 'x'), needs);
      expect([due.next(), due.readyCount()]).toEqual([undefined, 0]);
      due.add(queueOf('a', 'x'));
      expect([nameOf(due.next()), due.readyCount(), due.shortCount()]).toEqual(['a/x', 1, 0]);
    }
  });

  test('that rest for their own are looked at when one of it leaves, and not for any number of places', () => {
    const due = createDueQueues();
    due.rest(queueOf('a', 'x'), undefined);
    due.freed('a' as TenantId, 'y' as SubscriptionId);
    due.freed('b' as TenantId, 'x' as SubscriptionId);
    due.wake(1_000, () => 1_000);
    expect([due.readyCount(), due.shortCount()]).toEqual([0, 0]);
    due.freed('a' as TenantId, 'x' as SubscriptionId);
    expect(nameOf(due.next())).toBe('a/x');
  });

  test('that wait for places are looked at when their tenant, and all together, have as many as each needs', () => {
    const due = createDueQueues();
    due.rest(queueOf('a', 'small'), { ofTenant: 3, ofAll: 2 });
    due.rest(queueOf('a', 'large'), { ofTenant: 130, ofAll: 64 });
    due.rest(queueOf('a', 'own'), undefined);
    due.rest(queueOf('b', 'large'), { ofTenant: 130, ofAll: 64 });
    const woken = (ofAll: number, ofA: number, ofB: number) => {
      due.wake(ofAll, (tenantId) => (tenantId === 'a' ? ofA : ofB));
      return drain(due);
    };
    expect(woken(100, 2, 129)).toEqual([]);
    expect(woken(1, 3, 0)).toEqual([]);
    expect(woken(2, 3, 0)).toEqual(['a/small']);
    expect(woken(63, 1_000, 1_000)).toEqual([]);
    expect(woken(64, 129, 130)).toEqual(['b/large']);
    expect(woken(64, 130, 0)).toEqual(['a/large']);
    expect(woken(1_000, 1_000, 1_000)).toEqual([]);
  });

  test('of very many tenants that wait for places each is asked for in its turn', () => {
    const due = createDueQueues();
    for (let i = 0; i < 600; i++) due.rest(queueOf(`t${i}`, 'x'), { ofTenant: 5, ofAll: 5 });
    const asked = new Set<string>();
    for (let i = 0; i < 3; i++) due.wake(1_000, (tenantId) => asked.add(tenantId).size * 0);
    expect([asked.size, due.readyCount(), due.shortCount()]).toEqual([600, 0, 600]);
  });

  test('never rest when there is room for them, whatever comes and goes of theirs and of others', () => {
    const due = createDueQueues();
    const scheduler = createScheduler(
      { ...limitsFor(20), maxWaiting: 64 },
      { now: () => 0, weightOf: () => 1, onFreed: due.freed, onDropped: () => {}, onGivenBack: () => {} },
    );
    const LEAST = 4;
    let seed = 4711;
    const random = (n: number) => {
      seed = (seed * 1103515245 + 12345) % 2147483648;
      return Math.floor((seed / 2147483648) * n);
    };
    const event = { payload: Buffer.alloc(1) };
    const queues = [0, 1, 2, 3].flatMap((t) => [0, 1, 2].map((s) => queueOf(`t${t}`, `s${s}`)));
    for (const queue of queues) due.add(queue);
    const inFlight: Turn[] = [];
    let restCount = 0;
    for (let step = 0; step < 10_000; step++) {
      const queue = queues[random(queues.length)]!;
      const what = random(3);
      if (what === 0) {
        const free = scheduler.room(queue.tenantId, queue.subscriptionId, 1);
        const claimed = { ...queue, event, place: undefined } as ClaimedDelivery;
        for (let i = random(9); i > 0 && i <= free; i--) scheduler.offer(claimed);
      } else if (what === 1) {
        const turn = scheduler.next();
        if (turn !== undefined) inFlight.push(turn);
      } else if (inFlight.length > 0) {
        scheduler.finished(inFlight.splice(random(inFlight.length), 1)[0]!);
      }
      due.wake(scheduler.totalRoom(), scheduler.tenantRoom);
      const ready = new Set(drain(due));
      const wrong: unknown[] = [];
      for (const other of queues) {
        const { tenantId, subscriptionId } = other;
        const hasRoom = scheduler.room(tenantId, subscriptionId, 1) >= LEAST;
        const waiting = scheduler.waitingOf(tenantId, subscriptionId);
        const needs = { ofTenant: placesFor(LEAST, waiting), ofAll: LEAST };
        const hasPlaces = scheduler.tenantRoom(tenantId) >= needs.ofTenant && scheduler.totalRoom() >= LEAST;
        if (hasRoom !== hasPlaces || (hasRoom && !ready.has(nameOf(other)))) wrong.push(other, needs);
        if (hasRoom) {
          due.add(other);
        } else {
          due.rest(other, needs);
          restCount++;
        }
      }
      if (wrong.length > 0) expect.fail(`step ${step}: ${JSON.stringify(wrong)}`);
    }
    expect(restCount).toBeGreaterThan(1_000);
  });
});
