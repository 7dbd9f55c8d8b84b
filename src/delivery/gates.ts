// Gates: whether a delivery may go now, by its subscription's breaker, rate and cap and its tenant's rate and cap.
// What may not waits: in memory while its turn is near, in the database otherwise, uncharged either way (promise P8).
import { type BucketSpec, pace } from '../domain/bucket.ts';
import type { DeliveryId, SubscriptionId, TenantId } from '../domain/ids.ts';
import type { Breakers } from '../limits/breakers.ts';
import { createPacer, type Pacer } from '../limits/pacer.ts';
import type { LimitStore } from '../limits/store.ts';
import type { Standing } from '../storage/instances.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { Target } from '../storage/targets.ts';
import { type Admission, type QueueView, targetOf } from './scheduler.ts';

export type GatesDeps = {
  readonly store: Pick<LimitStore, 'take'>;
  readonly breakers: Breakers;
  /** This worker among the workers; caps are divided by it. */
  readonly standing: () => Standing;
  /** Whether rates are shared: if not, a worker that others may not know of yet has no part of them. */
  readonly isShared: () => boolean;
  readonly peek: (tenantId: TenantId) => TenantConfig | undefined;
  readonly get: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  /** Monotonic, in ms. */
  readonly now: () => number;
  /** A hold is over. */
  readonly onRelease: (tenantId: TenantId, subscriptionId: SubscriptionId | undefined) => void;
  readonly onError: (error: unknown) => void;
};

/** What a limited queue may hold in memory: what it sends in this time. The rest stays in the database. */
const AHEAD_S = 2;
/** Longest hold; then the gate is asked again, whatever it said. */
const MAX_HOLD_MS = 1_000;
const SWEEP_MS = 60_000;

type Paced = { readonly pacer: Pacer; usedAtMs: number };

export type Gates = ReturnType<typeof createGates>;

export function createGates(deps: GatesDeps) {
  const ofSubscriptions = new Map<SubscriptionId, Paced>();
  const ofTenants = new Map<TenantId, Paced>();
  const timers = new Set<NodeJS.Timeout>();
  const sweeper = setInterval(sweep, SWEEP_MS);
  sweeper.unref();

  function sweep(): void {
    const before = deps.now() - SWEEP_MS;
    for (const [id, paced] of ofSubscriptions) if (paced.usedAtMs < before) ofSubscriptions.delete(id);
    for (const [id, paced] of ofTenants) if (paced.usedAtMs < before) ofTenants.delete(id);
    deps.breakers.sweep();
  }

  /** The rate of a subscription at this moment: its own, or a breaker's ramp if that is less. */
  function rateOf(target: Target | undefined, nowMs: number): number | undefined {
    if (target === undefined) return undefined;
    const ramp = deps.breakers.ramp(target.subscriptionId, nowMs);
    if (ramp === undefined) return target.maxPerSecond;
    return target.maxPerSecond === undefined ? ramp : Math.min(ramp, target.maxPerSecond);
  }

  function pacerOf(tenantId: TenantId, subscriptionId: SubscriptionId | undefined, nowMs: number): Pacer {
    let paced = subscriptionId === undefined ? ofTenants.get(tenantId) : ofSubscriptions.get(subscriptionId);
    if (paced === undefined) {
      const specOf = (nowMs: number): BucketSpec => {
        const config = deps.peek(tenantId);
        const rate =
          subscriptionId === undefined
            ? config?.quota.deliveriesPerSecond
            : rateOf(config?.targets.get(subscriptionId), nowMs);
        return pace(rate === undefined || rate === 0 ? 1_000_000 : rate);
      };
      const take = (spec: BucketSpec, want: number) =>
        deps.store.take({ tenantId, kind: 'deliver', subscriptionId }, spec, want);
      const pacer = createPacer(take, specOf, deps.now, () => deps.onRelease(tenantId, subscriptionId));
      paced = { pacer, usedAtMs: nowMs };
      if (subscriptionId === undefined) ofTenants.set(tenantId, paced);
      else ofSubscriptions.set(subscriptionId, paced);
    }
    paced.usedAtMs = nowMs;
    return paced.pacer;
  }

  /** Whether another may go under this worker's part of a cap. */
  function room(cap: number, inFlight: number, tenantId: TenantId): 'room' | 'full' | 'give-back' {
    const standing = deps.standing();
    if (standing.isSettled && inFlight < Math.floor(cap / standing.count)) return 'room';
    const mine = shareOfCap(cap, standing, tenantId);
    if (mine === 0) return 'give-back';
    return inFlight < mine ? 'room' : 'full';
  }

  /** A hold that ends by itself; one without an end is ended by its pacer. */
  function hold(
    what: 'queue' | 'tenant',
    waitMs: number,
    tenantId: TenantId,
    subscriptionId: SubscriptionId,
  ): Admission {
    if (waitMs !== Number.POSITIVE_INFINITY) {
      const timer = setTimeout(
        () => {
          timers.delete(timer);
          deps.onRelease(tenantId, what === 'queue' ? subscriptionId : undefined);
        },
        Math.min(Math.ceil(waitMs), MAX_HOLD_MS),
      );
      timers.add(timer);
    }
    return { hold: what, ms: waitMs };
  }

  /** Tenants that were not there a moment ago. */
  const absent = new Set<TenantId>();

  /** What a tenant's limits are has to be read first: its deliveries wait for that, and nobody else's. */
  function load(tenantId: TenantId): Admission {
    deps.get(tenantId).then(
      (config) => {
        if (config === undefined) {
          absent.add(tenantId);
          setTimeout(() => absent.delete(tenantId), MAX_HOLD_MS).unref();
        }
        deps.onRelease(tenantId, undefined);
      },
      (error) => {
        deps.onError(error);
        const timer = setTimeout(() => {
          timers.delete(timer);
          deps.onRelease(tenantId, undefined);
        }, MAX_HOLD_MS);
        timers.add(timer);
      },
    );
    return { hold: 'tenant', ms: Number.POSITIVE_INFINITY };
  }

  /** What was let go last is a breaker's probe. */
  let isProbe = false;

  return {
    /** See Admit in scheduler.ts. */
    admit(queue: QueueView): Admission {
      const { subscriptionId } = queue;
      const { tenantId } = queue.tenant;
      isProbe = false;
      const config = deps.peek(tenantId);
      if (config === undefined) return absent.has(tenantId) ? 'go' : load(tenantId);
      const target = targetOf(queue, config);
      if (target === undefined) return 'go'; // gone or new: the worker reads anew and decides
      const breaker = deps.breakers.admits(tenantId, subscriptionId, target.breaker);
      isProbe = breaker === 'probe';
      if (breaker === 'open') return 'drop';
      if (breaker === 'probe') return 'go';
      const { maxInFlight, deliveriesPerSecond } = config.quota;
      if (target.maxInFlight !== undefined) {
        const answer = room(target.maxInFlight, queue.inFlight, tenantId);
        if (answer !== 'room') return answer;
      }
      if (maxInFlight > 0) {
        const answer = room(maxInFlight, queue.tenant.inFlight, tenantId);
        if (answer !== 'room') return answer === 'full' ? 'tenant-full' : answer;
      }
      const nowMs = deps.now();
      const fillMs = fillsForMs(target, queue, nowMs);
      if (fillMs > 0) return hold('queue', fillMs, tenantId, subscriptionId);
      const depth = Math.ceil(depthOf(queue) / (target.batch?.maxEvents ?? 1)); // requests, not deliveries
      const own = rateOf(target, nowMs) === undefined ? undefined : pacerOf(tenantId, subscriptionId, nowMs);
      const ofTenant = deliveriesPerSecond === 0 ? undefined : pacerOf(tenantId, undefined, nowMs);
      const ownWait = own?.waitMs(nowMs, depth) ?? 0;
      const tenantWait = ofTenant?.waitMs(nowMs, depth) ?? 0; // both are asked at once
      if (ownWait > 0) return hold('queue', ownWait, tenantId, subscriptionId);
      if (tenantWait > 0) {
        own?.keep(); // its slot is not to blame: it is good until the tenant's turn comes
        return hold('tenant', tenantWait, tenantId, subscriptionId);
      }
      own?.use();
      ofTenant?.use();
      return 'go';
    },

    /** Says what goes, right after it was let go: a probe is remembered by its delivery. */
    going(subscriptionId: SubscriptionId, deliveryId: DeliveryId): void {
      if (isProbe) deps.breakers.probeGoes(subscriptionId, deliveryId);
      isProbe = false;
    },

    ended: deps.breakers.ended,
    unused: deps.breakers.unused,

    /** How many deliveries of a queue this worker may have waiting, as far as the limits go. */
    waitingCap(config: TenantConfig, target: Target): number {
      let cap = Number.POSITIVE_INFINITY;
      const { count, isSettled } = deps.standing();
      const mayPace = isSettled || deps.isShared();
      const ahead = (rate: number) => (mayPace ? Math.max(2, Math.ceil((rate * AHEAD_S) / count)) : 0);
      const rate = rateOf(target, deps.now());
      const perRequest = target.batch?.maxEvents ?? 1;
      if (rate !== undefined) cap = ahead(rate) * perRequest;
      const { maxInFlight, deliveriesPerSecond } = config.quota;
      if (deliveriesPerSecond > 0) cap = Math.min(cap, ahead(deliveriesPerSecond) * perRequest);
      const limits = [target.maxInFlight ?? 0, maxInFlight];
      for (const limit of limits) {
        // Where there is plenty, the part is not worked out to the last one.
        const plenty = isSettled ? Math.floor(limit / count) : 0;
        if (limit > 0 && plenty * 4 * perRequest < cap) {
          cap = Math.min(cap, 4 * perRequest * shareOfCap(limit, deps.standing(), config.tenantId));
        }
      }
      return cap;
    },

    /** The same for a claim, which may have to ask for a probe first. */
    async claimable(config: TenantConfig, target: Target): Promise<number> {
      const { breaker, subscriptionId } = target;
      const room = await deps.breakers.claimable(config.tenantId, subscriptionId, breaker);
      return room <= 1 ? room : this.waitingCap(config, target);
    },

    /** Whether what was just published may be handed over in memory. */
    mayOwn(tenantId: TenantId, target: Target): boolean {
      return deps.breakers.admits(tenantId, target.subscriptionId, target.breaker) === 'closed';
    },

    stop(): void {
      clearInterval(sweeper);
      for (const timer of timers) clearTimeout(timer);
      timers.clear();
    },
  };
}

/** How long a queue waits for its next batch to fill, in ms; 0: it is full, has waited long enough, or has no batches. */
function fillsForMs({ batch }: Target, queue: QueueView, nowMs: number): number {
  if (batch === undefined || depthOf(queue) >= batch.maxEvents || queue.bytes >= batch.maxBytes) return 0;
  return Math.max(0, queue.sinceMs + batch.maxWaitMs - nowMs);
}

/** What waits in a queue, lines behind their heads included. */
const depthOf = ({ waiting, behind }: QueueView) => waiting.size + behind;

/**
 * This worker's part of a cap: an equal one, and the remainder to some, other ones for each `seed`. A tenant's cap and
 * its subscriptions' have the same seed, so that a worker that has a part of the smaller has one of the larger. Over all
 * workers the parts add up to the cap; one that the others may not know of yet has none.
 */
export function shareOfCap(cap: number, { count, rank, isSettled }: Standing, seed: string): number {
  if (!isSettled) return 0;
  let hash = 0;
  for (let i = 0; i < seed.length; i++) hash = (Math.imul(hash, 31) + seed.charCodeAt(i)) >>> 0;
  const place = (rank + hash) % count;
  return Math.floor(cap / count) + (place < cap % count ? 1 : 0);
}
