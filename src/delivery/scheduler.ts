// Which delivery goes next: deficit round robin over tenants by their weights, then round robin over each tenant's
// subscriptions, under caps on what is in flight. In memory, without a clock of its own; every operation is O(1). A tenant
// or subscription that is at its cap or has nothing waiting is in no ring, so it costs nothing.
//
// Shares. What is limited in all (requests in flight, places in memory) is not cut into fixed parts: a tenant may have
// as much as half of what the others leave. One that takes all it can gets a half, two a third each, n get n ÷ (n + 1)
// together, and something is always left for those that come with little. The same rule again holds within a tenant,
// over its subscriptions. So endpoints that hang hold their share of the pool, however many they are, and no more.
import type { ClaimedDelivery, Place } from '../domain/delivery.ts';
import type { SubscriptionId, TenantId } from '../domain/ids.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { Target } from '../storage/targets.ts';
import { Fifo } from './fifo.ts';

/** Bounds of a scheduler. */
export type SchedulerLimits = {
  /** In flight in all. */
  readonly maxInFlight: number;
  /** Waiting (and reserved) in all. */
  readonly maxWaiting: number;
  /**
   * Requests of one queue that wait and were claimed, not handed over: they cover the way to the database and back, and
   * more would only lie in memory and be copied by the collector.
   */
  readonly maxClaimed: number;
  /** Bytes of bodies waiting. */
  readonly maxWaitingBytes: number;
};

const MIN_CLAIMED = 256;

/** Room for fewer than this is not worth a claim. A queue that holds nothing has more, unless others have nearly all places. */
export const worthwhileOf = (maxInFlight: number): number => Math.min(64, maxInFlight);

/** The bounds that follow from how much may be in flight. */
export function limitsFor(maxInFlight: number): SchedulerLimits {
  return {
    maxInFlight,
    maxWaiting: maxInFlight * 16,
    maxClaimed: Math.max(MIN_CLAIMED, Math.ceil(maxInFlight / 2)),
    maxWaitingBytes: 128 * 1024 * 1024,
  };
}

/** What one may have of `max`, of which others have `others`: half of what is left, at least one. */
export const shareOf = (max: number, others: number): number => Math.max(1, Math.ceil((max - others) / 2));

/** Places that a tenant must have left of its share for a queue of it that has `waiting` here to have `count` more. */
export const placesFor = (count: number, waiting: number): number => 2 * count + waiting - 1;

/** A turn of a tenant of weight 1 is worth this: a delivery costs 1, and 1 more for each 16 KiB of its body. */
const QUANTUM = 1;
const COST_BYTES = 16 * 1024;
/** Tenants that are remembered while nothing of them is here. */
const KEPT_TENANTS = 256;
/** A tenant with no more than this here is quiet, if nothing of it is in flight and it owes nothing for large ones. */
const LITTLE = 4;
/** Tenants that are looked at for a quiet one. */
const MAX_LOOKS = 8;

/**
 * Whether the first of a queue may go: `go`; `hold` it for a time, or its whole tenant; `full`, until one of the queue's
 * (or tenant's) in flight has ended; `give-back` what waits, for others; `drop` it, which nobody may send: its leases run out
 * by themselves.
 */
export type Admission =
  | 'go'
  | 'full'
  | 'tenant-full'
  | 'give-back'
  | 'drop'
  | { readonly hold: 'queue' | 'tenant'; readonly ms: number };

/** A queue as those see it who decide whether its first may go. */
export type QueueView = {
  readonly tenant: { readonly tenantId: TenantId; readonly inFlight: number };
  readonly subscriptionId: SubscriptionId;
  /** What may go next, and what is behind the heads of lines. */
  readonly waiting: { readonly size: number };
  readonly behind: number;
  /** Of the bodies of both. */
  readonly bytes: number;
  /** When the first of it came, on the clock of `now`. */
  readonly sinceMs: number;
  readonly inFlight: number;
  /**
   * What it was found to be the last time, and in which configuration (its serial, 0 for none: a queue must not keep all of an
   * old one): see targetOf().
   */
  configSerial: number;
  target: Target | undefined;
};

/** A queue's target in a configuration of its tenant: looked up once, however many of its deliveries go. */
export function targetOf(queue: QueueView, config: TenantConfig): Target | undefined {
  if (queue.configSerial !== config.serial) {
    queue.configSerial = config.serial;
    queue.target = config.targets.get(queue.subscriptionId);
  }
  return queue.target;
}

/** Asked right before a delivery goes. */
export type Admit = (queue: QueueView) => Admission;

/** A delivery that goes: in flight until finished() is called for it. */
export type Turn = { readonly delivery: ClaimedDelivery; readonly queue: Queue };

const ALWAYS: Admit = () => 'go';

type Queue = {
  readonly tenant: TenantQueues;
  readonly subscriptionId: SubscriptionId;
  readonly waiting: Fifo<ClaimedDelivery>;
  /** Of those waiting, what claims brought. */
  claimed: number;
  reserved: number;
  /** Behind the heads of lines: places that are taken by what cannot go yet. */
  behind: number;
  bytes: number;
  sinceMs: number;
  inFlight: number;
  isInRing: boolean;
  isHeld: boolean;
  configSerial: number;
  target: Target | undefined;
};

type TenantQueues = {
  readonly tenantId: TenantId;
  readonly queues: Map<SubscriptionId, Queue>;
  readonly ring: Fifo<Queue>;
  /** At its share of the tenant's: until one of the tenant's ends. */
  readonly parked: Set<Queue>;
  inFlight: number;
  /** Waiting, reserved and behind. */
  held: number;
  /** What is left of its turn. */
  deficit: number;
  isInRing: boolean;
  isHeld: boolean;
};

export type Scheduler = ReturnType<typeof createScheduler>;

export type SchedulerDeps = {
  /** Monotonic, in ms. */
  readonly now: () => number;
  /** A tenant's part beside the others: 1 or more. */
  readonly weightOf: (tenantId: TenantId) => number;
  /** A delivery of a queue waits here no more, or a place that was held for one is given back. */
  readonly onFreed: (tenantId: TenantId, subscriptionId: SubscriptionId) => void;
  /** A delivery waits here no more, and nobody gives it back: its lease runs out. */
  readonly onDropped: (delivery: ClaimedDelivery) => void;
  /** A delivery waits here no more, and is to be given back. */
  readonly onGivenBack: (delivery: ClaimedDelivery) => void;
};

export function createScheduler(limits: SchedulerLimits, deps: SchedulerDeps) {
  const tenants = new Map<TenantId, TenantQueues>();
  const ring = new Fifo<TenantQueues>();
  /** At their share of all: until one of anybody's ends. */
  const parked = new Set<TenantQueues>();
  let waitingCount = 0;
  let waitingBytes = 0;
  let placeCount = 0; // reserved and behind
  let inFlightCount = 0;

  function queueOf(tenantId: TenantId, subscriptionId: SubscriptionId): Queue {
    let tenant = tenants.get(tenantId);
    if (tenant === undefined) {
      tenant = {
        tenantId,
        queues: new Map(),
        ring: new Fifo(),
        parked: new Set(),
        inFlight: 0,
        held: 0,
        deficit: 0,
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
        waiting: new Fifo(),
        claimed: 0,
        reserved: 0,
        behind: 0,
        bytes: 0,
        sinceMs: 0,
        inFlight: 0,
        isInRing: false,
        isHeld: false,
        configSerial: 0,
        target: undefined,
      };
      tenant.queues.set(subscriptionId, queue);
    }
    return queue;
  }

  const tenantShare = (tenant: TenantQueues) => shareOf(limits.maxInFlight, inFlightCount - tenant.inFlight);
  const queueShare = (queue: Queue) =>
    shareOf(tenantShare(queue.tenant), queue.tenant.inFlight - queue.inFlight);

  function enterRings(queue: Queue): void {
    const { tenant } = queue;
    if (!queue.isInRing && !queue.isHeld && queue.waiting.size > 0) {
      if (queue.inFlight < queueShare(queue)) {
        queue.isInRing = true;
        tenant.ring.push(queue);
        tenant.parked.delete(queue);
      } else {
        tenant.parked.add(queue);
      }
    }
    enterRing(tenant);
  }

  function enterRing(tenant: TenantQueues): void {
    if (tenant.isInRing || tenant.isHeld || tenant.ring.size === 0) return;
    if (tenant.inFlight >= tenantShare(tenant)) {
      parked.add(tenant);
      return;
    }
    parked.delete(tenant);
    tenant.isInRing = true;
    ring.push(tenant);
  }

  /** One that waited for its share looks again: shares grow when something ends. */
  function unpark(tenant: TenantQueues): void {
    for (const queue of tenant.parked) {
      tenant.parked.delete(queue);
      if (queue.waiting.size === 0) continue;
      enterRings(queue);
      break;
    }
    for (const other of parked) {
      parked.delete(other);
      if (other.ring.size === 0) continue;
      enterRing(other);
      break;
    }
  }

  /** Puts a queue that was not let go where `admission` says. */
  function putBack(queue: Queue, admission: Exclude<Admission, 'go'>): void {
    const { tenant } = queue;
    if (admission === 'drop' || admission === 'give-back') {
      const end = admission === 'drop' ? deps.onDropped : deps.onGivenBack;
      while (queue.waiting.size > 0) end(take(queue));
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

  /** A queue that is made anew lies in memory that is at hand, one of ten thousand that are kept does not. */
  function forgetIfEmpty(queue: Queue): void {
    const isBusy = queue.inFlight > 0 || queue.reserved > 0 || queue.behind > 0;
    if (queue.waiting.size > 0 || isBusy || queue.isHeld) return;
    const { tenant } = queue;
    tenant.queues.delete(queue.subscriptionId);
    tenant.parked.delete(queue);
    if (tenant.queues.size === 0 && !tenant.isHeld && tenants.size > KEPT_TENANTS) forget(tenant);
  }

  function forget(tenant: TenantQueues): void {
    tenants.delete(tenant.tenantId);
    parked.delete(tenant);
  }

  function take(queue: Queue): ClaimedDelivery {
    const delivery = queue.waiting.shift()!;
    waitingCount--;
    queue.tenant.held--;
    if (delivery.place === undefined) queue.claimed--;
    addBytes(queue, -delivery.event.payload.length);
    deps.onFreed(queue.tenant.tenantId, queue.subscriptionId);
    return delivery;
  }

  function addBytes(queue: Queue, bytes: number): void {
    queue.bytes += bytes;
    waitingBytes += bytes;
  }

  /** Takes or gives back places of a queue that nothing waits in. */
  function addPlaces(queue: Queue, count: number): void {
    queue.tenant.held += count;
    placeCount += count;
  }

  /** Places in all; none while the bodies that wait are too large, and fewer where bodies are large on average. */
  function totalRoom(): number {
    const bytesLeft = limits.maxWaitingBytes - waitingBytes;
    if (bytesLeft <= 0) return 0;
    const average = Math.max(1, waitingCount === 0 ? 1 : waitingBytes / waitingCount);
    return Math.max(
      0,
      Math.min(limits.maxWaiting - waitingCount - placeCount, Math.ceil(bytesLeft / average)),
    );
  }

  /** Places of a tenant that has `held`. */
  const tenantShareOfRoom = (held: number) => shareOf(limits.maxWaiting, waitingCount + placeCount - held);

  function roomOf(tenant: TenantQueues | undefined, queue: Queue | undefined): number {
    const used = queue === undefined ? 0 : queue.waiting.size + queue.reserved + queue.behind;
    const held = tenant?.held ?? 0;
    const ofTenant = tenantShareOfRoom(held);
    const ofQueue = shareOf(ofTenant, held - used);
    return Math.max(0, Math.min(totalRoom(), ofTenant - held, ofQueue - used));
  }

  const takeFirst = () => ring.shift();

  /** Takes the first quiet tenant out of the ring, if it is among the next few; the others stay where they are. */
  function takeQuiet(): TenantQueues | undefined {
    const looked: TenantQueues[] = [];
    let quiet: TenantQueues | undefined;
    while (quiet === undefined && ring.size > 0 && looked.length < MAX_LOOKS) {
      const tenant = ring.shift()!;
      if (isQuiet(tenant)) quiet = tenant;
      else looked.push(tenant);
    }
    for (const tenant of looked.reverse()) ring.unshift(tenant);
    return quiet;
  }

  /** Ends a tenant's turn, or lets it go on: its deficit is what it may still send before the others' turn. */
  function charge(tenant: TenantQueues, delivery: ClaimedDelivery): void {
    tenant.deficit -= 1 + Math.floor(delivery.event.payload.length / COST_BYTES);
    const mayGoOn = tenant.deficit >= 1 && tenant.ring.size > 0 && !tenant.isHeld;
    if (mayGoOn && !tenant.isInRing && tenant.inFlight < tenantShare(tenant)) {
      tenant.isInRing = true;
      ring.unshift(tenant);
    }
    if (tenant.ring.size === 0) tenant.deficit = Math.min(0, tenant.deficit); // turns are not saved up
  }

  return {
    /** How many more deliveries of this subscription may be claimed, if a request takes `perRequest` of them. */
    room(tenantId: TenantId, subscriptionId: SubscriptionId, perRequest: number): number {
      const tenant = tenants.get(tenantId);
      const queue = tenant?.queues.get(subscriptionId);
      const free = limits.maxClaimed * perRequest - (queue?.claimed ?? 0);
      return Math.max(0, Math.min(free, roomOf(tenant, queue)));
    },

    /** Deliveries of this subscription that are here and not under way, places held included. */
    waitingOf(tenantId: TenantId, subscriptionId: SubscriptionId): number {
      const queue = tenants.get(tenantId)?.queues.get(subscriptionId);
      return queue === undefined ? 0 : queue.waiting.size + queue.reserved + queue.behind;
    },

    /** Bytes of bodies of this subscription that wait here. */
    bytesOf: (tenantId: TenantId, subscriptionId: SubscriptionId): number =>
      tenants.get(tenantId)?.queues.get(subscriptionId)?.bytes ?? 0,

    /** How many more there is room for in all. */
    totalRoom,

    /** How many more a tenant may have of its share of all places. */
    tenantRoom(tenantId: TenantId): number {
      const held = tenants.get(tenantId)?.held ?? 0;
      return tenantShareOfRoom(held) - held;
    },

    /** Holds a place for one delivery, if there is room: until it is offered there, or the place is given back. */
    reserve(tenantId: TenantId, subscriptionId: SubscriptionId): Queue | undefined {
      const queue = queueOf(tenantId, subscriptionId);
      // Only half of the room is for what was just published: what waits in the database has its turn too.
      if (roomOf(queue.tenant, queue) === 0 || waitingCount + placeCount >= limits.maxWaiting / 2) {
        forgetIfEmpty(queue);
        return undefined;
      }
      queue.reserved++;
      addPlaces(queue, 1);
      return queue;
    },

    unreserve(place: Place): void {
      const queue = place as Queue;
      queue.reserved--;
      addPlaces(queue, -1);
      deps.onFreed(queue.tenant.tenantId, queue.subscriptionId);
      forgetIfEmpty(queue);
    },

    /** Holds a place for a delivery behind the head of its line: offer() it when its turn comes. */
    holdBehind(delivery: ClaimedDelivery): void {
      const queue = queueOf(delivery.tenantId, delivery.subscriptionId);
      queue.behind++;
      addPlaces(queue, 1);
      addBytes(queue, delivery.event.payload.length);
    },

    /** Gives the place of a delivery behind the head of its line back: it is offered, taken along or released now. */
    leaveBehind(delivery: ClaimedDelivery): void {
      const queue = queueOf(delivery.tenantId, delivery.subscriptionId);
      queue.behind--;
      addPlaces(queue, -1);
      addBytes(queue, -delivery.event.payload.length);
      deps.onFreed(delivery.tenantId, delivery.subscriptionId);
      forgetIfEmpty(queue);
    },

    /** Puts a delivery behind the others of its subscription; one that is handed over in the place that reserve() held for it. */
    offer(delivery: ClaimedDelivery): void {
      const held = delivery.place as Queue | undefined;
      const queue = held ?? queueOf(delivery.tenantId, delivery.subscriptionId);
      if (held === undefined) {
        queue.claimed++;
      } else {
        queue.reserved--;
        addPlaces(queue, -1);
      }
      if (queue.waiting.size === 0) queue.sinceMs = deps.now();
      queue.waiting.push(delivery);
      queue.tenant.held++;
      waitingCount++;
      addBytes(queue, delivery.event.payload.length);
      enterRings(queue);
    },

    /**
     * The next delivery; undefined: none may go. With `onlyQuiet`, of a tenant that has little here and nothing in flight, if one is
     * among the next few. Who holds a queue or tenant calls release() when its time is over.
     */
    next(admit: Admit = ALWAYS, onlyQuiet = false): Turn | undefined {
      if (inFlightCount >= limits.maxInFlight) return undefined;
      const takeTenant = onlyQuiet ? takeQuiet : takeFirst;
      for (let tenant = takeTenant(); tenant !== undefined; tenant = takeTenant()) {
        tenant.isInRing = false;
        if (tenant.inFlight >= tenantShare(tenant)) {
          parked.add(tenant);
          continue;
        }
        if (tenant.deficit < 1) tenant.deficit += QUANTUM * deps.weightOf(tenant.tenantId);
        if (tenant.deficit < 1 && ring.size > 0) {
          tenant.isInRing = true; // it has sent large ones: the others' turn
          ring.push(tenant);
          continue;
        }
        const queue = tenant.ring.shift()!;
        queue.isInRing = false;
        if (queue.waiting.size === 0) {
          enterRing(tenant); // all of it was taken along
          continue;
        }
        if (queue.inFlight >= queueShare(queue)) {
          tenant.parked.add(queue);
          enterRing(tenant);
          continue;
        }
        const admission = admit(queue);
        if (admission !== 'go') {
          putBack(queue, admission);
          continue;
        }
        const delivery = take(queue);
        inFlightCount++;
        tenant.inFlight++;
        queue.inFlight++;
        if (queue.waiting.size > 0) {
          queue.sinceMs = deps.now();
          if (queue.inFlight < queueShare(queue)) {
            queue.isInRing = true;
            tenant.ring.push(queue);
          } else {
            tenant.parked.add(queue);
          }
        }
        charge(tenant, delivery);
        enterRing(tenant);
        return { delivery, queue };
      }
      return undefined;
    },

    /** The first delivery that waits in a queue, to go in a request that is under way already; undefined: there is none. */
    takeAlong(
      tenantId: TenantId,
      subscriptionId: SubscriptionId,
      fits: (delivery: ClaimedDelivery) => boolean,
    ): ClaimedDelivery | undefined {
      const queue = tenants.get(tenantId)?.queues.get(subscriptionId);
      const first = queue?.waiting.first();
      if (queue === undefined || first === undefined || !fits(first)) return undefined;
      return take(queue);
    },

    /** Ends the hold of a queue, or of a whole tenant. */
    release(tenantId: TenantId, subscriptionId: SubscriptionId | undefined): void {
      const tenant = tenants.get(tenantId);
      if (tenant === undefined) return;
      if (subscriptionId === undefined) {
        tenant.isHeld = false;
        enterRing(tenant);
        if (tenant.queues.size === 0 && tenants.size > KEPT_TENANTS) forget(tenant);
        return;
      }
      const queue = tenant.queues.get(subscriptionId);
      if (queue === undefined) return;
      queue.isHeld = false;
      enterRings(queue);
      forgetIfEmpty(queue);
    },

    /** Ends what next() began. */
    finished({ queue }: Turn): void {
      const { tenant } = queue;
      inFlightCount--;
      tenant.inFlight--;
      queue.inFlight--;
      if (tenant.inFlight === 0 && tenant.held === 0) tenant.deficit = 0;
      enterRings(queue);
      unpark(tenant);
      forgetIfEmpty(queue);
    },

    /** Takes out everything that waits; what is behind the heads of lines belongs to whoever held its place. */
    drain(): ClaimedDelivery[] {
      const all: ClaimedDelivery[] = [];
      for (const tenant of tenants.values()) {
        for (const queue of tenant.queues.values()) {
          while (queue.waiting.size > 0) all.push(take(queue));
          queue.isInRing = false;
        }
        tenant.ring.clear();
        tenant.parked.clear();
        tenant.isInRing = false;
      }
      ring.clear();
      parked.clear();
      return all;
    },

    waitingCount: () => waitingCount,
    inFlightCount: () => inFlightCount,
    tenantCount: () => tenants.size,
  };
}

const isQuiet = ({ inFlight, held, deficit }: TenantQueues) =>
  inFlight === 0 && held <= LITTLE && deficit >= 0;
