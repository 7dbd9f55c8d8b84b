// Requests whose deadline has passed are given up a few at a time. Hundreds that were sent to endpoints that hang at the same time
// have the same deadline, and each costs 0.3 ms: its connection is closed, its result recorded, and the next one goes out over a
// new connection. All in one go that is a fifth of a second in which nobody else's events move (ADR 0039).

/** So many are given up at once. */
const AT_ONCE = 4;
const EVERY_MS = 4;
/** All that wait are given up within this time, evenly: a request ends within a second of its deadline. */
const WITHIN_MS = 500;

export type Overdue = Disposable & {
  /** Calls `giveUp`, now or within half a second. */
  readonly add: (giveUp: () => void) => void;
};

/** `now` is a monotonic clock in ms. */
export function createOverdue(now: () => number): Overdue {
  const waiting: { readonly giveUp: () => void; readonly byMs: number }[] = [];
  let timer: NodeJS.Timeout | undefined;
  let tickedAtMs = 0;
  /** How many more go at once before the next tick. */
  let free = 0;

  function tickSoon(): void {
    tickedAtMs = now();
    timer = setTimeout(tick, EVERY_MS);
  }

  function tick(): void {
    timer = undefined;
    const [first] = waiting;
    if (first === undefined) return;
    const nowMs = now();
    // Of what was left of the time of the first, this part has passed since the last tick: also when the event loop is late.
    const part = (nowMs - tickedAtMs) / Math.max(1, first.byMs - tickedAtMs);
    const due = waiting.splice(0, Math.ceil(waiting.length * Math.min(1, part)));
    tickSoon();
    for (const { giveUp } of due) giveUp();
  }

  return {
    add(giveUp) {
      if (timer === undefined) {
        free = AT_ONCE;
        tickSoon();
      }
      if (free > 0) {
        free--;
        giveUp();
      } else {
        waiting.push({ giveUp, byMs: now() + WITHIN_MS });
      }
    },
    [Symbol.dispose]() {
      clearTimeout(timer);
    },
  };
}
