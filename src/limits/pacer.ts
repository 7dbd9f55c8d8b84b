// A rate as one instance uses it: slots are taken from the shared store in small blocks ahead of their time, so that
// a delivery seldom waits for the store and none goes out before its slot.
import type { BucketSpec, Taken } from '../domain/bucket.ts';

/**
 * A slot that is this late is given up: kept longer, slots of many instances would add up to a burst. With what a
 * bucket lets be caught up (100 ms) that is 4 % of 10 s.
 */
const LATE_MS = 300;
/** How long a store that had nothing to give is not asked again, at least and at most. */
const MIN_WAIT_MS = 2;
const MAX_WAIT_MS = 1_000;
/** At least this much worth of slots is asked for, so that a quick subscription does not ask for each delivery. */
const BLOCK_US = 50_000;
/**
 * Rates with a shorter interval ask for their next block before the last one is used up or too late, and for more at
 * once: with 100 quick subscriptions the calls were 5 % of all work.
 */
const QUICK_MS = 5;
const QUICK_BLOCK_US = 150_000;
const EARLY_MS = 100;

type Block = { count: number; nextAtMs: number; readonly intervalMs: number };
const NONE: Block = { count: 0, nextAtMs: 0, intervalMs: 1 };

export type Pacer = {
  /** Ms until a slot can be used: 0 now. Infinity: slots are being asked for, and onRefill will be called. */
  readonly waitMs: (nowMs: number, wanted: number) => number;
  /** Uses a slot; only right after waitMs said 0. */
  readonly use: () => void;
  /** Keeps the slot that waitMs said 0 about for as long as something else is waited for: one, however late. */
  readonly keep: () => void;
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
  let block = NONE;
  let following = NONE;
  let emptyUntilMs = 0;
  let asking = false;
  let isKept = false;

  async function ask(wanted: number): Promise<void> {
    asking = true;
    const askedAt = now();
    try {
      const spec = specOf(askedAt);
      const blockUs = spec.intervalUs < QUICK_MS * 1_000 ? QUICK_BLOCK_US : BLOCK_US;
      const taken = await take(spec, Math.max(wanted, Math.ceil(blockUs / spec.intervalUs), 1));
      const nextAtMs = askedAt + Math.max(taken.startInUs / 1000, -LATE_MS);
      following = { count: taken.granted, nextAtMs, intervalMs: taken.intervalUs / 1000 };
      if (taken.granted === 0) {
        emptyUntilMs = askedAt + Math.min(Math.max(taken.waitUs / 1000, MIN_WAIT_MS), MAX_WAIT_MS);
      }
    } finally {
      asking = false;
      onRefill();
    }
  }

  /** Gives up slots that are too late. */
  function trim(nowMs: number): void {
    const behindMs = nowMs - LATE_MS - block.nextAtMs;
    if (block.count === 0 || behindMs <= 0) return;
    const late = Math.min(block.count - (isKept ? 1 : 0), Math.ceil(behindMs / block.intervalMs));
    block.count -= late;
    block.nextAtMs += late * block.intervalMs;
  }

  /** Ms until the last slot of the block is too late. */
  const lastsMs = (nowMs: number) => block.nextAtMs + block.count * block.intervalMs + LATE_MS - nowMs;

  return {
    waitMs(nowMs, wanted) {
      trim(nowMs);
      if (block.count === 0 && following.count > 0) {
        block = following;
        following = NONE;
        trim(nowMs);
      }
      if (block.count > 0) {
        const runsOut = block.intervalMs < QUICK_MS && lastsMs(nowMs) < EARLY_MS;
        if (runsOut && following.count === 0 && !asking && emptyUntilMs <= nowMs) void ask(wanted);
        return Math.max(0, block.nextAtMs - nowMs);
      }
      if (asking) return Number.POSITIVE_INFINITY;
      if (emptyUntilMs > nowMs) return emptyUntilMs - nowMs;
      void ask(wanted);
      return Number.POSITIVE_INFINITY;
    },
    use() {
      block.count--;
      block.nextAtMs += block.intervalMs;
      isKept = false;
    },
    keep() {
      isKept = true;
    },
  };
}
