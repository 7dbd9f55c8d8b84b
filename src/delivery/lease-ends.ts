// Finds what workers held that died or stood still: once its lease has run out it is put back among what is due. Each worker
// looks, whatever the others do: what one is putting back is passed over by the next.
import { SHORTEST_LEASE_MS } from '../domain/lease.ts';
import { type LeaseEnds, MAX_PUT_BACK } from '../storage/leases.ts';
import type { QueueHead } from '../storage/walk.ts';
import { startRounds } from './rounds.ts';

/** At least this long from one look to the next, however leases end. */
const MIN_MS = 250;
/** After a failure. */
const AGAIN_MS = 1_000;
/** Looks may take this part of the time, but for one in SHORTEST_LEASE_MS; and so may those from the front. */
const SHARE = 0.05;
/** A look begins this long before the last one: what is committed later than what ended after it lies there. */
const BACK_US = 5_000_000;
/**
 * How often one begins at the front: for what took longer than that to commit, or was being written to for as long. It reads all that
 * was recorded and is not vacuumed yet, and so may fail where the others do not.
 */
const FRONT_EVERY_MS = 60_000;

export type LeaseEndsDeps = {
  /** Puts back up to MAX_PUT_BACK whose leases ended after a time; undefined: a moment ago. */
  readonly putBack: (afterUs: number | undefined) => Promise<LeaseEnds>;
  /** Queues that have something due again. */
  readonly onBack: (queues: readonly QueueHead[]) => void;
  readonly onError: (error: unknown) => void;
};

/**
 * Runs until it is disposed of, which waits for the statement that is under way. A look comes right after the end of the first
 * lease that the last one saw, and before any that it could not see: each SHORTEST_LEASE_MS.
 */
export function startLeaseEnds({ putBack, onBack, onError }: LeaseEndsDeps): AsyncDisposable {
  let afterUs: number | undefined;
  let frontAt = Number.NEGATIVE_INFINITY;

  async function round(isStopped: () => boolean): Promise<number> {
    if (performance.now() >= frontAt) await lookFromFront(isStopped);
    const startedAt = performance.now();
    const { nowUs, nextInMs } = await look(afterUs, isStopped);
    afterUs = nowUs - BACK_US;
    const leastMs = Math.max(MIN_MS, (performance.now() - startedAt) / SHARE);
    return Math.min(SHORTEST_LEASE_MS, Math.max(leastMs, nextInMs ?? SHORTEST_LEASE_MS));
  }

  async function lookFromFront(isStopped: () => boolean): Promise<void> {
    const startedAt = performance.now();
    let leastMs = 0;
    try {
      await look(0, isStopped);
      leastMs = FRONT_EVERY_MS;
    } finally {
      // Also when it fails: the others go on.
      const endedAt = performance.now();
      frontAt = endedAt + Math.max(leastMs, (endedAt - startedAt) / SHARE);
    }
  }

  async function look(after: number | undefined, isStopped: () => boolean): Promise<LeaseEnds> {
    for (;;) {
      const found = await putBack(after);
      if (found.queues.length > 0) onBack(found.queues);
      if (found.count < MAX_PUT_BACK || isStopped()) return found; // what was put back is not there the next time
    }
  }

  return startRounds({ round, againMs: AGAIN_MS, onError });
}
