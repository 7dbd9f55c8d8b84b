// The history's partitions: made ahead of time, dropped when they are old. A delivery that is still unfinished by then
// (its subscription was paused for that long) becomes a dead letter first.
import type { TenantId } from '../domain/ids.ts';

export type HistoryDeps = {
  readonly makePartitions: () => Promise<number>;
  /** Drops leaves that end before a time (ms since 1970); returns their names. */
  readonly dropHistory: (keepFromMs: number) => Promise<readonly string[]>;
  readonly purgeBefore: (beforeMs: number) => Promise<number>;
  readonly expireDeliveries: (beforeMs: number) => Promise<number>;
  /** Tenants that keep less than the installation, and for how many days. */
  readonly shorterHistories: () => Promise<readonly { readonly tenantId: TenantId; readonly days: number }[]>;
  readonly purgeHistoryOf: (tenantId: TenantId, beforeMs: number) => Promise<number>;
  /** The database's clock, ms since 1970. */
  readonly databaseNowMs: () => Promise<number>;
  readonly historyDays: number;
};

/** Each does one bounded piece and returns how much it did. */
export type HistoryTasks = {
  readonly makePartitions: () => Promise<number>;
  readonly dropExpired: () => Promise<number>;
  readonly purgeExpired: () => Promise<number>;
};

const DAY_MS = 24 * 3600 * 1000;

export function createHistoryTasks(deps: HistoryDeps): HistoryTasks {
  const keepFromMs = async () => (await deps.databaseNowMs()) - deps.historyDays * DAY_MS;
  return {
    makePartitions: deps.makePartitions,
    async dropExpired() {
      const from = await keepFromMs();
      await inChunks(() => deps.expireDeliveries(from));
      return (await deps.dropHistory(from)).length;
    },
    async purgeExpired() {
      const from = await keepFromMs();
      let count = await inChunks(() => deps.purgeBefore(from));
      for (const { tenantId, days } of await deps.shorterHistories()) {
        if (days >= deps.historyDays) continue;
        const before = from + (deps.historyDays - days) * DAY_MS;
        count += await inChunks(() => deps.purgeHistoryOf(tenantId, before));
      }
      return count;
    },
  };
}

const MAX_CHUNKS = 1_000;

async function inChunks(removeChunk: () => Promise<number>): Promise<number> {
  let count = 0;
  for (let chunk = 0; chunk < MAX_CHUNKS; chunk++) {
    const removed = await removeChunk();
    count += removed;
    if (removed === 0) break;
  }
  return count;
}
