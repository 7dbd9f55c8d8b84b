// The composition root: every long-lived thing is built here once, from configuration, and disposed of in reverse.
import { randomBytes, randomUUID } from 'node:crypto';
import type { Config } from './config.ts';
import { createDeadLetterReports } from './delivery/dead-letter-reports.ts';
import { createGates } from './delivery/gates.ts';
import { createHealth } from './delivery/health.ts';
import { createRecorder } from './delivery/recorder.ts';
import { createTestDelivery } from './delivery/test-delivery.ts';
import { createWorker, type Worker } from './delivery/worker.ts';
import { createAlarm } from './domain/alarm.ts';
import { ITSELF, PLATFORM } from './domain/audit.ts';
import { createDatabaseClock } from './domain/database-clock.ts';
import {
  createIdSource,
  encodeId,
  type IdSource,
  type SubscriptionId,
  type TenantId,
  uuidOf,
} from './domain/ids.ts';
import { type Authorizer, createAuthorizer } from './egress/authorization.ts';
import { createConnect } from './egress/connector.ts';
import { createFetcher, type Fetcher } from './egress/fetcher.ts';
import { type AddressGuard, createAddressGuard } from './egress/guard.ts';
import { createResolver } from './egress/resolver.ts';
import { createSender, type Sender } from './egress/sender.ts';
import { createBreakers } from './limits/breakers.ts';
import { createPublishRate } from './limits/publish-rate.ts';
import { connectRedis } from './limits/redis-client.ts';
import { createSharedLimits, type SharedLimits } from './limits/shared-limits.ts';
import { createEndpointTasks } from './maintenance/endpoints.ts';
import { createHistoryTasks } from './maintenance/history.ts';
import { createMaintenance, type Maintenance } from './maintenance/maintenance.ts';
import { createPurgeTasks } from './maintenance/purge.ts';
import { createSnapshotWatch, MAX_SNAPSHOT_SECONDS } from './maintenance/snapshots.ts';
import { createAdmission } from './publishing/admission.ts';
import { createGroupCommit, type GroupCommit, LANES, MAX_UNDER_WAY } from './publishing/group-commit.ts';
import {
  createOperationalEvents,
  isOperational,
  type OperationalEvents,
} from './publishing/operational-events.ts';
import { runReplaysOnce } from './publishing/replay.ts';
import { createAuthenticate } from './rpc/authentication.ts';
import { createCallPath } from './rpc/call-path.ts';
import { type Page, startConnectServer } from './rpc/connect-server.ts';
import { createDeadLetterService } from './rpc/dead-letter-service.ts';
import { createEventService } from './rpc/event-service.ts';
import { type RpcServer, type ServerAddress, startGrpcServer } from './rpc/grpc-server.ts';
import { createJwtVerifier } from './rpc/jwt.ts';
import { createPublishService } from './rpc/publish-service.ts';
import { createRefusalLog } from './rpc/refusal-log.ts';
import { createSubscriptionService } from './rpc/subscription-service.ts';
import { createTenantService } from './rpc/tenant-service.ts';
import { findKey, noteKeyUse } from './storage/api-keys.ts';
import { pruneAudit, writeAudit } from './storage/audit.ts';
import { writeBreaker } from './storage/breakers.ts';
import { claim, claimLeftovers, claimLines, type QueueKey } from './storage/claims.ts';
import { asOwner, type Database, databaseUnavailable, openDatabase } from './storage/database.ts';
import * as health from './storage/health.ts';
import { ingest, ingestNearLimit } from './storage/ingest.ts';
import { beat, HEARTBEAT_MS, leave, type Standings } from './storage/instances.ts';
import { stopLeading, tryLead } from './storage/leaders.ts';
import { dropHistory, ensurePartitions } from './storage/partitions.ts';
import * as purges from './storage/purges.ts';
import { writeRecords } from './storage/records.ts';
import { type Replay, runningReplays, stepReplay } from './storage/replays.ts';
import { assertMasterKeys, createRewrap } from './storage/secret-keys.ts';
import { oldestSnapshotSeconds } from './storage/snapshots.ts';
import { disableSubscriptions, setSubscriptionState } from './storage/subscriptions.ts';
import { createTenantConfigs, type Target, type TenantConfigs } from './storage/tenant-configs.ts';
import { shorterHistories } from './storage/tenants.ts';
import { countBacklog, foldUsage, pruneUsage, takeUsageSlot } from './storage/usage.ts';
import { createNotifier, listen, type Notifier } from './storage/wakeups.ts';
import { createWalk } from './storage/walk.ts';
import type { Log } from './telemetry/logger.ts';
import { createMetrics, type Metrics } from './telemetry/metrics.ts';

/** What compose needs beside the configuration: what main found out or made. */
export type Ready = {
  readonly config: Config;
  /** A migrated database, as its owner; through a pooler, if the configuration has a direct URL, too. */
  readonly databaseUrl: string;
  readonly adminKey: string;
  readonly masterKeys: Config['masterKeys'];
  readonly version: string;
  readonly log: Log;
};

/** A running instance. */
export type Instance = AsyncDisposable & {
  /** Undefined without the api role. */
  readonly httpPort: number | undefined;
  readonly grpcPort: number | undefined;
};

/** Starts the roles of this process. Disposing drains: no call fails, what is in hand is finished or given back. */
export async function startInstance(ready: Ready): Promise<Instance> {
  const { config, log } = ready;
  const { roles } = config;
  const metrics = createMetrics();
  const stack = new AsyncDisposableStack();
  stack.defer(log.flush);
  try {
    const onIdleError = (error: Error) =>
      log.warn({ error: error.message }, 'an idle database connection broke');
    const { databasePoolSize, directDatabaseUrl } = config;
    const db = await openDatabase(ready.databaseUrl, databasePoolSize, onIdleError, directDatabaseUrl);
    stack.use(db);
    metrics.observePool(() => ({
      used: db.engine.totalCount - db.engine.idleCount,
      idle: db.engine.idleCount,
      waiting: db.engine.waitingCount,
    }));
    await assertMasterKeys(db, ready.masterKeys);
    const monotonic = () => performance.now();
    const configs = createTenantConfigs(db, ready.masterKeys, config.defaultQuota, monotonic, (error) =>
      log.error(error, 'tenant configurations could not be checked'),
    );
    const notifier = createNotifier(db.engine, (error) =>
      log.warn({ error: String(error) }, 'a wake-up was not sent'),
    );
    stack.use(notifier);
    const instanceId = randomUUID();
    const { standings, skewSeconds, databaseNow } = await startHeartbeat(db, instanceId, config, log, stack);
    metrics.observeClock(skewSeconds);
    const limits = startLimits(config, standings, log, stack);
    metrics.observeLimits(() => limits.health());
    const guard = createAddressGuard(config.allowEndpointCidrs);
    const connect = createConnect(guard, createResolver(config.dnsServers));
    const fetcher = createFetcher(connect);
    const sender = stack.use(createSender(connect, monotonic));
    const authorizer = createAuthorizer(fetcher, monotonic);
    const egress = { guard, fetcher, sender, authorizer };
    const ids = createIdSource(databaseNow, randomBytes);
    const base = {
      ...ready,
      db,
      configs,
      notifier,
      metrics,
      monotonic,
      instanceId,
      standings,
      skewSeconds,
      databaseNow,
      limits,
      egress,
      ids,
    };
    const changed = (tenantId: TenantId) => {
      configs.forget(tenantId);
      notifier.changed(tenantId);
    };
    const operational = stack.use(await startOperationalEvents(base));
    const test = createTestDelivery({
      reload: configs.reload,
      send: sender.send,
      authorization: authorizationOf(egress),
      mayBeSent: (target) => schemeAllowed(egress, target, target.origin),
      ids,
      randomBytes,
      userAgent: `dispatch/${ready.version}`,
      now: Date.now,
      monotonic,
    });
    const all: Shared = { ...base, changed, operational, test };
    const worker = roles.has('worker') ? startWorker(all, stack) : undefined;
    if (worker !== undefined) stack.defer(() => worker.stop(config.shutdownGraceMs));
    const maintenance = roles.has('maintenance') ? startMaintenance(all, worker) : undefined;
    if (maintenance !== undefined) stack.defer(maintenance.stop);
    stack.use(
      listen(db.ownerUrl, {
        onReady: (queues) => worker?.poke(queues),
        onChanged: (tenantIds) => {
          if (tenantIds === undefined) configs.forget(undefined);
          else for (const tenantId of tenantIds) configs.forget(tenantId);
          maintenance?.poke();
        },
        onError: (error) =>
          log.warn({ error: String(error) }, 'the LISTEN connection was lost; polling goes on'),
      }),
    );
    const ports = roles.has('api') ? await startApi(all, worker, stack) : undefined;
    return {
      httpPort: ports?.httpPort,
      grpcPort: ports?.grpcPort,
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

type Base = Ready & {
  readonly db: Database;
  readonly configs: TenantConfigs;
  readonly notifier: Notifier;
  readonly metrics: Metrics;
  readonly monotonic: () => number;
  /** This process among all, for a while: new at each start. */
  readonly instanceId: string;
  readonly standings: () => Standings;
  /** By how much the host's clock is ahead of the database's. */
  readonly skewSeconds: () => number;
  /** The database's clock, in ms since 1970. */
  readonly databaseNow: () => number;
  readonly limits: SharedLimits;
  readonly egress: Egress;
  readonly ids: IdSource;
};

type Shared = Base & {
  /** Tells every instance, this one at once, that a tenant or its subscriptions changed. */
  readonly changed: (tenantId: TenantId) => void;
  readonly operational: OperationalEvents;
  readonly test: ReturnType<typeof createTestDelivery>;
};

/** Everything that goes out to addresses that tenants or configuration name. */
type Egress = {
  readonly guard: AddressGuard;
  readonly fetcher: Fetcher;
  readonly sender: Sender;
  readonly authorizer: Authorizer;
};

/** Schedules, leases and ids are the database's, but signatures have the host's time, and receivers may refuse them. */
const MAX_SKEW_SECONDS = 30;

type Heartbeat = Pick<Base, 'standings' | 'skewSeconds' | 'databaseNow'>;

/** Says every 10 s that this instance is alive, and keeps what it hears of the others and of the database's clock. */
async function startHeartbeat(
  db: Database,
  instanceId: string,
  { roles }: Config,
  log: Log,
  stack: AsyncDisposableStack,
): Promise<Heartbeat> {
  let skewSeconds = 0;
  const clock = createDatabaseClock(() => performance.now(), Date.now);
  const alarm = createAlarm(MAX_SKEW_SECONDS, (isPassed) => {
    if (isPassed) log.warn({ skewSeconds }, 'the clocks of this host and of the database differ');
    else log.info({ skewSeconds }, 'the clocks of this host and of the database agree again');
  });
  const beatOnce = async (): Promise<Standings> => {
    const beganMs = performance.now();
    const { databaseNowMs, ...heard } = await beat(db, instanceId, roles);
    clock.saw(databaseNowMs, beganMs, performance.now());
    skewSeconds = (Date.now() - clock.now()) / 1000;
    alarm(Math.abs(skewSeconds));
    return heard;
  };
  let standings = await beatOnce();
  let beating = Promise.resolve();
  const timer = setInterval(() => {
    beating = beatOnce().then(
      (heard) => {
        standings = heard;
      },
      (error) => log.warn({ error: String(error) }, 'a heartbeat was not written; the last one counts'),
    );
  }, HEARTBEAT_MS);
  stack.defer(async () => {
    clearInterval(timer);
    await beating;
    await leave(db, instanceId).catch((error) => log.warn({ error: String(error) }, 'not signed off'));
  });
  return { standings: () => standings, skewSeconds: () => skewSeconds, databaseNow: clock.now };
}

function startLimits(
  config: Config,
  standings: () => Standings,
  log: Log,
  stack: AsyncDisposableStack,
): SharedLimits {
  const share = (kind: 'publish' | 'deliver') => {
    const { api, worker } = standings();
    // A worker may wait until the others have heard of it; a caller that publishes may not.
    return kind === 'publish' ? 1 / api.count : worker.isSettled ? 1 / worker.count : 0;
  };
  if (config.redis === undefined) return createSharedLimits(undefined, share);
  const client = stack.use(
    connectRedis(config.redis, (isUp, error) => {
      if (isUp) log.info({}, 'Redis is there: limits are shared');
      else log.warn({ error: String(error) }, 'Redis is away: limits are kept by each instance');
    }),
  );
  return createSharedLimits(client, share);
}

/** Whether a scheme is one that a target's tenant may have. Exceptions from the guard are exceptions from https, too. */
const schemeAllowed = ({ guard }: Egress, { allowHttp }: Target, url: string) =>
  allowHttp || !url.startsWith('http:') || guard.urlProblem(new URL(url), false) === undefined;

/** The same for the endpoint of a target, which is asked before every attempt: worked out once for each target. */
function endpointAllowed(egress: Egress): (target: Target) => boolean {
  const known = new WeakMap<Target, boolean>();
  return (target) => {
    let isAllowed = known.get(target);
    if (isAllowed === undefined) {
      isAllowed = schemeAllowed(egress, target, target.origin);
      known.set(target, isAllowed);
    }
    return isAllowed;
  };
}

/** The authorization header of a target's attempts. */
const authorizationOf = (egress: Egress) => (target: Target) => {
  const { auth } = target.credentials;
  if (auth === undefined) return undefined;
  if (auth.kind === 'oauth2' && !schemeAllowed(egress, target, auth.tokenUrl)) {
    return Promise.reject(new Error('the tenant’s quota allows https token URLs only'));
  }
  return egress.authorizer.of(target.subscriptionId, auth);
};

/** dispatch's own events: they are stored as any, wherever this process's roles come upon what they tell. */
async function startOperationalEvents(base: Base): Promise<OperationalEvents> {
  const { db, configs, notifier, ids, log } = base;
  return createOperationalEvents({
    reload: configs.reload,
    get: configs.get,
    ingest: (batch) => ingest(db.engine, batch),
    ids,
    randomBytes,
    slot: (await takeUsageSlot(db)) * LANES,
    ready: (queues) => notifier.ready(queues),
    onError: (error, { tenantId, type }) =>
      log.error(error, 'an event of our own was dropped', { tenantId, type }),
  });
}

/** Disables subscriptions because of their endpoints, and tells their tenant. */
async function disableAll(
  { db, changed, operational }: Shared,
  tenantId: TenantId,
  reasons: ReadonlyMap<SubscriptionId, string>,
): Promise<void> {
  const changes = [...reasons].map(([resource, reason]) => ({
    ...ITSELF,
    action: 'subscription.disable',
    resource,
    detail: { reason },
  }));
  const disabled = await disableSubscriptions(db.audited(...changes), tenantId, reasons);
  changed(tenantId);
  for (const subscriptionId of disabled) {
    const data = { subscriptionId, reason: reasons.get(subscriptionId) ?? '' };
    operational.emit({ tenantId, type: 'dispatch.subscription.disabled', about: subscriptionId, data });
  }
}

function startWorker(shared: Shared, stack: AsyncDisposableStack): Worker {
  let worker: Worker | undefined;
  const { config, db, configs, log, metrics, monotonic, limits, egress, operational } = shared;
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
    onReady: (tenantId, subscriptionId) => worker?.poke([{ tenantId, subscriptionId }]),
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
  const recorder = createRecorder({
    write: (records, isConfirmed) => writeRecords(db.records, records, isConfirmed),
    uuidOf: (bytes) => uuidOf(encodeId('dlv', bytes)),
    leaseMs: config.leaseMs,
    isPassing: (error) => databaseUnavailable(error) !== undefined,
    onWritten: () => worker?.recorded(),
    onLeaseLost: (count) => {
      metrics.leaseLost(count);
      log.warn({ count }, 'results were dropped: their leases were lost');
    },
    onError: (error) => log.error(error, 'results could not be recorded; trying again'),
  });
  const timed = async <T>(work: (nowMs: number) => Promise<T>): Promise<T> => {
    const beganMs = monotonic();
    const claimed = await work(beganMs);
    metrics.claimTook((monotonic() - beganMs) / 1000);
    return claimed;
  };
  const created = createWorker({
    walk: createWalk(db.claims),
    claim: (queues) => timed((nowMs) => claim(db.claims, queues, randomBytes(16), config.leaseMs, nowMs)),
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

const LEADER = 'maintenance';

function startMaintenance(shared: Shared, worker: Worker | undefined): Maintenance {
  const { config, db, log, metrics, notifier, operational, test } = shared;
  const holder = randomUUID();
  const readyAny = () => worker?.poke(undefined);
  const queueReady = (queue: QueueKey) => {
    worker?.poke([queue]);
    notifier.ready([queue]);
  };
  return createMaintenance({
    tryLead: (ttlMs) => tryLead(db, LEADER, holder, ttlMs),
    stopLeading: () => stopLeading(db, LEADER, holder),
    runReplays: () =>
      runReplaysOnce({
        running: () => runningReplays(db),
        step: (r) => stepReplay(db, r),
        onFinished: (replay) => tellReplay(shared, replay),
        onError: (error) => log.error(error, 'a replay failed; it will be tried again'),
        readyAny,
      }),
    endpoints: createEndpointTasks({
      tasks: () => health.healthTasks(db, config.defaultPolicy),
      disable: ({ tenantId, subscriptionId }, reason) =>
        disableAll(shared, tenantId, new Map([[subscriptionId, reason]])),
      noteProbe: (queue) => health.noteProbe(db, queue, config.defaultPolicy),
      probe: async ({ tenantId, subscriptionId }) => {
        const payload = Buffer.from('{"type":"dispatch.probe"}');
        return (await test.test(tenantId, subscriptionId, { type: 'dispatch.probe', payload })).succeeded;
      },
      enable: async (queue) => {
        const { tenantId, subscriptionId } = queue;
        const detail = { reason: 'a probe succeeded' };
        const change = { ...ITSELF, action: 'subscription.enable', resource: subscriptionId, detail };
        await setSubscriptionState(db.audited(change), tenantId, subscriptionId, 'active');
        shared.changed(tenantId);
        queueReady(queue);
        const data = { subscriptionId, ...detail };
        operational.emit({ tenantId, type: 'dispatch.subscription.enabled', about: subscriptionId, data });
      },
      takeAlerts: () => health.takeQuotaAlerts(db, config.defaultQuota),
      onAlert: ({ tenantId, ...data }) =>
        operational.emit({ tenantId, type: 'dispatch.quota.threshold', about: undefined, data }),
      onError: (error) => log.error(error, 'an endpoint could not be looked after'),
    }),
    purge: createPurgeTasks({
      deletedSubscriptions: () => purges.deletedSubscriptions(db),
      purgeSubscription: (tenantId, uuid) => purges.purgeSubscription(db, tenantId, uuid),
      deletingTenants: () => purges.deletingTenants(db),
      purgeTenant: async (tenantId) => {
        const count = await purges.purgeTenant(db, tenantId);
        if (count === 0) return 0;
        const isLast = (await purges.deletingTenants(db)).every((id) => id !== tenantId);
        const change = { ...ITSELF, action: 'tenant.purge', resource: tenantId, detail: {} };
        if (isLast) await writeAudit(db, PLATFORM, shared.ids.next('aud'), change);
        return count;
      },
      purgeIdempotencyKeys: () => purges.purgeIdempotencyKeys(db),
      foldUsage: () => foldUsage(db),
      rewrapSecrets: createRewrap(db, shared.masterKeys, randomBytes, (error) =>
        log.error(error, 'a secret could not be sealed anew'),
      ),
      pruneAudit: () => pruneAudit(db.ownerUrl, config.auditDays),
      pruneUsage: () => pruneUsage(db),
      expireDeadLetters: () => health.expireDeadLetters(db, config.defaultPolicy),
      pruneAlerts: () => health.pruneQuotaAlerts(db),
    }),
    history: createHistoryTasks({
      makePartitions: () => asOwner(db.ownerUrl, ensurePartitions),
      dropHistory: (keepFromMs) => asOwner(db.ownerUrl, (client) => dropHistory(client, keepFromMs)),
      purgeBefore: (beforeMs) => purges.purgeBefore(db, beforeMs),
      expireDeliveries: (beforeMs) => purges.expireDeliveries(db, beforeMs),
      databaseNowMs: () => purges.databaseNowMs(db),
      shorterHistories: () => shorterHistories(db, config.defaultQuota.historyDays),
      purgeHistoryOf: (tenantId, beforeMs) => purges.purgeHistoryOf(db, tenantId, beforeMs),
      historyDays: config.historyDays,
    }),
    snapshots: createSnapshotWatch({
      read: () => oldestSnapshotSeconds(db.ownerUrl),
      onAge: metrics.oldestSnapshot,
      onChange: (isTooOld, seconds) => {
        if (isTooOld) {
          const message =
            'a transaction is so old that vacuum cannot remove what was deleted since: claims become slower';
          log.warn({ seconds, atMost: MAX_SNAPSHOT_SECONDS }, message);
        } else log.info({ seconds }, 'the old transaction has ended');
      },
    }),
    onDone: (kind, count) => {
      metrics.maintained(kind, count);
      log.info({ kind, count }, 'maintenance');
    },
    onError: (error, task) => log.error(error, 'maintenance failed; it will be tried again', { task }),
  });
}

/** Tells a tenant that a replay job is over. */
function tellReplay({ operational }: Shared, replay: Replay): void {
  const { tenantId, replayId, state, replayedCount, totalCount, what } = replay;
  const ofEvents = what.kind === 'events' ? { subscriptionId: what.subscriptionId } : {};
  const data = { replayId, state, kind: what.kind, replayedCount, totalCount, ...ofEvents };
  operational.emit({ tenantId, type: 'dispatch.replay.finished', about: undefined, data });
}

async function startGroupCommit(shared: Shared, worker: Worker | undefined): Promise<GroupCommit> {
  const { config, db, configs, notifier, log, metrics, monotonic } = shared;
  return createGroupCommit({
    ingest: (batch) => ingest(db.engine, batch),
    ingestNearLimit: (batch) => ingestNearLimit(db.engine, batch),
    admission: createAdmission({
      rate: createPublishRate(shared.limits, monotonic),
      countBacklog: (tenantId, upTo) => countBacklog(db.engine, tenantId, upTo),
      now: monotonic,
      onError: (error) => log.warn({ error: String(error) }, 'a backlog could not be counted'),
    }),
    margin: () => 2 * MAX_UNDER_WAY * shared.standings().api.count,
    usageSlot: await takeUsageSlot(db),
    configs,
    localWorker: worker,
    ready: (queues) => {
      const list = [...queues];
      worker?.poke(list);
      notifier.ready(list);
    },
    ids: shared.ids,
    randomBytes,
    leaseMs: config.leaseMs,
    unavailable: databaseUnavailable,
    onCommit: metrics.groupCommitted,
    onError: (error) => log.error(error, 'a group commit failed'),
  });
}

async function startApi(
  shared: Shared,
  worker: Worker | undefined,
  stack: AsyncDisposableStack,
): Promise<{ httpPort: number; grpcPort: number }> {
  const { config, db, notifier, log, metrics, monotonic, changed, egress, ids } = shared;
  const { guard } = egress;
  const groupCommit = await startGroupCommit(shared, worker);
  stack.defer(groupCommit.idle);
  const ready = (tenantId: TenantId, subscriptionId: SubscriptionId) => {
    const queues = [{ tenantId, subscriptionId }];
    worker?.poke(queues);
    notifier.ready(queues);
  };
  for (const { jwksUrl } of config.jwtIssuers) {
    const problem = guard.urlProblem(new URL(jwksUrl), false);
    if (problem !== undefined) throw new Error(`DISPATCH_JWT_ISSUERS: jwksUrl ${jwksUrl} ${problem}`);
  }
  const refusals = createRefusalLog((refusal, count) => {
    const { tenantId, actor, address, action, detail } = refusal;
    const change = { actor, address, action, resource: '', detail: { ...detail, count } };
    return writeAudit(db, tenantId, ids.next('aud'), change).catch((error) =>
      log.warn({ error: String(error) }, 'refusals could not be written to the audit log'),
    );
  });
  stack.defer(refusals.flush);
  const { masterKeys, test } = shared;
  const { defaultQuota, defaultPolicy, historyDays } = config;
  const services = [
    createPublishService({ groupCommit, now: Date.now, onOutcome: metrics.published }),
    createSubscriptionService({
      db,
      guard,
      masterKeys,
      defaultQuota,
      ids,
      randomBytes,
      now: Date.now,
      changed,
      ready,
      test: test.test,
      verify: test.verify,
      defaultPolicy,
    }),
    createEventService({ db, ids, ready, changed }),
    createDeadLetterService({ db, ids, ready, changed }),
    createTenantService({ db, ids, randomBytes, defaultQuota, historyDays, now: Date.now, changed }),
  ];
  const path = createCallPath({
    authenticate: createAuthenticate({
      adminKey: shared.adminKey,
      findKey: (keyId) => findKey(db, keyId),
      noteUse: (keyId) => {
        noteKeyUse(db, keyId).catch((error) =>
          log.warn({ error: String(error) }, 'a key’s use was not noted'),
        );
      },
      verifyJwt: createJwtVerifier(config.jwtIssuers, egress.fetcher, Date.now),
      onRefused: ({ tenantId, actor, address, reason }) => {
        metrics.refused(reason);
        refusals.add({ tenantId, actor, address, action: 'credential.refused', detail: { reason } });
      },
      refusalsPerMinute: config.refusalsPerMinute,
      now: monotonic,
    }),
    onDenied: ({ tenantId, actor }, method, address, reason) => {
      metrics.refused('permission_denied');
      const detail = { method, reason };
      refusals.add({ tenantId: tenantId ?? PLATFORM, actor, address, action: 'permission.denied', detail });
    },
    unavailable: databaseUnavailable,
    now: monotonic,
    onCall: (method, error, seconds, tenantId) => {
      const code = error?.code ?? 'OK';
      metrics.called(method, code, seconds);
      const ours = error?.code === 'INTERNAL';
      const told = () => ({ method, code, ms: seconds * 1000, tenantId });
      log.rpc(() => (ours ? { ...told(), err: error.cause ?? error } : told()), ours);
    },
  });
  const closeBoth = (server: RpcServer) => stack.defer(() => server.close(config.shutdownGraceMs));
  const address = (port: number): ServerAddress => ({
    host: config.host,
    port,
    maxConnections: config.maxConnections,
    tls: config.tls,
    onReload: (error) => {
      if (error === undefined) log.info({ port }, 'new certificates are in use');
      else log.error(error, 'new certificates could not be used; the old ones go on', { port });
    },
  });
  const http = await startConnectServer(services, path, pages(shared), address(config.httpPort));
  closeBoth(http);
  const grpc = await startGrpcServer(services, path, address(config.grpcPort));
  closeBoth(grpc);
  return { httpPort: http.port, grpcPort: grpc.port };
}

function pages({ db, metrics, limits, skewSeconds }: Shared): Readonly<Record<string, Page>> {
  const text = (status: number, body: string) => ({ status, contentType: 'text/plain', body: `${body}\n` });
  const degraded = () => {
    const reasons = [
      ...(limits.health() === 'degraded' ? ['Redis is away, limits are local'] : []),
      ...(Math.abs(skewSeconds()) > MAX_SKEW_SECONDS
        ? ['the clocks of this host and of the database differ']
        : []),
    ];
    return reasons.length === 0 ? undefined : `degraded: ${reasons.join('; ')}`;
  };
  return {
    '/healthz': async () => text(200, 'ok'),
    '/readyz': () =>
      db.engine.query({ name: 'ready', text: 'SELECT 1' }).then(
        () => text(200, degraded() ?? 'ready'),
        () => text(503, 'the database is not available'),
      ),
    '/metrics': async () => ({
      status: 200,
      contentType: metrics.registry.contentType,
      body: await metrics.registry.metrics(),
    }),
  };
}
