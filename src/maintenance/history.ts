// The history's partitions: made ahead of time, dropped when they are old. Never one that an unfinished delivery
// still needs its event from.

export type HistoryDeps = {
  readonly makePartitions: () => Promise<number>;
  /** Drops leaves that end before a time (ms since 1970); returns their names. */
  readonly dropHistory: (keepFromMs: number) => Promise<readonly string[]>;
  readonly purgeBefore: (beforeMs: number) => Promise<number>;
  readonly oldestUnfinishedMs: () => Promise<number | undefined>;
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
      const oldest = (await deps.oldestUnfinishedMs()) ?? from;
      return (await deps.dropHistory(Math.min(from, oldest))).length;
    },
    async purgeExpired() {
      const from = await keepFromMs();
      let count = 0;
      for (let chunk = 0; chunk < 100; chunk++) {
        const removed = await deps.purgeBefore(from);
        count += removed;
        if (removed === 0) break;
      }
      return count;
    },
  };
}
