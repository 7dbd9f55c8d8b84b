// The worker: claimed → prepared → signed → sent → judged → recorded, for one delivery after the other, as many at
// once as the scheduler lets go. May import storage, egress, domain and telemetry; publishing hands over to it
// through compose.
//
// A delivery in here is: waiting in the scheduler → in flight → recorded | released | dropped (its lease ran out).

import type { ClaimedDelivery, SendResult, Verdict } from '../domain/delivery.ts';
import { DispatchError } from '../domain/errors.ts';
import { type SubscriptionId, type TenantId, timeOfId } from '../domain/ids.ts';
import { judge } from '../domain/verdict.ts';
import type { SignedRequest } from '../egress/sender.ts';
import type { Claimed, QueueKey } from '../storage/claims.ts';
import type { DeliveryRecord } from '../storage/records.ts';
import type { Target, TenantConfig } from '../storage/tenant-configs.ts';
import type { AttemptEvent } from '../telemetry/events.ts';
import { type ClaimerDeps, createClaimer } from './claimer.ts';
import type { Gates } from './gates.ts';
import type { Recorder } from './recorder.ts';
import { createScheduler, limitsFor } from './scheduler.ts';
import { sign } from './sign.ts';

export type WorkerDeps = Pick<ClaimerDeps, 'walk' | 'positionAfter' | 'walkStart'> & {
  readonly claim: (queues: readonly (QueueKey & { readonly room: number })[]) => Promise<Claimed>;
  readonly configs: {
    readonly get: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
    readonly peek: (tenantId: TenantId) => TenantConfig | undefined;
    readonly reload: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  };
  readonly send: (request: SignedRequest, done: (result: SendResult) => void) => void;
  readonly recorder: Recorder;
  readonly gates: Gates;
  /** The authorization header of a target's attempts; a promise while a token is fetched. */
  readonly authorization: (target: Target) => string | undefined | Promise<string | undefined>;
  /** An endpoint refused a target's credentials: a token that was kept is not used again. */
  readonly unauthorized: (target: Target) => void;
  /** Whether the endpoint's scheme is one that its tenant may have. */
  readonly mayBeSent: (target: Target) => boolean;
  /** Disables a subscription because of what its endpoint said. */
  readonly disable: (tenantId: TenantId, subscriptionId: SubscriptionId, reason: string) => Promise<void>;
  readonly maxInFlight: number;
  readonly leaseMs: number;
  readonly userAgent: string;
  /** Ms since 1970. */
  readonly now: () => number;
  /** Monotonic, in ms. */
  readonly monotonic: () => number;
  /** In [0, 1). */
  readonly random: () => number;
  readonly onAttempt: (event: AttemptEvent) => void;
  readonly onClaimed: (count: number) => void;
  readonly onError: (error: unknown, message: string) => void;
};

/** A lease must outlast an attempt by this much, or the attempt is not started. */
const LEASE_MARGIN_MS = 2_000;
/** Results that may wait for the database before no more attempts are started. */
const MAX_RECORD_BACKLOG = 5_000;

export type Worker = ReturnType<typeof createWorker>;

export function createWorker(deps: WorkerDeps) {
  const limits = limitsFor(deps.maxInFlight);
  const scheduler = createScheduler(limits);
  let stopping = false;
  let idleWaiters: (() => void)[] = [];

  const claimer = createClaimer({
    walk: deps.walk,
    positionAfter: deps.positionAfter,
    walkStart: deps.walkStart,
    claim: deps.claim,
    room: scheduler.room,
    waiting: scheduler.waitingOf,
    totalRoom: scheduler.totalRoom,
    worthwhile: Math.min(64, Math.ceil(limits.maxWaitingOfSubscription / 4)),
    waitingCap,
    foundNothing: (queue) => deps.gates.unused(queue.subscriptionId),
    accept: (deliveries) => {
      deps.onClaimed(deliveries.length);
      accept(deliveries);
    },
    withoutEvent: (claims) => {
      for (const c of claims) {
        const failure = {
          errorClass: 'internal',
          message: 'the event is not in the history any more',
        } as const;
        deps.recorder.add({
          ...fenceOf(c),
          kind: 'dead',
          reason: 'event_expired',
          attempt: undefined,
          failure,
          eventType: '',
          attemptCount: c.attemptCount,
        });
      }
    },
    mayClaim: () => deps.recorder.backlog() < MAX_RECORD_BACKLOG && !stopping,
    onError: (error) => deps.onError(error, 'claiming failed'),
  });

  async function waitingCap(queue: QueueKey): Promise<number> {
    try {
      const config = deps.configs.peek(queue.tenantId) ?? (await deps.configs.get(queue.tenantId));
      const target = config?.targets.get(queue.subscriptionId);
      if (config?.state !== 'active' || target?.state !== 'active') return 0;
      return await deps.gates.claimable(config, target);
    } catch (error) {
      deps.onError(error, 'a tenant’s configuration could not be read'); // its queues wait, the others' go on
      return 0;
    }
  }

  function accept(deliveries: readonly ClaimedDelivery[]): void {
    for (const delivery of deliveries) scheduler.offer(delivery);
    pump();
  }

  let isPumping = false;

  function pump(): void {
    // A delivery that ends without being sent comes back here through end(): the loop goes on, the stack does not grow.
    if (isPumping) return;
    isPumping = true;
    while (!stopping && deps.recorder.backlog() < MAX_RECORD_BACKLOG) {
      const delivery = scheduler.next(deps.gates.admit);
      if (delivery === undefined) break;
      deps.gates.going(delivery.tenantId, delivery.subscriptionId, delivery.deliveryId);
      begin(delivery);
    }
    isPumping = false;
    claimer.resume();
  }

  function begin(delivery: ClaimedDelivery): void {
    const config = deps.configs.peek(delivery.tenantId);
    if (config?.targets.has(delivery.subscriptionId)) {
      prepare(delivery, config);
      return;
    }
    // Not in memory, or newer than what is: only a configuration that was read after the claim can say that the
    // subscription is gone.
    deps.configs.reload(delivery.tenantId).then(
      (loaded) => prepare(delivery, loaded),
      (error) => {
        deps.onError(error, 'a tenant’s configuration could not be read');
        end(delivery, { ...fenceOf(delivery), kind: 'release', delayMs: 1_000 });
      },
    );
  }

  /** Prepare: is there still somebody to deliver to, and time enough? */
  function prepare(delivery: ClaimedDelivery, config: TenantConfig | undefined): void {
    const target = config?.targets.get(delivery.subscriptionId);
    if (config === undefined || target === undefined) {
      end(delivery, { ...fenceOf(delivery), kind: 'cancelled' });
    } else if (config.state !== 'active' || target.state !== 'active') {
      end(delivery, { ...fenceOf(delivery), kind: 'release', delayMs: 0 });
    } else if (!lastsForAttempt(delivery, target)) {
      // It waited here for too long: back to the queue, uncharged, before the lease ends by itself.
      end(delivery, { ...fenceOf(delivery), kind: 'release', delayMs: 0 });
    } else {
      authorize(delivery, target);
    }
  }

  const lastsForAttempt = (delivery: ClaimedDelivery, target: Target) =>
    deps.monotonic() + timeoutOf(target) + LEASE_MARGIN_MS <= delivery.leaseUntilMs;

  /** Credentials that are at hand are used at once; a token that must be fetched takes its time first. */
  function authorize(delivery: ClaimedDelivery, target: Target): void {
    const authorization = target.credentials.auth === undefined ? undefined : deps.authorization(target);
    if (!(authorization instanceof Promise)) {
      attempt(delivery, target, authorization);
      return;
    }
    const startedAtMs = deps.now();
    const startedAt = deps.monotonic();
    authorization.then(
      (value) => {
        if (lastsForAttempt(delivery, target)) attempt(delivery, target, value);
        else end(delivery, { ...fenceOf(delivery), kind: 'release', delayMs: 0 });
      },
      (error: Error) => {
        const times = {
          startedAtMs,
          durationMs: deps.monotonic() - startedAt,
          lagMs: startedAtMs - delivery.dueAtMs,
        };
        finish(
          delivery,
          target,
          { kind: 'failure', errorClass: 'credentials', message: error.message },
          times,
        );
      },
    );
  }

  /** An attempt ends well before a fresh lease does, however short leases are configured. */
  const timeoutOf = (target: Target) => Math.min(target.attemptTimeoutMs, deps.leaseMs - 2 * LEASE_MARGIN_MS);

  function attempt(delivery: ClaimedDelivery, target: Target, authorization: string | undefined): void {
    const startedAtMs = deps.now();
    const startedAt = deps.monotonic();
    const lagMs = startedAtMs - delivery.dueAtMs;
    if (!deps.mayBeSent(target)) {
      finish(delivery, target, PLAIN_HTTP, { startedAtMs, durationMs: 0, lagMs });
      return;
    }
    let request: SignedRequest;
    try {
      const timeoutMs = timeoutOf(target);
      const at = { nowMs: startedAtMs, monotonicMs: startedAt, timeoutMs };
      const what = { ...delivery, attempt: delivery.attemptCount + 1 };
      request = sign(what, target, at, deps.userAgent, authorization);
    } catch (error) {
      deps.onError(error, 'a request could not be signed');
      end(delivery, { ...fenceOf(delivery), kind: 'release', delayMs: 60_000 });
      return;
    }
    deps.send(request, (result) => {
      const durationMs = deps.monotonic() - startedAt;
      finish(delivery, target, result, { startedAtMs, durationMs, lagMs });
    });
  }

  function finish(
    delivery: ClaimedDelivery,
    target: Target,
    result: SendResult,
    times: { readonly startedAtMs: number; readonly durationMs: number; readonly lagMs: number },
  ): void {
    const attemptNumber = delivery.attemptCount + 1;
    const nowMs = deps.now();
    const verdict = judge({
      result,
      policy: target.retryPolicy,
      attemptOfRound: attemptNumber - delivery.retryBase,
      ageMs: nowMs - (delivery.roundAtMs ?? timeOfId(delivery.idBytes)),
      nowMs,
      random: deps.random(),
    });
    const { tenantId, subscriptionId, deliveryId } = delivery;
    deps.gates.ended(
      tenantId,
      subscriptionId,
      deliveryId,
      verdict.kind === 'succeeded' ? 'succeeded' : 'failed',
    );
    if (result.kind === 'response' && result.status === 401) deps.unauthorized(target);
    end(delivery, recordOf(delivery, result, verdict, attemptNumber, times), true);
    deps.onAttempt(eventOf(delivery, target, result, verdict, attemptNumber, times));
    if (verdict.kind !== 'succeeded' && verdict.disable) {
      const reason = 'the endpoint answered 410 Gone';
      deps.disable(delivery.tenantId, delivery.subscriptionId, reason).catch((error) => {
        // Deleted meanwhile: there is nothing left to disable.
        if (!(error instanceof DispatchError)) deps.onError(error, 'a subscription could not be disabled');
      });
    }
  }

  function end(delivery: ClaimedDelivery, record: DeliveryRecord, wasSent = false): void {
    if (!wasSent) deps.gates.ended(delivery.tenantId, delivery.subscriptionId, delivery.deliveryId, 'none');
    deps.recorder.add(record);
    scheduler.finished(delivery);
    if (stopping && scheduler.inFlightCount() === 0) {
      for (const wake of idleWaiters) wake();
      idleWaiters = [];
    }
    pump();
  }

  return {
    /** See LocalWorker in publishing/group-commit.ts. */
    reserve(tenantId: TenantId, subscriptionId: SubscriptionId): boolean {
      const config = deps.configs.peek(tenantId);
      const target = config?.targets.get(subscriptionId);
      if (stopping || config === undefined || target === undefined) return false;
      if (!deps.gates.mayOwn(tenantId, target)) return false;
      const cap = deps.gates.waitingCap(config, target);
      if (scheduler.waitingOf(tenantId, subscriptionId) >= cap) return false;
      return scheduler.reserve(tenantId, subscriptionId);
    },
    unreserve: scheduler.unreserve,
    accept(deliveries: readonly ClaimedDelivery[]): void {
      for (const d of deliveries) scheduler.unreserve(d.tenantId, d.subscriptionId);
      if (stopping)
        for (const d of deliveries) deps.recorder.add({ ...fenceOf(d), kind: 'release', delayMs: 0 });
      else accept(deliveries);
    },
    /** These queues have something due; undefined: some queue may have. */
    poke: claimer.poke,
    /** A hold is over: see gates.ts. */
    release(tenantId: TenantId, subscriptionId: SubscriptionId | undefined): void {
      scheduler.release(tenantId, subscriptionId);
      pump();
    },
    /** Results were recorded: deliveries that waited for that may go on. */
    recorded: pump,
    waitingCount: scheduler.waitingCount,
    inFlightCount: scheduler.inFlightCount,
    /**
     * Stops claiming, gives back at once what has not been started, and waits up to `graceMs` for what is on the
     * wire. What is left then is taken over by others when its lease ends.
     */
    async stop(graceMs: number): Promise<void> {
      stopping = true;
      deps.gates.stop();
      await claimer.stop();
      for (const d of scheduler.drain()) deps.recorder.add({ ...fenceOf(d), kind: 'release', delayMs: 0 });
      if (scheduler.inFlightCount() > 0) {
        await new Promise<void>((done) => {
          const timer = setTimeout(done, graceMs);
          idleWaiters.push(() => {
            clearTimeout(timer);
            done();
          });
        });
      }
      await deps.recorder.flush();
    },
  };
}

const PLAIN_HTTP: SendResult = {
  kind: 'failure',
  errorClass: 'blocked_address',
  message: 'the tenant’s quota allows https endpoints only',
};

const fenceOf = (d: Pick<ClaimedDelivery, 'tenantId' | 'idBytes' | 'lease'>) => ({
  tenantId: d.tenantId,
  idBytes: d.idBytes,
  lease: d.lease,
});

type Times = { readonly startedAtMs: number; readonly durationMs: number };

function recordOf(
  delivery: ClaimedDelivery,
  result: SendResult,
  verdict: Verdict,
  attemptNumber: number,
  times: Times,
): DeliveryRecord {
  const attempt = {
    attempt: attemptNumber,
    status: result.kind === 'response' ? result.status : undefined,
    startedAtMs: times.startedAtMs,
    durationUs: Math.round(times.durationMs * 1000),
    responseBody: result.kind === 'response' ? result.body : Buffer.alloc(0),
  };
  const fence = fenceOf(delivery);
  switch (verdict.kind) {
    case 'succeeded':
      return { ...fence, kind: 'succeeded', attempt };
    case 'retry':
      return { ...fence, kind: 'retry', attempt, failure: verdict, delayMs: verdict.delayMs };
    case 'dead': {
      const { reason } = verdict;
      const eventType = delivery.event.type;
      return {
        ...fence,
        kind: 'dead',
        reason,
        attempt,
        failure: verdict,
        eventType,
        attemptCount: attemptNumber,
      };
    }
  }
}

function eventOf(
  delivery: ClaimedDelivery,
  target: Target,
  result: SendResult,
  verdict: Verdict,
  attemptNumber: number,
  times: Times & { readonly lagMs: number },
): AttemptEvent {
  return {
    tenantId: delivery.tenantId,
    eventId: delivery.event.eventId,
    eventType: delivery.event.type,
    subscriptionId: delivery.subscriptionId,
    deliveryId: delivery.deliveryId,
    attempt: attemptNumber,
    outcome: verdict.kind,
    status: result.kind === 'response' ? result.status : 0,
    errorClass: verdict.kind === 'succeeded' ? undefined : verdict.errorClass,
    origin: target.origin,
    durationMs: Math.round(times.durationMs * 1000) / 1000,
    lagMs: Math.round(times.lagMs * 1000) / 1000,
    retryInMs: verdict.kind === 'retry' ? verdict.delayMs : undefined,
    payloadBytes: delivery.event.payload.length,
  };
}
