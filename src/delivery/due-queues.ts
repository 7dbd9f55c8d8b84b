// Queues that hold something due. They are looked at in turn: round over the tenants, and over the queues of each. One that
// there was no room for rests: it is not looked at again before there may be room. A queue that was at its own bound waits for
// a delivery of its own to leave, one that its tenant’s share or all places were too few for waits for those as well (ADR 0039).
//
// States of a queue: ready → (resting →) ready … → deleted.
import type { SubscriptionId, TenantId } from '../domain/ids.ts';
import type { QueueKey } from '../storage/claims.ts';

/** What a queue waits for: so many places that its tenant may still take, and so many in all. */
export type Needs = { readonly ofTenant: number; readonly ofAll: number };

/** Without needs: for its own. */
type Resting = { readonly queue: QueueKey; readonly needs: Needs | undefined };

/** Tenants that are looked at in one go for whether there are places for their resting queues. */
const MAX_TENANTS = 256;

export type DueQueues = ReturnType<typeof createDueQueues>;

export function createDueQueues() {
  const ready = new Map<TenantId, Map<SubscriptionId, QueueKey>>();
  const resting = new Map<TenantId, Map<SubscriptionId, Resting>>();
  /** Tenants with resting queues that wait for places: fewer than this are of no use to any of them. */
  const short = new Map<TenantId, number>();
  let readyCount = 0;

  function add({ tenantId, subscriptionId }: QueueKey): void {
    wakeUp(tenantId, subscriptionId);
    let queues = ready.get(tenantId);
    if (queues === undefined) {
      queues = new Map();
      ready.set(tenantId, queues);
    }
    if (queues.has(subscriptionId)) return;
    queues.set(subscriptionId, { tenantId, subscriptionId });
    readyCount++;
  }

  function deleteReady({ tenantId, subscriptionId }: QueueKey): void {
    const queues = ready.get(tenantId);
    if (queues?.delete(subscriptionId) !== true) return;
    readyCount--;
    if (queues.size === 0) ready.delete(tenantId);
  }

  /** Whether it rested. */
  function wakeUp(tenantId: TenantId, subscriptionId: SubscriptionId): boolean {
    const queues = resting.get(tenantId);
    if (queues?.delete(subscriptionId) !== true) return false;
    if (queues.size === 0) {
      resting.delete(tenantId);
      short.delete(tenantId);
    }
    return true;
  }

  return {
    /** Queues to look at. */
    readyCount: () => readyCount,

    /** Tenants with queues that wait for places. */
    shortCount: () => short.size,

    /** Something is due in it: it is to be looked at, also if it rests. */
    add,

    delete(queue: QueueKey): void {
      wakeUp(queue.tenantId, queue.subscriptionId);
      deleteReady(queue);
    },

    next(): QueueKey | undefined {
      for (const [tenantId, queues] of ready) {
        for (const [subscriptionId, queue] of queues) {
          // The first become the last.
          queues.delete(subscriptionId);
          queues.set(subscriptionId, queue);
          ready.delete(tenantId);
          ready.set(tenantId, queues);
          return queue;
        }
      }
      return undefined;
    },

    /** There was no room for it; without `needs`: until one of its own leaves. */
    rest(queue: QueueKey, needs: Needs | undefined): void {
      const { tenantId, subscriptionId } = queue;
      deleteReady(queue);
      let queues = resting.get(tenantId);
      if (queues === undefined) {
        queues = new Map();
        resting.set(tenantId, queues);
      }
      queues.set(subscriptionId, { queue, needs });
      if (needs !== undefined)
        short.set(tenantId, Math.min(short.get(tenantId) ?? needs.ofTenant, needs.ofTenant));
    },

    /** A delivery of this queue has left: there may be room for another. */
    freed(tenantId: TenantId, subscriptionId: SubscriptionId): void {
      if (wakeUp(tenantId, subscriptionId)) add({ tenantId, subscriptionId });
    },

    /** Makes those ready that there are places for by now: of all, and of each tenant. */
    wake(ofAll: number, ofTenant: (tenantId: TenantId) => number): void {
      let looks = Math.min(MAX_TENANTS, short.size);
      for (const [tenantId, least] of short) {
        if (looks-- === 0) break;
        short.delete(tenantId);
        const places = ofTenant(tenantId);
        let left = least;
        if (places >= least) {
          left = Number.POSITIVE_INFINITY;
          for (const { queue, needs } of resting.get(tenantId)?.values() ?? []) {
            if (needs === undefined) continue;
            if (needs.ofTenant <= places && needs.ofAll <= ofAll) add(queue);
            else left = Math.min(left, needs.ofTenant);
          }
        }
        if (left !== Number.POSITIVE_INFINITY) short.set(tenantId, left); // the first become the last
      }
    },
  };
}
