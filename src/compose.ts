// The composition root: every long-lived thing is built here once, from configuration, and disposed of in reverse.
import { randomBytes, randomUUID } from 'node:crypto';
import type { Config } from './config.ts';
import { createRecorder } from './delivery/recorder.ts';
import { createWorker, type Worker } from './delivery/worker.ts';
import { createIdSource, type SubscriptionId, type TenantId } from './domain/ids.ts';
import { createAddressGuard } from './egress/guard.ts';
import { createSender, type Sender } from './egress/sender.ts';
import { createHistoryTasks } from './maintenance/history.ts';
import { createMaintenance, type Maintenance } from './maintenance/maintenance.ts';
import { createPurgeTasks } from './maintenance/purge.ts';
import { createGroupCommit, type GroupCommit } from './publishing/group-commit.ts';
import { runReplaysOnce } from './publishing/replay.ts';
import { createAuthenticate } from './rpc/authentication.ts';
import { createCallPath } from './rpc/call-path.ts';
import { type Page, startConnectServer } from './rpc/connect-server.ts';
import { createDeadLetterService } from './rpc/dead-letter-service.ts';
import { createEventService } from './rpc/event-service.ts';
import { type RpcServer, startGrpcServer } from './rpc/grpc-server.ts';
import { createPublishService } from './rpc/publish-service.ts';
import { createSubscriptionService } from './rpc/subscription-service.ts';
import { createTenantService } from './rpc/tenant-service.ts';
import { findLiveKey } from './storage/api-keys.ts';
import { claim, positionAfter, WALK_START, walkQueues } from './storage/claims.ts';
import { asOwner, type Database, databaseUnavailable, openDatabase } from './storage/database.ts';
import { runningReplays, stepReplay } from './storage/dead-letters.ts';
import { ingest } from './storage/ingest.ts';
import { stopLeading, tryLead } from './storage/leaders.ts';
import { dropHistory, ensurePartitions } from './storage/partitions.ts';
import * as purges from './storage/purges.ts';
import { writeRecords } from './storage/records.ts';
import { assertMasterKeys } from './storage/secret-keys.ts';
import { setSubscriptionState } from './storage/subscriptions.ts';
import { createTenantConfigs, type TenantConfigs } from './storage/tenant-configs.ts';
import { createNotifier, listen, type Notifier } from './storage/wakeups.ts';
import type { Log } from './telemetry/logger.ts';
import { createMetrics, type Metrics } from './telemetry/metrics.ts';

/** What compose needs beside the configuration: what main found out or made. */
export type Ready = {
  readonly config: Config;
  /** A migrated database, as its owner. */
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
    const db = await openDatabase(ready.databaseUrl, config.databasePoolSize, (error) =>
      log.warn({ error: error.message }, 'an idle database connection broke'),
    );
    stack.use(db);
    metrics.observePool(() => ({
      used: db.engine.totalCount - db.engine.idleCount,
      idle: db.engine.idleCount,
      waiting: db.engine.waitingCount,
    }));
    await assertMasterKeys(db, ready.masterKeys);
    const monotonic = () => performance.now();
    const configs = createTenantConfigs(db, ready.masterKeys, monotonic, (error) =>
      log.error(error, 'tenant configurations could not be checked'),
    );
    const notifier = createNotifier(db.engine, (error) =>
      log.warn({ error: String(error) }, 'a wake-up was not sent'),
    );
    stack.use(notifier);
    const shared: Shared = { ...ready, db, configs, notifier, metrics, monotonic, changed: () => {} };
    const sender = roles.has('worker')
      ? stack.use(createSender(createAddressGuard(config.allowEndpointCidrs), monotonic))
      : undefined;
    const changed = (tenantId: TenantId) => {
      configs.forget(tenantId);
      notifier.changed(tenantId);
    };
    const all: Shared = { ...shared, changed };
    const worker = sender === undefined ? undefined : startWorker(all, sender);
    if (worker !== undefined) stack.defer(() => worker.stop(config.shutdownGraceMs));
    const maintenance = roles.has('maintenance') ? startMaintenance(all, worker) : undefined;
    if (maintenance !== undefined) stack.defer(maintenance.stop);
    stack.use(
      listen(ready.databaseUrl, {
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

type Shared = Ready & {
  readonly db: Database;
  readonly configs: TenantConfigs;
  readonly notifier: Notifier;
  readonly metrics: Metrics;
  readonly monotonic: () => number;
  /** Tells every instance, this one at once, that a tenant or its subscriptions changed. */
  readonly changed: (tenantId: TenantId) => void;
};

function startWorker(shared: Shared, sender: Sender): Worker {
  let worker: Worker | undefined;
  const { config, db, configs, log, metrics, monotonic } = shared;
  const recorder = createRecorder({
    write: (records) => writeRecords(db.engine, records),
    leaseMs: config.leaseMs,
    isPassing: (error) => databaseUnavailable(error) !== undefined,
    onWritten: () => worker?.recorded(),
    onLeaseLost: (count) => {
      metrics.leaseLost(count);
      log.warn({ count }, 'results were dropped: their leases were lost');
    },
    onError: (error) => log.error(error, 'results could not be recorded; trying again'),
  });
  const created = createWorker({
    walk: (from, limit) => walkQueues(db.engine, from, limit),
    positionAfter,
    walkStart: WALK_START,
    claim: (queues) => claim(db.engine, queues, randomBytes(16), config.leaseMs, monotonic()),
    configs,
    send: sender.send,
    recorder,
    disable: async (tenantId, subscriptionId, reason) => {
      await setSubscriptionState(db, tenantId, subscriptionId, 'disabled', reason);
      shared.changed(tenantId);
    },
    maxInFlight: config.maxInFlight,
    leaseMs: config.leaseMs,
    userAgent: `dispatch/${shared.version}`,
    now: Date.now,
    monotonic,
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
    endpointPools: sender.poolCount,
  });
  worker = created;
  return created;
}

const LEADER = 'maintenance';

function startMaintenance(shared: Shared, worker: Worker | undefined): Maintenance {
  const { config, db, log, metrics } = shared;
  const holder = randomUUID();
  const readyAny = () => worker?.poke(undefined);
  return createMaintenance({
    tryLead: (ttlMs) => tryLead(db, LEADER, holder, ttlMs),
    stopLeading: () => stopLeading(db, LEADER, holder),
    runReplays: () =>
      runReplaysOnce({
        running: () => runningReplays(db),
        step: (r) => stepReplay(db, r),
        onError: (error) => log.error(error, 'a replay failed; it will be tried again'),
        readyAny,
      }),
    purge: createPurgeTasks({
      deletedSubscriptions: () => purges.deletedSubscriptions(db),
      purgeSubscription: (tenantId, uuid) => purges.purgeSubscription(db, tenantId, uuid),
      deletingTenants: () => purges.deletingTenants(db),
      purgeTenant: (tenantId) => purges.purgeTenant(db, tenantId),
      purgeIdempotencyKeys: () => purges.purgeIdempotencyKeys(db),
    }),
    history: createHistoryTasks({
      makePartitions: () => asOwner(db.ownerUrl, ensurePartitions),
      dropHistory: (keepFromMs) => asOwner(db.ownerUrl, (client) => dropHistory(client, keepFromMs)),
      purgeBefore: (beforeMs) => purges.purgeBefore(db, beforeMs),
      expireDeliveries: (beforeMs) => purges.expireDeliveries(db, beforeMs),
      databaseNowMs: () => purges.databaseNowMs(db),
      historyDays: config.historyDays,
    }),
    onDone: (kind, count) => {
      metrics.maintained(kind, count);
      log.info({ kind, count }, 'maintenance');
    },
    onError: (error, task) => log.error(error, 'maintenance failed; it will be tried again', { task }),
  });
}

function startGroupCommit(shared: Shared, worker: Worker | undefined): GroupCommit {
  const { config, db, configs, notifier, log, metrics } = shared;
  return createGroupCommit({
    ingest: (batch) => ingest(db.engine, batch),
    configs,
    localWorker: worker,
    ready: (queues) => {
      const list = [...queues];
      worker?.poke(list);
      notifier.ready(list);
    },
    ids: createIdSource(Date.now, randomBytes),
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
  const { config, db, notifier, log, metrics, monotonic, changed } = shared;
  const groupCommit = startGroupCommit(shared, worker);
  stack.defer(groupCommit.idle);
  const ids = createIdSource(Date.now, randomBytes);
  const ready = (tenantId: TenantId, subscriptionId: SubscriptionId) => {
    const queues = [{ tenantId, subscriptionId }];
    worker?.poke(queues);
    notifier.ready(queues);
  };
  const guard = createAddressGuard(config.allowEndpointCidrs);
  const services = [
    createPublishService({ groupCommit, now: Date.now, onOutcome: metrics.published }),
    createSubscriptionService({ db, guard, masterKeys: shared.masterKeys, ids, randomBytes, changed, ready }),
    createEventService({ db, ready }),
    createDeadLetterService({ db, ids, ready, changed }),
    createTenantService({ db, ids, randomBytes, now: Date.now, changed }),
  ];
  const path = createCallPath({
    authenticate: createAuthenticate({
      adminKey: shared.adminKey,
      findLiveKey: (keyId) => findLiveKey(db, keyId),
      now: monotonic,
    }),
    unavailable: databaseUnavailable,
    now: monotonic,
    onCall: (method, error, seconds, tenantId) => {
      const code = error?.code ?? 'OK';
      metrics.called(method, code, seconds);
      const ours = error?.code === 'INTERNAL';
      log.rpc(
        { method, code, ms: seconds * 1000, tenantId, ...(ours ? { err: error.cause ?? error } : {}) },
        ours,
      );
    },
  });
  const closeBoth = (server: RpcServer) => stack.defer(() => server.close(config.shutdownGraceMs));
  const http = await startConnectServer(services, path, pages(db, metrics), {
    host: config.host,
    port: config.httpPort,
  });
  closeBoth(http);
  const grpc = await startGrpcServer(services, path, { host: config.host, port: config.grpcPort });
  closeBoth(grpc);
  return { httpPort: http.port, grpcPort: grpc.port };
}

function pages(db: Database, metrics: Metrics): Readonly<Record<string, Page>> {
  const text = (status: number, body: string) => ({ status, contentType: 'text/plain', body: `${body}\n` });
  return {
    '/healthz': async () => text(200, 'ok'),
    '/readyz': () =>
      db.engine.query({ name: 'ready', text: 'SELECT 1' }).then(
        () => text(200, 'ready'),
        () => text(503, 'the database is not available'),
      ),
    '/metrics': async () => ({
      status: 200,
      contentType: metrics.registry.contentType,
      body: await metrics.registry.metrics(),
    }),
  };
}
