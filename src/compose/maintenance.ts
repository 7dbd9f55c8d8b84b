// The maintenance role: its tasks, joined with storage, and what tenants hear of them.
import { randomBytes, randomUUID } from 'node:crypto';
import type { Worker } from '../delivery/worker.ts';
import { ITSELF, PLATFORM } from '../domain/audit.ts';
import { createEndpointTasks } from '../maintenance/endpoints.ts';
import { createHistoryTasks } from '../maintenance/history.ts';
import { createMaintenance, type Maintenance } from '../maintenance/maintenance.ts';
import { createPurgeTasks } from '../maintenance/purge.ts';
import { createSnapshotWatch, MAX_SNAPSHOT_SECONDS } from '../maintenance/snapshots.ts';
import { runReplaysOnce } from '../publishing/replay.ts';
import { pruneAudit, writeAudit } from '../storage/audit.ts';
import type { QueueKey } from '../storage/claims.ts';
import { asOwner } from '../storage/database.ts';
import * as health from '../storage/health.ts';
import { stopLeading, tryLead } from '../storage/leaders.ts';
import { dropHistory, ensurePartitions } from '../storage/partitions.ts';
import * as purges from '../storage/purges.ts';
import { type Replay, runningReplays, stepReplay } from '../storage/replays.ts';
import { createRewrap } from '../storage/secret-keys.ts';
import { oldestSnapshotSeconds } from '../storage/snapshots.ts';
import { setSubscriptionState } from '../storage/subscriptions.ts';
import { shorterHistories } from '../storage/tenants.ts';
import { foldUsage, pruneUsage } from '../storage/usage.ts';
import { disableAll, type Shared } from './shared.ts';

const LEADER = 'maintenance';

/** Runs beside every other instance’s: one of them leads. A worker of this process hears at once of what is due. */
export function startMaintenance(shared: Shared, worker: Worker | undefined): Maintenance {
  const { config, db, log, metrics, ready, operational, test } = shared;
  const holder = randomUUID();
  const readyAny = () => worker?.poke(undefined);
  const queueReady = (queue: QueueKey) => ready([queue]);
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
