// Who goes first to the database, of one process: a commit of a few events, which their publishers wait for and then their
// endpoints, goes before the worker's own work, which moves on queues that wait anyway (ADR 0033).

/** Between a process's commits and what gives way to them. */
export type RightOfWay = {
  /** Runs a commit that stores so many events and deliveries. */
  readonly commit: <T>(rowCount: number, work: () => Promise<T>) => Promise<T>;
  /** Runs work that gives way to commits and to other such work for as long as it can wait. */
  readonly giveWay: <T>(canWait: () => boolean, work: () => Promise<T>) => Promise<T>;
  /** Asks what waits whether it still can. */
  readonly recheck: () => void;
};

/** A commit of more is one of many publishers, of a batch or for many endpoints: that takes its time, and what waited would fall behind. */
const FEW = 16;
/** So long after a commit of few the next one is expected, in ms; one that takes longer has no right of way any more. */
const EXPECTED_MS = 25;
/** What gives way waits no longer than this, in ms. */
const MAX_WAIT_MS = 8;

type Waiting = { readonly canWait: () => boolean; readonly go: () => void; readonly sinceMs: number };

/**
 * While commits of few are to be expected, work that gives way runs one at a time, and none begins beside such a commit; but once
 * it cannot wait, or after MAX_WAIT_MS, it begins whatever else is under way. At other times nothing waits. `now` is
 * monotonic, in ms.
 */
export function createRightOfWay(now: () => number): RightOfWay {
  const waiting: Waiting[] = [];
  let committingCount = 0;
  let begunAtMs = Number.NEGATIVE_INFINITY;
  let runningCount = 0;
  let expectedUntilMs = Number.NEGATIVE_INFINITY;
  let timer: NodeJS.Timeout | undefined;

  function pump(): void {
    clearTimeout(timer);
    timer = undefined;
    for (let i = 0; i < waiting.length; ) {
      const { sinceMs, canWait, go } = waiting[i]!;
      const nowMs = now();
      const isCommitting = committingCount > 0 && nowMs < begunAtMs + EXPECTED_MS;
      const isBehind = isCommitting || (runningCount > 0 && nowMs < expectedUntilMs);
      const leftMs = sinceMs + MAX_WAIT_MS - nowMs;
      if (isBehind && leftMs > 0 && canWait()) {
        timer ??= setTimeout(pump, leftMs);
        i++; // what is behind it may be unable to wait
      } else {
        waiting.splice(i, 1);
        runningCount++;
        go();
      }
    }
  }

  return {
    async commit(rowCount, work) {
      if (rowCount > FEW) {
        expectedUntilMs = Number.NEGATIVE_INFINITY;
        return work();
      }
      committingCount++;
      begunAtMs = now();
      try {
        return await work();
      } finally {
        committingCount--;
        expectedUntilMs = now() + EXPECTED_MS;
        // Its publisher gets the answer, its endpoint the event, and the next commit begins before.
        setImmediate(pump);
      }
    },
    async giveWay(canWait, work) {
      await new Promise<void>((go) => {
        waiting.push({ canWait, go, sinceMs: now() });
        pump();
      });
      try {
        return await work();
      } finally {
        runningCount--;
        pump();
      }
    },
    recheck() {
      if (waiting.length > 0) pump();
    },
  };
}
