// Background work, by one leader among all instances: replay jobs, deletions, retention, partitions. Each task is a
// runOnce() that does a bounded piece and returns counts. May import storage, publishing's jobs come through compose.
import type { HistoryTasks } from './history.ts';
import type { PurgeTasks } from './purge.ts';

export type MaintenanceDeps = {
  /** Takes or renews the leader's lease. */
  readonly tryLead: (ttlMs: number) => Promise<boolean>;
  readonly stopLeading: () => Promise<void>;
  readonly runReplays: () => Promise<{ readonly movedCount: number; readonly moreToDo: boolean }>;
  readonly purge: PurgeTasks;
  readonly history: HistoryTasks;
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

export function createMaintenance(deps: MaintenanceDeps): Maintenance {
  let stopped = false;
  let poked = false;
  let leads = false;
  let running: Promise<void> | undefined;
  let timer: NodeJS.Timeout | undefined;
  let hourlyAt = 0;
  let minutelyAt = 0;

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
    if (!leads) return;
    let moreToDo = true;
    for (let renewAt = performance.now() + LEASE_MS / 3; moreToDo && !stopped; ) {
      if (performance.now() > renewAt) return; // long work goes on in the next tick, under a renewed lease
      moreToDo = false;
      await task('replayed', async () => {
        const done = await deps.runReplays();
        moreToDo ||= done.moreToDo;
        return done.movedCount;
      });
      for (const [name, work] of [
        ['subscription_rows', deps.purge.subscriptions],
        ['tenant_rows', deps.purge.tenants],
      ] as const) {
        if ((await task(name, work)) > 0) moreToDo = true;
      }
    }
    if (performance.now() >= minutelyAt) {
      minutelyAt = performance.now() + MINUTE_MS;
      await task('idempotency_keys', deps.purge.idempotencyKeys);
      await task('usage_folded', deps.purge.usage);
      await task('secrets_rewrapped', deps.purge.secrets);
    }
    if (performance.now() >= hourlyAt) {
      hourlyAt = performance.now() + HOUR_MS;
      await task('partitions_made', deps.history.makePartitions);
      await task('partitions_dropped', deps.history.dropExpired);
      await task('expired_rows', deps.history.purgeExpired);
      await task('audit_entries', deps.purge.audit);
      await task('old_usage', deps.purge.oldUsage);
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
      const delayMs = poked ? 0 : TICK_MS;
      poked = false;
      if (!stopped) timer = setTimeout(start, delayMs);
    });
  }

  start();
  return {
    poke: start,
    async stop() {
      stopped = true;
      clearTimeout(timer);
      await running;
      if (leads) await deps.stopLeading().catch((error) => deps.onError(error, 'stop leading'));
    },
  };
}
