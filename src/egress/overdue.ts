// Requests whose deadline has passed are given up a few at a time. Hundreds that were sent to endpoints that hang at the same time
// have the same deadline, and each costs 0.3 ms: its connection is closed, its result recorded, and the next one goes out over a
// new connection. All in one go that is a fifth of a second in which nobody else's events move (ADR 0039).

/** So many are given up at once. */
const AT_ONCE = 4;
const EVERY_MS = 4;
/** All are given up within this time of their deadlines, as evenly as that allows: a request ends within a second of its deadline. */
const WITHIN_MS = 500;

/** Disposed, it gives up all that waits, and what comes later at once. */
export type Overdue = Disposable & {
  /** Calls `giveUp`, now or within half a second of the deadline, on the clock of `now`. */
  readonly add: (deadlineMs: number, giveUp: () => void) => void;
};

/** `now` is a monotonic clock in ms. */
export function createOverdue(now: () => number): Overdue {
  let waiting: { readonly giveUp: () => void; readonly byMs: number }[] = [];
  let timer: NodeJS.Timeout | undefined;
  let tickedAtMs = 0;
  /** How many more go at once before the next tick. */
  let free = 0;
  let isDisposed = false;

  function tickSoon(): void {
    tickedAtMs = now();
    timer = setTimeout(tick, EVERY_MS);
  }

  /** As few as give up each in time if each tick gives up as many for the time that it took. */
  function dueCount(nowMs: number): number {
    let count = 0;
    for (const [i, { byMs }] of waiting.entries()) {
      const part = (nowMs - tickedAtMs) / Math.max(1, byMs - tickedAtMs);
      count = Math.max(count, Math.ceil((i + 1) * Math.min(1, part)));
    }
    return count;
  }

  function tick(): void {
    timer = undefined;
    if (waiting.length === 0) return;
    const due = waiting.splice(0, dueCount(now()));
    tickSoon();
    for (const { giveUp } of due) giveUp();
  }

  return {
    add(deadlineMs, giveUp) {
      if (isDisposed) {
        giveUp();
        return;
      }
      if (timer === undefined) {
        free = AT_ONCE;
        tickSoon();
      }
      if (free > 0) {
        free--;
        giveUp();
      } else {
        waiting.push({ giveUp, byMs: deadlineMs + WITHIN_MS });
      }
    },
    [Symbol.dispose]() {
      isDisposed = true;
      clearTimeout(timer);
      const all = waiting;
      waiting = [];
      for (const { giveUp } of all) giveUp();
    },
  };
}
