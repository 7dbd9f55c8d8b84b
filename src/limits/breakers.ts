// Circuit breakers as one worker sees them: local copies of the shared state. A success on a breaker that has seen no
// failure costs nothing, and no call. What other workers found out comes with the tenant's configuration (adopt()).
import { rampPerSecond } from '../domain/breaker.ts';
import type { DeliveryId, SubscriptionId, TenantId } from '../domain/ids.ts';
import type { BreakerView, LimitStore } from './store.ts';

/** A transition that another worker may have written. Monotonic times in ms. */
export type KnownBreaker = {
  readonly phase: 'open' | 'closed';
  readonly openCount: number;
  readonly changedAtMs: number;
  readonly untilMs: number;
};

export type BreakersDeps = {
  readonly store: Pick<LimitStore, 'report' | 'askProbe' | 'endProbe'>;
  /** Names this worker in the leases of probes. */
  readonly holder: string;
  /** Longer than any attempt. */
  readonly probeLeaseMs: number;
  /** Monotonic, in ms. */
  readonly now: () => number;
  /** This worker's call opened or closed a breaker. */
  readonly onTransition: (tenantId: TenantId, subscriptionId: SubscriptionId, view: BreakerView) => void;
  /** There is something new about a queue: a probe may go out, or its breaker closed. */
  readonly onReady: (tenantId: TenantId, subscriptionId: SubscriptionId) => void;
  readonly onError: (error: unknown) => void;
};

/** States of `probe`: none → asking → granted (a claim may bring one delivery) → out → none. */
type Local = {
  readonly tenantId: TenantId;
  readonly subscriptionId: SubscriptionId;
  phase: 'closed' | 'open' | 'half_open';
  openCount: number;
  openUntilMs: number;
  changedAtMs: number;
  /** NEGATIVE_INFINITY: it never was open. */
  closedAtMs: number;
  probe: 'none' | 'asking' | 'granted' | 'out';
  probeDelivery: DeliveryId | undefined;
  /** Names the probe that was granted last: nobody, this worker included, ends another than the one that it sent. */
  probeHolder: string;
  /** When a probe that was granted and not sent is somebody else's to send. */
  grantedUntilMs: number;
  askAgainAtMs: number;
  /** Attempts since the last report, and when their counting began. */
  attempts: number;
  countingSinceMs: number;
  failures: number;
  trailing: number;
  isReporting: boolean;
  usedAtMs: number;
};

/** A copy that saw nothing for this long, closed, is forgotten. */
const FORGET_MS = 120_000;
/** One that nobody asked about for this long, open: its subscription is gone, or its queue is empty. */
const FORGET_OPEN_MS = 1_200_000;
/** Successes that lie further back say nothing about a failure of now. */
const WINDOW_MS = 60_000;
/** How much newer a written transition must be than what is known: both clocks were read around a round trip. */
const SAME_MS = 20;
const MAX_ASK_MS = 1_000;

export type Breakers = ReturnType<typeof createBreakers>;

export function createBreakers(deps: BreakersDeps) {
  const locals = new Map<SubscriptionId, Local>();
  let probeCount = 0;

  function localOf(tenantId: TenantId, subscriptionId: SubscriptionId): Local {
    let local = locals.get(subscriptionId);
    if (local === undefined) {
      local = {
        tenantId,
        subscriptionId,
        phase: 'closed',
        openCount: 0,
        openUntilMs: 0,
        changedAtMs: Number.NEGATIVE_INFINITY,
        closedAtMs: Number.NEGATIVE_INFINITY,
        probe: 'none',
        probeDelivery: undefined,
        probeHolder: '',
        grantedUntilMs: 0,
        askAgainAtMs: 0,
        attempts: 0,
        countingSinceMs: deps.now(),
        failures: 0,
        trailing: 0,
        isReporting: false,
        usedAtMs: deps.now(),
      };
      locals.set(subscriptionId, local);
    }
    return local;
  }

  /** Takes over what another worker wrote, if it is news. */
  function adopt(
    tenantId: TenantId,
    subscriptionId: SubscriptionId,
    known: KnownBreaker | undefined,
  ): Local | undefined {
    const local = locals.get(subscriptionId);
    if (known === undefined) return local;
    const isOld = known.phase === 'closed' && rampPerSecond(deps.now() - known.changedAtMs) === undefined;
    if (local === undefined && isOld) return undefined;
    const mine = local ?? localOf(tenantId, subscriptionId);
    const isNews = known.changedAtMs > mine.changedAtMs + SAME_MS;
    const isOpen = mine.phase !== 'closed';
    const differs = (known.phase === 'open') !== isOpen || (isOpen && known.openCount > mine.openCount);
    if (!isNews || !differs) return mine;
    mine.phase = known.phase;
    mine.openCount = known.openCount;
    mine.changedAtMs = known.changedAtMs;
    mine.openUntilMs = known.untilMs;
    if (known.phase === 'closed') mine.closedAtMs = known.changedAtMs;
    mine.probe = 'none';
    mine.probeDelivery = undefined;
    mine.askAgainAtMs = 0;
    forgetCounts(mine);
    return mine;
  }

  /** What was counted belongs to the phase it was counted in. */
  function forgetCounts(local: Local): void {
    local.attempts = 0;
    local.failures = 0;
    local.trailing = 0;
    local.countingSinceMs = deps.now();
  }

  /** Takes over what a call answered. */
  function learn(local: Local, view: BreakerView, askedAtMs: number): void {
    const before = local.phase;
    local.phase = view.phase;
    local.openCount = view.openCount;
    if (view.phase === 'open') local.openUntilMs = askedAtMs + view.openForMs;
    if (view.phase === 'closed' && view.closedAgoMs >= 0) local.closedAtMs = askedAtMs - view.closedAgoMs;
    if (view.phase !== before) forgetCounts(local);
    if (view.phase !== before || view.changed) local.changedAtMs = askedAtMs;
    if (view.changed) deps.onTransition(local.tenantId, local.subscriptionId, view);
  }

  async function report(local: Local): Promise<void> {
    if (local.isReporting || local.failures === 0) return;
    local.isReporting = true;
    const { attempts, failures, trailing } = local;
    local.attempts = 0;
    local.failures = 0;
    local.trailing = 0;
    const askedAt = deps.now();
    try {
      learn(local, await deps.store.report(local, { attempts, failures, trailing }), askedAt);
    } catch (error) {
      deps.onError(error);
    } finally {
      local.isReporting = false;
    }
    await report(local); // what failed meanwhile
  }

  async function finish(local: Local, outcome: 'succeeded' | 'failed' | 'none'): Promise<void> {
    local.probe = 'none';
    local.probeDelivery = undefined;
    const askedAt = deps.now();
    try {
      const view = await deps.store.endProbe(local, local.probeHolder, outcome);
      if (view.phase === 'closed' && !view.changed && view.closedAgoMs < 0) {
        // The shared state was lost while the probe was out. As far as is known here the breaker is open, and the next
        // probe takes it up there.
        local.phase = 'open';
        local.openUntilMs = askedAt;
        local.askAgainAtMs = 0;
        return;
      }
      learn(local, view, askedAt);
      // Nothing to send it with: look again when the queue is looked at again, and not at once.
      local.askAgainAtMs = outcome === 'none' ? askedAt + MAX_ASK_MS : 0;
      if (local.phase !== 'open') deps.onReady(local.tenantId, local.subscriptionId);
    } catch (error) {
      deps.onError(error);
    }
  }

  return {
    /** Whether a delivery may go now: `closed` yes, `probe` this one and no other, `open` no. */
    admits(
      tenantId: TenantId,
      subscriptionId: SubscriptionId,
      known: KnownBreaker | undefined,
    ): 'closed' | 'probe' | 'open' {
      if (known === undefined && locals.size === 0) return 'closed';
      const local = adopt(tenantId, subscriptionId, known);
      if (local === undefined || local.phase === 'closed') return 'closed';
      return local.probe === 'granted' && deps.now() < local.grantedUntilMs ? 'probe' : 'open';
    },

    /** Marks a delivery as the probe: right before it is sent. */
    probeGoes(subscriptionId: SubscriptionId, deliveryId: DeliveryId): void {
      const local = locals.get(subscriptionId);
      if (local === undefined) return;
      local.probe = 'out';
      local.probeDelivery = deliveryId;
    },

    /** How many deliveries a claim may bring: 0, 1 (a probe, which is asked for here) or any number. */
    async claimable(
      tenantId: TenantId,
      subscriptionId: SubscriptionId,
      known: KnownBreaker | undefined,
    ): Promise<number> {
      const local = adopt(tenantId, subscriptionId, known);
      if (local === undefined || local.phase === 'closed') return Number.POSITIVE_INFINITY;
      const nowMs = deps.now();
      local.usedAtMs = nowMs;
      if (local.probe === 'granted' && nowMs < local.grantedUntilMs) return 1;
      if (local.probe === 'granted') local.probe = 'none'; // too late: it may be another's by now
      if (local.probe !== 'none') return 0;
      if (local.phase === 'open' && nowMs < local.openUntilMs) return 0;
      if (nowMs < local.askAgainAtMs) return 0;
      local.probe = 'asking';
      try {
        const { probeLeaseMs } = deps;
        const holder = `${deps.holder}/${++probeCount}`;
        const answer = await deps.store.askProbe(local, holder, probeLeaseMs, local.openCount);
        local.probe = answer.granted ? 'granted' : 'none';
        if (answer.granted) local.probeHolder = holder;
        // Half of the lease is for sending it; the other half for what an attempt may take.
        local.grantedUntilMs = nowMs + probeLeaseMs / 2;
        local.askAgainAtMs = nowMs + Math.min(answer.waitMs, MAX_ASK_MS);
        learn(local, answer, nowMs);
        if (answer.phase === 'closed') return Number.POSITIVE_INFINITY;
        return answer.granted ? 1 : 0;
      } catch (error) {
        local.probe = 'none';
        deps.onError(error);
        return 0;
      }
    },

    /** A claim brought nothing: a probe that was granted is given back. */
    unused(subscriptionId: SubscriptionId): void {
      const local = locals.get(subscriptionId);
      if (local?.probe === 'granted') void finish(local, 'none');
    },

    /** What became of a delivery that went; `none`: it was not sent after all. */
    ended(
      tenantId: TenantId,
      subscriptionId: SubscriptionId,
      deliveryId: DeliveryId,
      outcome: 'succeeded' | 'failed' | 'none',
    ): void {
      let local = locals.get(subscriptionId);
      if (local === undefined) {
        if (outcome !== 'failed') return;
        local = localOf(tenantId, subscriptionId);
      }
      if (local.probeDelivery === deliveryId) {
        void finish(local, outcome);
        return;
      }
      // What was in flight when it opened is old news.
      if (outcome === 'none' || local.phase !== 'closed') return;
      const nowMs = deps.now();
      if (local.failures === 0 && nowMs - local.countingSinceMs > WINDOW_MS) forgetCounts(local);
      local.attempts++;
      if (outcome === 'succeeded') {
        local.trailing = 0;
        return;
      }
      local.usedAtMs = nowMs;
      local.failures++;
      local.trailing++;
      void report(local);
    },

    /** The rate that a breaker which closed lately lets through; undefined: any. */
    ramp(subscriptionId: SubscriptionId, nowMs: number): number | undefined {
      const local = locals.size === 0 ? undefined : locals.get(subscriptionId);
      return local === undefined ? undefined : rampPerSecond(nowMs - local.closedAtMs);
    },

    /** Forgets copies that say nothing any more. */
    sweep(): void {
      const nowMs = deps.now();
      for (const [id, local] of locals) {
        const forgetMs = local.phase === 'closed' ? FORGET_MS : FORGET_OPEN_MS;
        const isQuiet = local.usedAtMs < nowMs - forgetMs && local.closedAtMs < nowMs - FORGET_MS;
        const isBusy = local.isReporting || local.probe === 'asking' || local.probe === 'out';
        if (isQuiet && !isBusy) locals.delete(id);
      }
    },
  };
}
