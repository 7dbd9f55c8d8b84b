// A rate as one instance uses it: slots are taken from the shared store in small blocks ahead of their time, so that
// a delivery seldom waits for the store and none goes out before its slot.
import type { BucketSpec, Taken } from '../domain/bucket.ts';

/** A slot that is this late is given up: kept longer, slots of many instances would add up to a burst. */
const LATE_MS = 150;
/** How long a store that had nothing to give is not asked again, at least and at most. */
const MIN_WAIT_MS = 2;
const MAX_WAIT_MS = 1_000;

export type Pacer = {
  /** Ms until a slot can be used: 0 now. Infinity: slots are being asked for, and onRefill will be called. */
  readonly waitMs: (nowMs: number, wanted: number) => number;
  /** Uses a slot; only right after waitMs said 0. */
  readonly use: () => void;
};

/**
 * `specOf` gives the rate of the moment (a ramp changes it). `nowMs` is monotonic. `onRefill` is called when asking
 * is over, whatever it brought.
 */
export function createPacer(
  take: (spec: BucketSpec, want: number) => Promise<Taken>,
  specOf: (nowMs: number) => BucketSpec,
  now: () => number,
  onRefill: () => void,
): Pacer {
  let count = 0;
  let nextAtMs = 0;
  let intervalMs = 0;
  let emptyUntilMs = 0;
  let asking = false;

  async function ask(wanted: number): Promise<void> {
    asking = true;
    const askedAt = now();
    try {
      const spec = specOf(askedAt);
      // At least 20 ms worth of slots, so that a quick subscription does not ask for each delivery.
      const want = Math.max(wanted, Math.ceil(20_000 / spec.intervalUs), 1);
      const taken = await take(spec, want);
      count = taken.granted;
      intervalMs = taken.intervalUs / 1000;
      nextAtMs = askedAt + Math.max(taken.startInUs / 1000, -LATE_MS);
      if (count === 0) {
        emptyUntilMs = askedAt + Math.min(Math.max(taken.waitUs / 1000, MIN_WAIT_MS), MAX_WAIT_MS);
      }
    } finally {
      asking = false;
      onRefill();
    }
  }

  return {
    waitMs(nowMs, wanted) {
      while (count > 0 && nextAtMs < nowMs - LATE_MS) {
        count--;
        nextAtMs += intervalMs;
      }
      if (count > 0) return Math.max(0, nextAtMs - nowMs);
      if (asking) return Number.POSITIVE_INFINITY;
      if (emptyUntilMs > nowMs) return emptyUntilMs - nowMs;
      void ask(wanted);
      return Number.POSITIVE_INFINITY;
    },
    use() {
      count--;
      nextAtMs += intervalMs;
    },
  };
}
