// The worker role: the delivery engine, joined with storage, limits, egress and telemetry.
import { randomBytes } from 'node:crypto';
import { createDeadLetterReports } from '../delivery/dead-letter-reports.ts';
import { createGates } from '../delivery/gates.ts';
import { createHealth } from '../delivery/health.ts';
import { startLeaseEnds } from '../delivery/lease-ends.ts';
import { createRecorder, type Recorder } from '../delivery/recorder.ts';
import { oneByOne } from '../delivery/rounds.ts';
import { createSeat } from '../delivery/seat.ts';
import { startUnparker } from '../delivery/unparker.ts';
import { createWorker, type Worker } from '../delivery/worker.ts';
import { encodeId, uuidOf } from '../domain/ids.ts';
import { createBreakers } from '../limits/breakers.ts';
import { isOperational } from '../publishing/operational-events.ts';
import { writeBreaker } from '../storage/breakers.ts';
import { claim, claimLeftovers, claimLines } from '../storage/claims.ts';
import { databaseUnavailable } from '../storage/database.ts';
import * as health from '../storage/health.ts';
import { putBack } from '../storage/leases.ts';
import { PARKED_FRONT, unpark } from '../storage/parking.ts';
import { writeRecords } from '../storage/records.ts';
import { createSeats } from '../storage/seats.ts';
import type { Listening } from '../storage/wakeups.ts';
import { createWalk } from '../storage/walk.ts';
import { authorizationOf, endpointAllowed } from './egress.ts';
import { readHost } from './host.ts';
import { disableAll, type Shared } from './shared.ts';

/** With as many that wait, the writing of results has fallen behind. */
const MANY_RESULTS = 1_000;

/**
 * Makes the worker, which claims at once; `stack` ends what works for it. Stopping it is the caller’s. `session` is the one
 * that listens for it.
 */
export function startWorker(
  shared: Shared,
  session: Listening['session'],
  stack: AsyncDisposableStack,
): Worker {
  let worker: Worker | undefined;
  const { config, db, configs, log, metrics, monotonic, limits, egress, operational, rightOfWay } = shared;
  const endpoints = stack.use(
    createHealth({
      write: (succeeded, failing) => health.writeHealth(db, succeeded, failing),
      now: monotonic,
      onError: (error) => log.warn({ error: String(error) }, 'the health of endpoints was not written'),
    }),
  );
  const deadLetters = stack.use(
    createDeadLetterReports(({ tenantId, subscriptionId, ...counts }) => {
      const data = { subscriptionId, ...counts };
      operational.emit({ tenantId, type: 'dispatch.delivery.dead_lettered', about: subscriptionId, data });
    }),
  );
  const breakers = createBreakers({
    store: limits,
    holder: shared.instanceId,
    probeLeaseMs: config.leaseMs,
    now: monotonic,
    onTransition: (tenantId, subscriptionId, view) => {
      const { phase, reason, openCount, openForMs } = view;
      metrics.breakerChanged(phase);
      log.info({ tenantId, subscriptionId, phase, reason, openForMs }, 'a breaker changed');
      if (phase === 'half_open') return;
      writeBreaker(db, tenantId, subscriptionId, { phase, reason, openCount, openForMs }).then(
        () => shared.changed(tenantId),
        (error) => log.error(error, 'a breaker’s state could not be written'),
      );
      if (reason === 'probe_failed') return; // it was open before
      const type = phase === 'open' ? 'dispatch.breaker.opened' : 'dispatch.breaker.closed';
      const data = { subscriptionId, ...(phase === 'open' ? { reason, openForMs } : {}) };
      operational.emit({ tenantId, type, about: subscriptionId, data });
    },
    onReady: (tenantId, subscriptionId) => worker?.knows([{ tenantId, subscriptionId }]),
    onError: (error) => log.error(error, 'a breaker failed'),
  });
  const gates = createGates({
    store: limits,
    breakers,
    standing: () => shared.standings().worker,
    isShared: () => limits.health() === 'shared',
    peek: configs.peek,
    get: configs.get,
    now: monotonic,
    onRelease: (tenantId, subscriptionId) => worker?.release(tenantId, subscriptionId),
    onError: (error) => log.error(error, 'a limit failed'),
  });
  const recorder: Recorder = createRecorder({
    write(records, commit) {
      const write = () => writeRecords(db.records, records, commit);
      // What confirmed results let go on waits for them.
      return commit === 'confirmed'
        ? write()
        : rightOfWay.giveWay(() => recorder.backlog() < MANY_RESULTS, write);
    },
    uuidOf: (bytes) => uuidOf(encodeId('dlv', bytes)),
    leaseMs: config.leaseMs,
    now: monotonic,
    isPassing: (error) => databaseUnavailable(error) !== undefined,
    onWritten: () => worker?.recorded(),
    onLeaseLost: (count) => {
      metrics.leaseLost(count);
      log.warn({ count }, 'results were dropped: their leases were lost');
    },
    onError: (error) => log.error(error, 'results could not be recorded; trying again'),
  });
  // Looks from the front may take long where much is not vacuumed: never more than one of the connections that claim.
  const fronts = oneByOne();
  stack.use(
    startUnparker({
      unpark(after) {
        const look = () => unpark(db.claims, after);
        return after === PARKED_FRONT ? fronts(look) : look();
      },
      onError: (error) =>
        log.warn({ error: String(error) }, 'parked deliveries were not looked at; trying again'),
    }),
  );
  stack.use(
    startLeaseEnds({
      putBack(afterUs) {
        const look = () => putBack(db.claims, afterUs);
        return afterUs === 0 ? fronts(look) : look();
      },
      onBack: (heads) => worker?.found(heads),
      onError: (error) =>
        log.warn({ error: String(error) }, 'leases that ended were not looked for; trying again'),
    }),
  );
  const timed = async <T>(work: (nowMs: number) => Promise<T>): Promise<T> => {
    const beganMs = monotonic();
    const claimed = await work(beganMs);
    metrics.claimTook((monotonic() - beganMs) / 1000);
    return claimed;
  };
  const host = readHost();
  const seats = createSeats(session, host?.id ?? '', host?.coreCount ?? 0, (error) =>
    log.warn({ error: String(error) }, 'no seat could be asked for; this worker goes on'),
  );
  const coreTicks = () => host?.coreTicks();
  const seat = createSeat({ ...seats, coreTicks, utilization: loopUtilization(), now: monotonic });
  const created = createWorker({
    stepsBack: seat.stepsBack,
    walk: createWalk(db.claims),
    runsLow: rightOfWay.recheck,
    claim: (queues, canWait) =>
      rightOfWay.giveWay(canWait, () =>
        timed((nowMs) => claim(db.claims, queues, randomBytes(16), config.leaseMs, nowMs)),
      ),
    claimLines: (queue, which) =>
      timed((nowMs) => claimLines(db.claims, queue, which, randomBytes(16), config.leaseMs, nowMs)),
    claimLeftovers: (queue, room) =>
      timed((nowMs) => claimLeftovers(db.claims, queue, room, randomBytes(16), config.leaseMs, nowMs)),
    configs,
    send: egress.sender.send,
    recorder,
    gates,
    authorization: authorizationOf(egress),
    unauthorized: ({ subscriptionId, credentials }) => {
      if (credentials.auth !== undefined) egress.authorizer.refused(subscriptionId, credentials.auth);
    },
    mayBeSent: endpointAllowed(egress),
    disable: (tenantId, reasons) => disableAll(shared, tenantId, reasons),
    onResult: (delivery, verdict) => {
      const { tenantId, subscriptionId, event } = delivery;
      endpoints.report(tenantId, subscriptionId, verdict.kind === 'succeeded');
      if (verdict.kind === 'dead' && !isOperational(event.type)) deadLetters.add(delivery, verdict.reason);
    },
    maxInFlight: config.maxInFlight,
    leaseMs: config.leaseMs,
    userAgent: `dispatch/${shared.version}`,
    now: Date.now,
    databaseNow: shared.databaseNow,
    monotonic,
    utilization: loopUtilization(),
    random: Math.random,
    onAttempt: (event) => {
      metrics.attempted(event);
      log.attempt(event);
    },
    onClaimed: metrics.claimed,
    onError: (error, message) => log.error(error, message),
  });
  metrics.observeWorker({
    queueDepth: created.waitingCount,
    inFlight: created.inFlightCount,
    recordBacklog: recorder.backlog,
    endpointPools: egress.sender.poolCount,
    steppedBack: () => (seat.isBack() ? 1 : 0),
  });
  worker = created;
  return created;
}

/** Says how busy the event loop was since it was asked last. */
function loopUtilization(): () => number {
  let last = performance.eventLoopUtilization();
  return () => {
    const now = performance.eventLoopUtilization();
    const { utilization } = performance.eventLoopUtilization(now, last);
    last = now;
    return utilization;
  };
}
