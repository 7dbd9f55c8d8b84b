// Takes parked deliveries out before they are due: every ten to thirty seconds a walk over the queues that hold some, and for
// each whose first comes near as many updates as it takes. Each worker does so, whatever the others do: what one is taking out
// is passed over by the next.
import type { QueueKey } from '../storage/claims.ts';
import { MAX_UNPARK, UNPARK_AHEAD_MS } from '../storage/parking.ts';
import type { Walk, WalkPosition } from '../storage/walk.ts';
import { startRounds } from './rounds.ts';

const EVERY_MS = 10_000;
/** While nothing that is parked comes near. What is parked meanwhile is due in two minutes or more: that is seen in time. */
const SELDOM_MS = 30_000;
/** After a failure. The time that is left before the first are late is six rounds. */
const AGAIN_MS = 1_000;
const PAGE = 500;

export type UnparkerDeps = {
  /** Over the queues with parked deliveries. */
  readonly walk: Walk;
  /** Takes up to MAX_UNPARK of these queues out; returns how many. */
  readonly unpark: (queues: readonly QueueKey[]) => Promise<number>;
  readonly onError: (error: unknown) => void;
};

/** Runs until it is disposed of, which waits for the statement that is under way. */
export function startUnparker({ walk, unpark, onError }: UnparkerDeps): AsyncDisposable {
  async function round(isStopped: () => boolean): Promise<number> {
    let position: WalkPosition | undefined;
    let firstInMs = Number.POSITIVE_INFINITY;
    do {
      const { heads, next } = await walk(position, PAGE);
      const near = heads.filter(({ dueInMs }) => dueInMs <= UNPARK_AHEAD_MS);
      if (near.length > 0) await takeOut(near, isStopped);
      for (const { dueInMs } of heads) firstInMs = Math.min(firstInMs, dueInMs);
      position = next;
    } while (position !== undefined && !isStopped());
    return Math.min(SELDOM_MS, Math.max(EVERY_MS, firstInMs - UNPARK_AHEAD_MS));
  }

  /** In half of the time, so that a million that are due together leave the other half to what is due now. */
  async function takeOut(queues: readonly QueueKey[], isStopped: () => boolean): Promise<void> {
    for (;;) {
      const startedAt = performance.now();
      const count = await unpark(queues);
      if (count < MAX_UNPARK || isStopped()) return;
      const tookMs = performance.now() - startedAt;
      await new Promise((done) => setTimeout(done, tookMs));
    }
  }

  return startRounds({ round, againMs: AGAIN_MS, onError });
}
