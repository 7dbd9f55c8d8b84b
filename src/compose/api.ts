// The api role: the services behind both ports, on the group commit.
import { randomBytes } from 'node:crypto';
import type { Worker } from '../delivery/worker.ts';
import { PLATFORM } from '../domain/audit.ts';
import type { SubscriptionId, TenantId } from '../domain/ids.ts';
import { createPublishRate } from '../limits/publish-rate.ts';
import { createAdmission } from '../publishing/admission.ts';
import { createGroupCommit, type GroupCommit, MAX_UNDER_WAY } from '../publishing/group-commit.ts';
import { createAuthenticate } from '../rpc/authentication.ts';
import { createCallPath } from '../rpc/call-path.ts';
import { startConnectServer } from '../rpc/connect-server.ts';
import { createDeadLetterService } from '../rpc/dead-letter-service.ts';
import { createEventService } from '../rpc/event-service.ts';
import { type RpcServer, startGrpcServer } from '../rpc/grpc-server.ts';
import { createJwtVerifier } from '../rpc/jwt.ts';
import { createPublishService } from '../rpc/publish-service.ts';
import { createRefusalLog } from '../rpc/refusal-log.ts';
import { createSubscriptionService } from '../rpc/subscription-service.ts';
import { createTenantService } from '../rpc/tenant-service.ts';
import { findKey, noteKeyUse } from '../storage/api-keys.ts';
import { writeAudit } from '../storage/audit.ts';
import { databaseUnavailable } from '../storage/database.ts';
import { type IngestBatch, ingest, ingestNearLimit } from '../storage/ingest.ts';
import { countBacklog, takeUsageSlot } from '../storage/usage.ts';
import { addressFor, pagesOf } from './pages.ts';
import type { Shared } from './shared.ts';

/** Listens on both ports; `stack` closes them, calls in hand first. Rejects when a port is taken. */
export async function startApi(
  shared: Shared,
  worker: Worker | undefined,
  stack: AsyncDisposableStack,
): Promise<{ httpPort: number; grpcPort: number }> {
  const { config, db, log, metrics, monotonic, changed, egress, ids } = shared;
  const { guard } = egress;
  const groupCommit = await startGroupCommit(shared, worker);
  stack.defer(groupCommit.idle);
  const ready = (tenantId: TenantId, subscriptionId: SubscriptionId) =>
    shared.ready([{ tenantId, subscriptionId }]);
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
  const http = await startConnectServer(services, path, pagesOf(shared), addressFor(shared, config.httpPort));
  closeBoth(http);
  const grpc = await startGrpcServer(services, path, addressFor(shared, config.grpcPort));
  closeBoth(grpc);
  return { httpPort: http.port, grpcPort: grpc.port };
}

async function startGroupCommit(shared: Shared, worker: Worker | undefined): Promise<GroupCommit> {
  const { config, db, configs, log, metrics, monotonic, rightOfWay } = shared;
  return createGroupCommit({
    ingest: (batch) => rightOfWay.commit(rowCount(batch), () => ingest(db.engine, batch)),
    ingestNearLimit: (batch) => rightOfWay.commit(rowCount(batch), () => ingestNearLimit(db.engine, batch)),
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
    ready: (queues) => shared.ready([...queues]),
    ids: shared.ids,
    leaseMs: config.leaseMs,
    unavailable: databaseUnavailable,
    onCommit: metrics.groupCommitted,
    onError: (error) => log.error(error, 'a group commit failed'),
  });
}

/** Of events and their deliveries. */
const rowCount = ({ events }: IngestBatch) =>
  events.reduce((count, { deliveries }) => count + 1 + deliveries.length, 0);
