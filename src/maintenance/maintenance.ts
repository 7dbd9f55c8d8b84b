// Background work, by one leader among all instances: replay jobs, deletions, retention, partitions. Each task is a
// runOnce() that does a bounded piece and returns counts. May import storage, publishing's jobs come through compose/.
import type { EndpointTasks } from './endpoints.ts';
import type { HistoryTasks } from './history.ts';
import type { PurgeTasks } from './purge.ts';
import type { SnapshotWatch } from './snapshots.ts';

export type MaintenanceDeps = {
  /** Takes or renews the leader's lease. */
  readonly tryLead: (ttlMs: number) => Promise<boolean>;
  readonly stopLeading: () => Promise<void>;
  readonly runReplays: () => Promise<{ readonly movedCount: number; readonly nextInMs: number | undefined }>;
  readonly endpoints: EndpointTasks;
  readonly purge: PurgeTasks;
  readonly history: HistoryTasks;
  readonly snapshots: SnapshotWatch;
  readonly onDone: (kind: string, count: number) => void;
  readonly onError: (error: unknown, task: string) => void;
};

/** Runs until stopped. */
export type Maintenance = {
  /** Something may be waiting: look soon rather than at the next tick. */
  readonly poke: () => void;
  readonly stop: () => Promise<void>;
};

const TICK_MS = 10_000;
const LEASE_MS = 30_000;
const HOUR_MS = 3_600_000;
const MINUTE_MS = 60_000;
/** Deletions are looked at when something changed, and this often: they wait until what was under way has settled. */
const DELETIONS_MS = 30_000;

export function createMaintenance(deps: MaintenanceDeps): Maintenance {
  let stopped = false;
  let poked = false;
  let leads = false;
  let running: Promise<void> | undefined;
  let timer: NodeJS.Timeout | undefined;
  let hourlyAt = 0;
  let minutelyAt = 0;
  let deletionsAt = 0;
  let endpointsAt = 0;
  let wasPoked = false;
  /** When a replay job may go on, in ms from the last look. */
  let replayInMs: number | undefined;

  async function task(name: string, work: () => Promise<number>): Promise<number> {
    try {
      const count = await work();
      if (count > 0) deps.onDone(name, count);
      return count;
    } catch (error) {
      deps.onError(error, name);
      return 0;
    }
  }

  async function tick(): Promise<void> {
    leads = await deps.tryLead(LEASE_MS).catch((error) => {
      deps.onError(error, 'lead');
      return false;
    });
    if (!leads) {
      deps.snapshots.rest();
      return;
    }
    let moreToDo = true;
    const looksAtDeletions = wasPoked || performance.now() >= deletionsAt;
    wasPoked = false;
    if (looksAtDeletions) deletionsAt = performance.now() + DELETIONS_MS;
    for (let renewAt = performance.now() + LEASE_MS / 3; moreToDo && !stopped; ) {
      if (performance.now() > renewAt) {
        replayInMs = 0;
        return; // long work goes on in the next tick, under a renewed lease
      }
      moreToDo = false;
      await task('replayed', async () => {
        const done = await deps.runReplays();
        replayInMs = done.nextInMs;
        moreToDo ||= done.nextInMs === 0;
        return done.movedCount;
      });
      if (!looksAtDeletions) continue;
      for (const [name, work] of [
        ['subscription_rows', deps.purge.subscriptions],
        ['tenant_rows', deps.purge.tenants],
      ] as const) {
        if ((await task(name, work)) > 0) moreToDo = true;
      }
    }
    if (performance.now() >= endpointsAt) {
      endpointsAt = performance.now() + TICK_MS / 2;
      await task('endpoints', deps.endpoints.lookAfter);
    }
    if (performance.now() >= minutelyAt) {
      minutelyAt = performance.now() + MINUTE_MS;
      await task('snapshots', deps.snapshots.look);
      await task('idempotency_keys', deps.purge.idempotencyKeys);
      await task('usage_folded', deps.purge.usage);
      await task('secrets_rewrapped', deps.purge.secrets);
      await task('quota_alerts', deps.endpoints.alertQuotas);
      await task('dead_letters_expired', deps.purge.deadLetters);
    }
    if (performance.now() >= hourlyAt) {
      hourlyAt = performance.now() + HOUR_MS;
      await task('partitions_made', deps.history.makePartitions);
      await task('partitions_dropped', deps.history.dropExpired);
      await task('expired_rows', deps.history.purgeExpired);
      await task('audit_entries', deps.purge.audit);
      await task('old_usage', deps.purge.oldUsage);
      await task('old_alerts', deps.purge.oldAlerts);
    }
  }

  function start(): void {
    if (stopped) return;
    if (running !== undefined) {
      poked = true;
      return;
    }
    clearTimeout(timer);
    running = tick().finally(() => {
      running = undefined;
      const delayMs = poked ? 0 : Math.min(TICK_MS, leads ? (replayInMs ?? TICK_MS) : TICK_MS);
      poked = false;
      if (!stopped) timer = setTimeout(start, delayMs);
    });
  }

  start();
  return {
    poke() {
      wasPoked = true;
      start();
    },
    async stop() {
      stopped = true;
      clearTimeout(timer);
      await running;
      if (leads) await deps.stopLeading().catch((error) => deps.onError(error, 'stop leading'));
    },
  };
}
