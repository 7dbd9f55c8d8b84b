// Which delivery goes next: round robin over tenants, then over each tenant's subscriptions, under caps on what is in
// flight. In memory and pure; every operation is O(1). A tenant or subscription that is at its cap or has nothing
// waiting is in no ring, so it costs nothing.
import type { ClaimedDelivery } from '../domain/delivery.ts';
import type { SubscriptionId, TenantId } from '../domain/ids.ts';

/** Bounds of a scheduler. */
export type SchedulerLimits = {
  /** In flight in all. */
  readonly maxInFlight: number;
  /** In flight of one tenant: less than all, so that one whose endpoints hang cannot hold everything. */
  readonly maxInFlightOfTenant: number;
  readonly maxInFlightOfSubscription: number;
  /** Waiting (and reserved) in all. */
  readonly maxWaiting: number;
  /** Waiting of one tenant: less than all, so that others always have room. */
  readonly maxWaitingOfTenant: number;
  readonly maxWaitingOfSubscription: number;
  /** Bytes of bodies waiting. */
  readonly maxWaitingBytes: number;
};

/** The caps that follow from how much may be in flight. */
export function limitsFor(maxInFlight: number): SchedulerLimits {
  return {
    maxInFlight,
    maxInFlightOfTenant: Math.max(1, Math.ceil(maxInFlight / 2)),
    maxInFlightOfSubscription: Math.max(1, Math.ceil(maxInFlight / 4)),
    maxWaiting: maxInFlight * 16,
    maxWaitingOfTenant: maxInFlight * 8,
    maxWaitingOfSubscription: maxInFlight * 4,
    maxWaitingBytes: 128 * 1024 * 1024,
  };
}

/**
 * Whether the first of a queue may go: `go`; `hold` it for a time, or its whole tenant; `full`, until one of the queue's
 * (or tenant's) in flight has ended; `drop` what waits: its leases run out by themselves.
 */
export type Admission =
  | 'go'
  | 'full'
  | 'tenant-full'
  | 'drop'
  | { readonly hold: 'queue' | 'tenant'; readonly ms: number };

/** Asked right before a delivery goes. `depth`: how many wait in its queue. */
export type Admit = (
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  inFlight: { readonly tenant: number; readonly queue: number },
  depth: number,
) => Admission;

const ALWAYS: Admit = () => 'go';

type Queue = {
  readonly tenant: TenantQueues;
  readonly subscriptionId: SubscriptionId;
  waiting: ClaimedDelivery[];
  head: number;
  reserved: number;
  inFlight: number;
  isInRing: boolean;
  isHeld: boolean;
};

type TenantQueues = {
  readonly tenantId: TenantId;
  readonly queues: Map<SubscriptionId, Queue>;
  readonly ring: Ring<Queue>;
  inFlight: number;
  /** Waiting and reserved. */
  held: number;
  isInRing: boolean;
  isHeld: boolean;
};

export type Scheduler = ReturnType<typeof createScheduler>;

export function createScheduler(limits: SchedulerLimits) {
  const tenants = new Map<TenantId, TenantQueues>();
  const ring = new Ring<TenantQueues>();
  let waitingCount = 0;
  let waitingBytes = 0;
  let reservedCount = 0;
  let inFlightCount = 0;

  function queueOf(tenantId: TenantId, subscriptionId: SubscriptionId): Queue {
    let tenant = tenants.get(tenantId);
    if (tenant === undefined) {
      tenant = {
        tenantId,
        queues: new Map(),
        ring: new Ring(),
        inFlight: 0,
        held: 0,
        isInRing: false,
        isHeld: false,
      };
      tenants.set(tenantId, tenant);
    }
    let queue = tenant.queues.get(subscriptionId);
    if (queue === undefined) {
      queue = {
        tenant,
        subscriptionId,
        waiting: [],
        head: 0,
        reserved: 0,
        inFlight: 0,
        isInRing: false,
        isHeld: false,
      };
      tenant.queues.set(subscriptionId, queue);
    }
    return queue;
  }

  const depth = (queue: Queue) => queue.waiting.length - queue.head;

  function enterRings(queue: Queue): void {
    const { tenant } = queue;
    const mayGo = !queue.isHeld && queue.inFlight < limits.maxInFlightOfSubscription;
    if (!queue.isInRing && mayGo && depth(queue) > 0) {
      queue.isInRing = true;
      tenant.ring.push(queue);
    }
    enterRing(tenant);
  }

  function enterRing(tenant: TenantQueues): void {
    const mayGo = !tenant.isHeld && tenant.inFlight < limits.maxInFlightOfTenant;
    if (tenant.isInRing || !mayGo || tenant.ring.size === 0) return;
    tenant.isInRing = true;
    ring.push(tenant);
  }

  /** Puts a queue that was not let go where `admission` says. */
  function putBack(queue: Queue, admission: Exclude<Admission, 'go'>): void {
    const { tenant } = queue;
    if (admission === 'drop') {
      while (depth(queue) > 0) take(queue);
      forgetIfEmpty(queue);
    } else if (
      admission === 'tenant-full' ||
      (typeof admission === 'object' && admission.hold === 'tenant')
    ) {
      queue.isInRing = true;
      tenant.ring.push(queue);
      if (admission === 'tenant-full') return; // until one of the tenant's ends
      tenant.isHeld = true;
    } else if (admission !== 'full') {
      queue.isHeld = true;
    }
    enterRing(tenant);
  }

  function forgetIfEmpty(queue: Queue): void {
    if (depth(queue) > 0 || queue.inFlight > 0 || queue.reserved > 0 || queue.isHeld) return;
    const { tenant } = queue;
    tenant.queues.delete(queue.subscriptionId);
    if (tenant.queues.size === 0 && !tenant.isHeld) tenants.delete(tenant.tenantId);
  }

  function take(queue: Queue): ClaimedDelivery {
    const delivery = queue.waiting[queue.head]!;
    queue.head++;
    if (queue.head === queue.waiting.length || queue.head >= 1024) {
      queue.waiting = queue.waiting.slice(queue.head);
      queue.head = 0;
    }
    waitingCount--;
    queue.tenant.held--;
    waitingBytes -= delivery.event.payload.length;
    return delivery;
  }

  /** Places in all; none while the bodies that wait are too large, and fewer where bodies are large on average. */
  function totalRoom(): number {
    const bytesLeft = limits.maxWaitingBytes - waitingBytes;
    if (bytesLeft <= 0) return 0;
    const average = Math.max(1, waitingCount === 0 ? 1 : waitingBytes / waitingCount);
    return Math.max(
      0,
      Math.min(limits.maxWaiting - waitingCount - reservedCount, Math.ceil(bytesLeft / average)),
    );
  }

  function roomOf(tenant: TenantQueues | undefined, queue: Queue | undefined): number {
    const used = queue === undefined ? 0 : depth(queue) + queue.reserved;
    const room = Math.min(
      totalRoom(),
      limits.maxWaitingOfTenant - (tenant?.held ?? 0),
      limits.maxWaitingOfSubscription - used,
    );
    return Math.max(0, room);
  }

  return {
    /** How many more deliveries of this subscription there is room for. */
    room(tenantId: TenantId, subscriptionId: SubscriptionId): number {
      const tenant = tenants.get(tenantId);
      return roomOf(tenant, tenant?.queues.get(subscriptionId));
    },

    /** Deliveries of this subscription that wait here, places held included. */
    waitingOf(tenantId: TenantId, subscriptionId: SubscriptionId): number {
      const queue = tenants.get(tenantId)?.queues.get(subscriptionId);
      return queue === undefined ? 0 : depth(queue) + queue.reserved;
    },

    /** How many more there is room for in all. */
    totalRoom,

    /** Holds a place for one delivery, if there is room. */
    reserve(tenantId: TenantId, subscriptionId: SubscriptionId): boolean {
      const queue = queueOf(tenantId, subscriptionId);
      // Only half of the room is for what was just published: what waits in the database has its turn too.
      if (roomOf(queue.tenant, queue) === 0 || waitingCount + reservedCount >= limits.maxWaiting / 2) {
        forgetIfEmpty(queue);
        return false;
      }
      queue.reserved++;
      queue.tenant.held++;
      reservedCount++;
      return true;
    },

    unreserve(tenantId: TenantId, subscriptionId: SubscriptionId): void {
      const queue = queueOf(tenantId, subscriptionId);
      queue.reserved--;
      queue.tenant.held--;
      reservedCount--;
      forgetIfEmpty(queue);
    },

    /** Puts a delivery behind the others of its subscription. */
    offer(delivery: ClaimedDelivery): void {
      const queue = queueOf(delivery.tenantId, delivery.subscriptionId);
      queue.waiting.push(delivery);
      queue.tenant.held++;
      waitingCount++;
      waitingBytes += delivery.event.payload.length;
      enterRings(queue);
    },

    /**
     * The next delivery, which is in flight from now until finished() is called for it; undefined: none may go. Who
     * holds a queue or tenant calls release() when its time is over.
     */
    next(admit: Admit = ALWAYS): ClaimedDelivery | undefined {
      if (inFlightCount >= limits.maxInFlight) return undefined;
      for (let tenant = ring.shift(); tenant !== undefined; tenant = ring.shift()) {
        tenant.isInRing = false;
        const queue = tenant.ring.shift()!;
        queue.isInRing = false;
        const inFlight = { tenant: tenant.inFlight, queue: queue.inFlight };
        const admission = admit(tenant.tenantId, queue.subscriptionId, inFlight, depth(queue));
        if (admission !== 'go') {
          putBack(queue, admission);
          continue;
        }
        const delivery = take(queue);
        inFlightCount++;
        tenant.inFlight++;
        queue.inFlight++;
        enterRings(queue);
        return delivery;
      }
      return undefined;
    },

    /** Ends the hold of a queue, or of a whole tenant. */
    release(tenantId: TenantId, subscriptionId: SubscriptionId | undefined): void {
      const tenant = tenants.get(tenantId);
      if (tenant === undefined) return;
      if (subscriptionId === undefined) {
        tenant.isHeld = false;
        enterRing(tenant);
        if (tenant.queues.size === 0) tenants.delete(tenantId);
        return;
      }
      const queue = tenant.queues.get(subscriptionId);
      if (queue === undefined) return;
      queue.isHeld = false;
      enterRings(queue);
      forgetIfEmpty(queue);
    },

    /** Ends what next() began. */
    finished(delivery: ClaimedDelivery): void {
      const queue = queueOf(delivery.tenantId, delivery.subscriptionId);
      inFlightCount--;
      queue.tenant.inFlight--;
      queue.inFlight--;
      enterRings(queue);
      forgetIfEmpty(queue);
    },

    /** Takes out everything that waits. */
    drain(): ClaimedDelivery[] {
      const all: ClaimedDelivery[] = [];
      for (const tenant of tenants.values()) {
        for (const queue of tenant.queues.values()) {
          while (depth(queue) > 0) all.push(take(queue));
          queue.isInRing = false;
        }
        tenant.ring.clear();
        tenant.isInRing = false;
      }
      ring.clear();
      return all;
    },

    waitingCount: () => waitingCount,
    inFlightCount: () => inFlightCount,
  };
}

/** A first-in, first-out list with O(1) ends. */
class Ring<T> {
  #items: T[] = [];
  #head = 0;

  get size(): number {
    return this.#items.length - this.#head;
  }

  push(item: T): void {
    this.#items.push(item);
  }

  shift(): T | undefined {
    if (this.size === 0) return undefined;
    const item = this.#items[this.#head]!;
    this.#head++;
    if (this.#head >= 1024 || this.#head === this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }

  clear(): void {
    this.#items = [];
    this.#head = 0;
  }
}
