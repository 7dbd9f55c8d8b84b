// Who goes first to the database, of one process: a commit of a few events, which their publishers wait for and then their
// endpoints, goes before the worker's own work, which moves on queues that wait anyway (ADR 0033).

/** Between a process's commits and what yields to them. */
export type RightOfWay = {
  /** Runs a commit that stores so many events. */
  readonly commit: <T>(eventCount: number, work: () => Promise<T>) => Promise<T>;
  /** Runs work that yields, or, if it cannot wait now, that only keeps other work waiting. */
  readonly yielding: <T>(canWait: boolean, work: () => Promise<T>) => Promise<T>;
};

/** A commit of more events is one of many publishers, or of a batch: they want throughput, and what yields would fall behind. */
const FEW = 8;
/** So long after a commit of few the next one is expected, in ms. */
const EXPECTED_MS = 25;
/** What yields waits no longer than this, in ms: it is as much as a worker has in memory to go on with. */
const MAX_WAIT_MS = 8;

type Waiting = { readonly go: () => void; readonly sinceMs: number };

/**
 * While commits of few are to be expected, work that yields runs one at a time, and none begins beside such a commit; but after
 * MAX_WAIT_MS it begins whatever else is under way, however long that takes. At other times nothing waits. `now` is monotonic,
 * in ms.
 */
export function createRightOfWay(now: () => number): RightOfWay {
  const waiting: Waiting[] = [];
  let committingCount = 0;
  let runningCount = 0;
  let expectedUntilMs = Number.NEGATIVE_INFINITY;
  let timer: NodeJS.Timeout | undefined;

  function pump(): void {
    clearTimeout(timer);
    timer = undefined;
    for (let first = waiting[0]; first !== undefined; first = waiting[0]) {
      const nowMs = now();
      const isBehind = committingCount > 0 || (runningCount > 0 && nowMs < expectedUntilMs);
      const leftMs = first.sinceMs + MAX_WAIT_MS - nowMs;
      if (isBehind && leftMs > 0) {
        timer = setTimeout(pump, leftMs);
        return;
      }
      waiting.shift();
      runningCount++;
      first.go();
    }
  }

  return {
    async commit(eventCount, work) {
      if (eventCount > FEW) {
        expectedUntilMs = Number.NEGATIVE_INFINITY;
        return work();
      }
      committingCount++;
      try {
        return await work();
      } finally {
        committingCount--;
        expectedUntilMs = now() + EXPECTED_MS;
        // Not before its publisher has the answer, its endpoint the event, and the next commit has begun.
        setImmediate(pump);
      }
    },
    async yielding(canWait, work) {
      if (canWait) {
        await new Promise<void>((go) => {
          waiting.push({ go, sinceMs: now() });
          pump();
        });
      } else {
        runningCount++;
      }
      try {
        return await work();
      } finally {
        runningCount--;
        pump();
      }
    },
  };
}
