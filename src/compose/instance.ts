// The composition root: every long-lived thing is built here once, from configuration, and disposed of in reverse; the parts
// of each role in the files beside this one. Folder's purpose: joins the folders that do not know each other. May import all
// below it.
import { randomBytes, randomUUID } from 'node:crypto';
import { createTestDelivery } from '../delivery/test-delivery.ts';
import type { Worker } from '../delivery/worker.ts';
import { createIdSource, type TenantId } from '../domain/ids.ts';
import { createAuthorizer } from '../egress/authorization.ts';
import { createConnect } from '../egress/connector.ts';
import { createFetcher } from '../egress/fetcher.ts';
import { createAddressGuard } from '../egress/guard.ts';
import { createResolver } from '../egress/resolver.ts';
import { createSender } from '../egress/sender.ts';
import { LANES } from '../publishing/group-commit.ts';
import { createOperationalEvents, type OperationalEvents } from '../publishing/operational-events.ts';
import { openDatabase } from '../storage/database.ts';
import { ingest } from '../storage/ingest.ts';
import { createRightOfWay } from '../storage/right-of-way.ts';
import { assertMasterKeys } from '../storage/secret-keys.ts';
import { createTenantConfigs } from '../storage/tenant-configs.ts';
import { takeUsageSlot } from '../storage/usage.ts';
import { createNotifier, type Listening, listen } from '../storage/wakeups.ts';
import { createMetrics } from '../telemetry/metrics.ts';
import { authorizationOf, schemeAllowed } from './egress.ts';
import { startHeartbeat } from './heartbeat.ts';
import { startLimits } from './limits.ts';
import { startMaintenance } from './maintenance.ts';
import { startPages } from './pages.ts';
import { createReady } from './ready.ts';
import type { Base, Ready, Shared } from './shared.ts';
import { startWorker } from './worker.ts';

/** A running instance. */
export type Instance = AsyncDisposable & {
  /** Without the api role for health and metrics alone. */
  readonly httpPort: number;
  /** Undefined without the api role. */
  readonly grpcPort: number | undefined;
};

/** Starts the roles of this process. Disposing drains: no call fails, what is in hand is finished or given back. */
export async function startInstance(ready: Ready): Promise<Instance> {
  const { config, log } = ready;
  const { roles } = config;
  // What serves calls is a third of the program: without this role it is neither loaded nor looked through at collections.
  const api = roles.has('api') ? await import('./api.ts') : undefined;
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
    const instanceId = randomUUID();
    const notifier = createNotifier(db.engine, instanceId, (error) =>
      log.warn({ error: String(error) }, 'a wake-up was not sent'),
    );
    stack.use(notifier);
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
    let worker: Worker | undefined;
    const base = {
      ...ready,
      db,
      rightOfWay: createRightOfWay(monotonic),
      configs,
      ready: createReady({ worker: () => worker, standings, notifier }),
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
    let listening: Listening | undefined;
    const all: Shared = { ...base, changed, operational, test };
    if (roles.has('worker')) {
      const started = startWorker(all, () => listening?.session(), stack);
      worker = started;
      stack.defer(() => {
        worker = undefined; // what is due from now on is for others
        return started.stop(config.shutdownGraceMs);
      });
    }
    const maintenance = roles.has('maintenance') ? startMaintenance(all, worker) : undefined;
    if (maintenance !== undefined) stack.defer(maintenance.stop);
    listening = stack.use(
      listen(db.ownerUrl, instanceId, {
        onConnection: configs.clear,
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
    const ports = api
      ? await api.startApi(all, worker, stack)
      : { httpPort: await startPages(all, stack), grpcPort: undefined };
    return {
      ...ports,
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

/** dispatch's own events: they are stored as any, wherever this process's roles come upon what they tell. */
async function startOperationalEvents(base: Base): Promise<OperationalEvents> {
  const { db, configs, ready, ids, log } = base;
  return createOperationalEvents({
    reload: configs.reload,
    get: configs.get,
    ingest: (batch) => ingest(db.engine, batch),
    ids,
    randomBytes,
    slot: (await takeUsageSlot(db)) * LANES,
    ready,
    onError: (error, { tenantId, type }) =>
      log.error(error, 'an event of our own was dropped', { tenantId, type }),
  });
}
