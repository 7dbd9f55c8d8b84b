// The worker: claimed → prepared → signed → sent → judged → recorded, for one request after the other, as many at
// once as the scheduler lets go. May import storage, egress, domain and telemetry; publishing hands over to it
// through compose/.
//
// A delivery in here is: waiting in the scheduler, or behind another in its line → in a request (of one, or of a batch) →
// recorded | released | dropped (its lease ran out).

import { batchItem, itemBytes } from '../domain/batch.ts';
import {
  type ClaimedDelivery,
  NO_TIMING,
  type Place,
  type SendOutcome,
  type SendResult,
  type Verdict,
} from '../domain/delivery.ts';
import { DispatchError } from '../domain/errors.ts';
import { type SubscriptionId, type TenantId, timeOfId } from '../domain/ids.ts';
import { attemptOfRound, letsLineGoOn } from '../domain/lease.ts';
import { judge } from '../domain/verdict.ts';
import type { SignedRequest } from '../egress/sender.ts';
import type { Claimed, QueueKey, Wanted } from '../storage/claims.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { DeliveryRecord } from '../storage/records.ts';
import type { Target } from '../storage/targets.ts';
import type { AttemptEvent } from '../telemetry/events.ts';
import { type ClaimerDeps, type ClaimPlan, createClaimer } from './claimer.ts';
import { createConfigsInTime } from './configs-in-time.ts';
import type { Gates } from './gates.ts';
import { createGone, type GoneDeps } from './gone.ts';
import { createLines } from './lines.ts';
import type { Recorder } from './recorder.ts';
import { eventOf, fenceOf, recordOf, type Times } from './results.ts';
import { createScheduler, limitsFor, type Turn, targetOf, worthwhileOf } from './scheduler.ts';
import { type Signable, sign, signable, signableBatch } from './sign.ts';
import { createStartWindow } from './window.ts';

export type WorkerDeps = Pick<ClaimerDeps, 'walk' | 'claimLines' | 'claimLeftovers' | 'stepsBack'> & {
  /** `canWait` says whether there is enough to send meanwhile; when there is not any more, `runsLow` is called. */
  readonly claim: (queues: readonly Wanted[], canWait: () => boolean) => Promise<Claimed>;
  readonly runsLow: () => void;
  readonly configs: {
    readonly get: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
    readonly peek: (tenantId: TenantId) => TenantConfig | undefined;
    readonly reload: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  };
  readonly send: (request: SignedRequest, done: (result: SendOutcome) => void) => void;
  readonly recorder: Recorder;
  readonly gates: Gates;
  /** The authorization header of a target's attempts; a promise while a token is fetched. */
  readonly authorization: (target: Target) => string | undefined | Promise<string | undefined>;
  /** An endpoint refused a target's credentials: a token that was kept is not used again. */
  readonly unauthorized: (target: Target) => void;
  /** Whether the endpoint's scheme is one that its tenant may have. */
  readonly mayBeSent: (target: Target) => boolean;
  /** Disables subscriptions because of what their endpoints said: see gone.ts. */
  readonly disable: GoneDeps['disable'];
  readonly maxInFlight: number;
  readonly leaseMs: number;
  readonly userAgent: string;
  /** The host's clock, in ms since 1970. */
  readonly now: () => number;
  /** The database's clock, in ms since 1970: what ages and dates of Retry-After are reckoned by. */
  readonly databaseNow: () => number;
  /** Monotonic, in ms. */
  readonly monotonic: () => number;
  /** The event loop's utilisation since it was asked last, in [0, 1]. */
  readonly utilization: () => number;
  /** In [0, 1). */
  readonly random: () => number;
  readonly onAttempt: (event: AttemptEvent) => void;
  /** What became of one delivery of a request. */
  readonly onResult: (delivery: ClaimedDelivery, verdict: Verdict) => void;
  readonly onClaimed: (count: number) => void;
  readonly onError: (error: unknown, message: string) => void;
};

/** A lease must outlast an attempt by this much, or the attempt is not started. */
const LEASE_MARGIN_MS = 2_000;
/** Results that may wait for the database before no more attempts are started. */
const MAX_RECORD_BACKLOG = 5_000;
/** Requests that are started in one turn of the event loop: what came in meanwhile (publishes, answers) goes between. */
const MAX_STARTS = 16;
/** As many deliveries are sent while a claim is under way. */
const STOCK = 96;
const UNREADABLE = 'a tenant’s configuration could not be read';
/** How many of a line are claimed at once: enough to be sent before their leases end. */
const PER_LINE = 16;
const PER_WHOLE_LINE = 100;

/**
 * What goes out together in the turn of its first. `items` are the parts of a batch's body; undefined for a request with one
 * event.
 */
type Request = {
  readonly turn: Turn;
  readonly members: readonly [ClaimedDelivery, ...ClaimedDelivery[]];
  readonly items: readonly Buffer[] | undefined;
};

export type Worker = ReturnType<typeof createWorker>;

export function createWorker(deps: WorkerDeps) {
  const limits = limitsFor(deps.maxInFlight);
  const scheduler = createScheduler(limits, {
    now: deps.monotonic,
    weightOf: (tenantId) => deps.configs.peek(tenantId)?.quota.weight ?? 1,
    onFreed: (tenantId, subscriptionId) => claimer.freed(tenantId, subscriptionId),
    onDropped: (delivery) => lines.dropped(delivery),
    onGivenBack: (delivery) => {
      lines.done(delivery, false);
      giveBack(delivery);
    },
  });
  const lines = createLines({
    holdBehind: scheduler.holdBehind,
    leaveBehind: scheduler.leaveBehind,
    offer: scheduler.offer,
    giveBack,
  });
  const window = createStartWindow({
    max: deps.maxInFlight,
    now: deps.monotonic,
    utilization: deps.utilization,
    onOpen: () => pump(),
  });
  const gone = createGone({
    disable: deps.disable,
    onError: (error) => {
      // The tenant is gone, too: there is nothing left to disable.
      if (!(error instanceof DispatchError)) deps.onError(error, 'subscriptions could not be disabled');
    },
  });
  let stopping = false;
  let idleWaiters: (() => void)[] = [];

  const claimer = createClaimer({
    walk: deps.walk,
    claim: (queues, mayWait) => deps.claim(queues, () => mayWait && hasStock()),
    claimLines: deps.claimLines,
    claimLeftovers: deps.claimLeftovers,
    room: scheduler.room,
    waiting: scheduler.waitingOf,
    totalRoom: scheduler.totalRoom,
    tenantRoom: scheduler.tenantRoom,
    worthwhile: worthwhileOf(deps.maxInFlight),
    planOf,
    foundNothing: (queue) => deps.gates.unused(queue.subscriptionId),
    accept: (deliveries) => {
      deps.onClaimed(deliveries.length);
      accept(deliveries);
    },
    acceptLines: (claimed) => {
      for (const line of claimed) {
        deps.onClaimed(line.length);
        lines.accept(line);
        releaseIfFull(line[0]!);
      }
      pump();
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
          stopsLine: false,
        });
      }
    },
    stepsBack: deps.stepsBack,
    mayClaim: () => deps.recorder.backlog() < MAX_RECORD_BACKLOG && !stopping,
    onError: (error) => deps.onError(error, 'claiming failed'),
  });

  const configInTime = createConfigsInTime({
    configs: deps.configs,
    onRead: (queues) => claimer.poke(queues),
    onError: (error) => deps.onError(error, UNREADABLE),
  });

  async function planOf(queue: QueueKey): Promise<ClaimPlan | 'later'> {
    try {
      const config = deps.configs.peek(queue.tenantId) ?? (await configInTime(queue));
      if (config === 'later') return 'later';
      const target = config?.targets.get(queue.subscriptionId);
      const isActive = config?.state === 'active' && target?.state === 'active';
      if (!isActive || gone.has(queue.subscriptionId)) return CLOSED;
      const cap = await deps.gates.claimable(config, target);
      return { cap, perLine: perLineOf(target, cap), perRequest: target.batch?.maxEvents ?? 1 };
    } catch (error) {
      deps.onError(error, UNREADABLE); // its queues wait, the others' go on
      return CLOSED;
    }
  }

  function accept(deliveries: readonly ClaimedDelivery[]): void {
    for (const delivery of deliveries) {
      scheduler.offer(delivery);
      releaseIfFull(delivery);
    }
    pump();
  }

  /** A queue that waits for a batch to fill waits no more once it is full. */
  function releaseIfFull({ tenantId, subscriptionId }: ClaimedDelivery): void {
    const config = deps.configs.peek(tenantId);
    const batch = config?.hasBatches === true ? config.targets.get(subscriptionId)?.batch : undefined;
    if (batch === undefined) return;
    const isFull =
      scheduler.waitingOf(tenantId, subscriptionId) >= batch.maxEvents ||
      scheduler.bytesOf(tenantId, subscriptionId) >= batch.maxBytes;
    if (isFull) scheduler.release(tenantId, subscriptionId);
  }

  let pumpsSoon = false;
  /** Whether the last look for something to send ended because nothing was there that may go. */
  let ranDry = true;
  const hasStock = () => !ranDry && scheduler.waitingCount() >= STOCK;

  /**
   * At the end of this turn of the event loop: requests that take the places of all that ended in it are written one after
   * the other, so that whoever reads them wakes up once, and not for each (ADR 0014).
   */
  function pumpSoon(): void {
    if (pumpsSoon) return;
    pumpsSoon = true;
    setImmediate(() => {
      pumpsSoon = false;
      pump();
    });
  }

  function pump(): void {
    let startCount = 0;
    ranDry = false;
    while (!stopping && deps.recorder.backlog() < MAX_RECORD_BACKLOG) {
      if (startCount++ === MAX_STARTS) {
        pumpSoon();
        break;
      }
      const isOpen = window.mayStart();
      if (!isOpen && !window.mayStartBeyond()) break;
      const turn = scheduler.next(deps.gates.admit, !isOpen);
      if (turn === undefined) {
        ranDry = isOpen;
        break;
      }
      deps.gates.going(turn.delivery.subscriptionId, turn.delivery.deliveryId);
      begin(turn);
    }
    if (!hasStock()) deps.runsLow();
    claimer.resume();
  }

  function begin(turn: Turn): void {
    const { delivery } = turn;
    const config = deps.configs.peek(delivery.tenantId);
    const target = config === undefined ? undefined : targetOf(turn.queue, config);
    if (target !== undefined) {
      prepare(gather(turn, target), config, target);
      return;
    }
    // Not in memory, or newer than what is: only a configuration that was read after the claim can say that the
    // subscription is gone.
    deps.configs.reload(delivery.tenantId).then(
      (loaded) => {
        const found = loaded?.targets.get(delivery.subscriptionId);
        prepare(found === undefined ? alone(turn) : gather(turn, found), loaded, found);
      },
      (error) => {
        deps.onError(error, UNREADABLE);
        endAll(alone(turn), 'release', 1_000);
      },
    );
  }

  /** What goes with a delivery: what waits behind it in its line, and then in its queue, until the batch is full. */
  function gather(turn: Turn, { batch }: Target): Request {
    if (batch === undefined) return alone(turn);
    const first = turn.delivery;
    const { tenantId, subscriptionId } = first;
    const members: [ClaimedDelivery, ...ClaimedDelivery[]] = [first];
    const items = [batchItem(tenantId, first.event, batch.format)];
    let bytes = 2 + itemBytes(items[0]!);
    const fits = (delivery: ClaimedDelivery) => {
      const item = batchItem(tenantId, delivery.event, batch.format);
      if (bytes + itemBytes(item) > batch.maxBytes) return false;
      items.push(item);
      bytes += itemBytes(item);
      return true;
    };
    let head = first;
    while (members.length < batch.maxEvents) {
      let next = head.isOrdered ? lines.takeAlong(head, fits) : undefined;
      if (next === undefined) {
        if (head.isOrdered && bytes >= batch.maxBytes) break;
        next = scheduler.takeAlong(tenantId, subscriptionId, fits);
        if (next === undefined) break;
        head = next;
      }
      members.push(next);
    }
    return { turn, members, items };
  }

  /** Prepare: is there still somebody to deliver to, and time enough? */
  function prepare(request: Request, config: TenantConfig | undefined, target: Target | undefined): void {
    if (config === undefined || target === undefined) {
      endAll(request, 'cancelled');
    } else if (config.state !== 'active' || target.state !== 'active' || gone.has(target.subscriptionId)) {
      endAll(request, 'release');
    } else {
      authorize(request, target);
    }
  }

  function lastsForAttempt({ members }: Request, target: Target, nowMs: number): boolean {
    const untilMs = nowMs + timeoutOf(target) + LEASE_MARGIN_MS;
    for (const delivery of members) if (untilMs > delivery.leaseUntilMs) return false;
    return true;
  }

  /**
   * Goes on if the lease lasts. Credentials that are at hand are used at once; a token that must be fetched takes its time
   * first.
   */
  function authorize(request: Request, target: Target): void {
    const startedAt = deps.monotonic();
    if (!lastsForAttempt(request, target, startedAt)) {
      // It waited here for too long: back to the queue, uncharged, before the lease ends by itself.
      endAll(request, 'release');
      return;
    }
    const authorization = target.credentials.auth === undefined ? undefined : deps.authorization(target);
    if (!(authorization instanceof Promise)) {
      attempt(request, target, authorization, startedAt);
      return;
    }
    const startedAtMs = deps.now();
    authorization.then(
      (value) => {
        const nowMs = deps.monotonic();
        if (lastsForAttempt(request, target, nowMs)) attempt(request, target, value, nowMs);
        else endAll(request, 'release');
      },
      (error: Error) => {
        const lagMs = startedAtMs - request.members[0].dueAtMs;
        const times = { startedAtMs, durationMs: deps.monotonic() - startedAt, lagMs };
        const { message } = error;
        finish(
          request,
          target,
          { kind: 'failure', errorClass: 'credentials', message, timing: NO_TIMING },
          times,
          0,
        );
      },
    );
  }

  /** An attempt ends well before a fresh lease does, however short leases are configured. */
  const timeoutOf = (target: Target) => Math.min(target.attemptTimeoutMs, deps.leaseMs - 2 * LEASE_MARGIN_MS);

  function attempt(
    request: Request,
    target: Target,
    authorization: string | undefined,
    startedAt: number,
  ): void {
    const startedAtMs = deps.now();
    const lagMs = startedAtMs - request.members[0].dueAtMs;
    if (!deps.mayBeSent(target)) {
      finish(request, target, PLAIN_HTTP, { startedAtMs, durationMs: 0, lagMs }, 0);
      return;
    }
    let signed: SignedRequest;
    try {
      const at = { nowMs: startedAtMs, monotonicMs: startedAt, timeoutMs: timeoutOf(target) };
      signed = sign(signableOf(request, target), target, at, deps.userAgent, authorization);
    } catch (error) {
      deps.onError(error, 'a request could not be signed');
      endAll(request, 'release', 60_000);
      return;
    }
    const ended = window.started(request.members[0].tenantId);
    deps.send(signed, (result) => {
      ended();
      if (result.kind === 'stalled') {
        endAll(request, 'release');
        return;
      }
      const durationMs = deps.monotonic() - startedAt;
      finish(request, target, result, { startedAtMs, durationMs, lagMs }, signed.body.length);
    });
  }

  function finish(
    request: Request,
    target: Target,
    result: SendResult,
    times: Times,
    bodyBytes: number,
  ): void {
    const [first] = request.members;
    const random = deps.random();
    const verdicts = request.members.map((delivery) => verdictOf(delivery, target, result, random));
    const verdict = verdicts[0]!;
    const { tenantId, subscriptionId, deliveryId } = first;
    deps.gates.ended(tenantId, subscriptionId, deliveryId, outcomeOf(verdict));
    if (result.kind === 'response' && result.status === 401) deps.unauthorized(target);
    const batchSize = request.items === undefined ? 0 : request.members.length;
    const records = request.members.map((delivery, i) =>
      recordOf(delivery, target, result, verdicts[i]!, times, batchSize),
    );
    request.members.forEach((delivery, i) => void deps.onResult(delivery, verdicts[i]!));
    end(request, records);
    if (verdict.kind === 'retry') claimer.later(first, verdict.delayMs);
    deps.onAttempt(eventOf(first, target, result, verdict, times, { batchSize, bodyBytes }));
    if (verdict.disable) gone.add(tenantId, subscriptionId, reasonOf(result));
  }

  /** All of a request have one outcome and one random number, so that what failed together is tried again together. */
  function verdictOf(delivery: ClaimedDelivery, target: Target, result: SendResult, random: number): Verdict {
    const nowMs = deps.databaseNow();
    return judge({
      result,
      policy: target.retryPolicy,
      attemptOfRound: attemptOfRound(delivery),
      ageMs: nowMs - (delivery.roundAtMs ?? timeOfId(delivery.idBytes)),
      nowMs,
      random,
    });
  }

  /** Ends a request that was not sent, or that nothing can be said of. */
  function endAll(request: Request, kind: 'release' | 'cancelled', delayMs = 0): void {
    const [{ tenantId, subscriptionId, deliveryId }] = request.members;
    deps.gates.ended(tenantId, subscriptionId, deliveryId, 'none');
    end(
      request,
      request.members.map((delivery) =>
        kind === 'release' ? { ...fenceOf(delivery), kind, delayMs } : { ...fenceOf(delivery), kind },
      ),
    );
  }

  function end(request: Request, records: readonly DeliveryRecord[]): void {
    request.members.forEach((delivery, i) => {
      const record = records[i]!;
      if (delivery.isOrdered)
        deps.recorder.add(record, (isWritten) => lineGoesOn(delivery, record, isWritten));
      else deps.recorder.add(record);
    });
    scheduler.finished(request.turn);
    if (stopping && scheduler.inFlightCount() === 0) {
      for (const wake of idleWaiters) wake();
      idleWaiters = [];
    }
    pumpSoon();
  }

  /** What waits behind a delivery goes once its end is written. */
  function lineGoesOn(delivery: ClaimedDelivery, record: DeliveryRecord, isWritten: boolean): void {
    const goesOn = isWritten && letsLineGoOn(record) && !stopping;
    const mayHaveMore = lines.done(delivery, goesOn);
    if (mayHaveMore || record.kind === 'dead') claimer.knows([delivery]);
    pump();
  }

  function giveBack(delivery: ClaimedDelivery): void {
    deps.recorder.add({ ...fenceOf(delivery), kind: 'release', delayMs: 0 });
  }

  return {
    /** See LocalWorker in publishing/hand-over.ts. */
    reserve(config: TenantConfig, target: Target): Place | undefined {
      const { tenantId } = config;
      const { subscriptionId } = target;
      if (stopping || gone.has(subscriptionId) || !deps.gates.mayOwn(tenantId, target)) return undefined;
      const cap = deps.gates.waitingCap(config, target);
      const isFull = cap !== Number.POSITIVE_INFINITY && scheduler.waitingOf(tenantId, subscriptionId) >= cap;
      if (isFull) return undefined;
      const queue = scheduler.reserve(tenantId, subscriptionId);
      if (queue === undefined) return undefined;
      queue.configSerial = config.serial;
      queue.target = target;
      return queue;
    },
    unreserve: scheduler.unreserve,
    accept(deliveries: readonly ClaimedDelivery[]): void {
      if (!stopping) {
        accept(deliveries);
        return;
      }
      for (const d of deliveries) {
        if (d.place !== undefined) scheduler.unreserve(d.place);
        giveBack(d);
      }
    },
    /** These queues have something due; undefined: some queue may have. */
    poke: claimer.poke,
    /** These queues have something due that nobody else was told of. */
    knows: claimer.knows,
    /** These queues have something due that was not found where claims go on. */
    found: claimer.found,
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
      window.stop();
      deps.gates.stop();
      await claimer.stop();
      for (const d of scheduler.drain()) giveBack(d);
      lines.drain();
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

/** For the breaker, an endpoint that wants nothing more has neither taken a delivery nor failed to. */
function outcomeOf({ kind, disable }: Verdict): 'succeeded' | 'failed' | 'none' {
  if (kind === 'succeeded') return 'succeeded';
  return disable ? 'none' : 'failed';
}

/** Why a subscription is disabled. */
function reasonOf(result: SendResult): string {
  const isGone = result.kind === 'response' && result.status === 410;
  return isGone ? 'the endpoint answered 410 Gone' : 'the endpoint asked for it: webhook-delivery';
}

const CLOSED: ClaimPlan = { cap: 0, perLine: 0, perRequest: 1 };

/** How much of a line is taken at once: a probe goes alone, a batch takes its fill. */
function perLineOf({ ordering, batch }: Target, cap: number): number {
  if (ordering === 'none') return 0;
  if (cap === 1) return 1;
  const usual = ordering === 'subscription' ? PER_WHOLE_LINE : PER_LINE;
  return Math.min(Math.max(usual, batch?.maxEvents ?? 0), cap);
}

const alone = (turn: Turn): Request => ({ turn, members: [turn.delivery], items: undefined });

function signableOf({ members, items }: Request, target: Target): Signable {
  const [first] = members;
  if (items === undefined) return signable(first.event, first.deliveryId, first.attemptCount + 1);
  const attempt = members.reduce((most, d) => Math.max(most, d.attemptCount + 1), 1);
  const ids = members.map((d) => d.event.eventId);
  return signableBatch(ids, items, target.batch?.format ?? 'json_array', attempt);
}

const PLAIN_HTTP: SendResult = {
  kind: 'failure',
  errorClass: 'blocked_address',
  message: 'the tenant’s quota allows https endpoints only',
  timing: NO_TIMING,
};
