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
/** A look begins this long before the one before the last: what is committed late lies there, or was being written to. */
const BACK_US = 5_000_000;
/**
 * How often one begins at the front: for what was committed or written to later than that. It reads all that was recorded and is not
 * vacuumed yet, and so takes long, or fails, where the others do not.
 */
const FRONT_EVERY_MS = 60_000;
/** But so often, whatever the last one took: a statement ends after 30 s. */
const FRONT_MOST_MS = 600_000;

export type LeaseEndsDeps = {
  /** Puts back up to MAX_PUT_BACK whose leases ended after a time; undefined: some minutes ago. */
  readonly putBack: (afterUs: number | undefined) => Promise<LeaseEnds>;
  /** Queues that have something due again. */
  readonly onBack: (queues: readonly QueueHead[]) => void;
  readonly onError: (error: unknown) => void;
};

/**
 * Runs until it is disposed of, which waits for the statements that are under way. A look comes right after the end of the first
 * lease that the last one saw, and before any that it could not see: each SHORTEST_LEASE_MS. Those from the front come beside them.
 */
export function startLeaseEnds({ putBack, onBack, onError }: LeaseEndsDeps): AsyncDisposable {
  let afterUs: number | undefined;
  let lastUs: number | undefined;

  async function look(isStopped: () => boolean): Promise<number> {
    const startedAt = performance.now();
    const { nowUs, nextInMs } = await putAllBack(afterUs, isStopped);
    afterUs = (lastUs ?? nowUs) - BACK_US; // so each time is looked at twice
    lastUs = nowUs;
    const leastMs = Math.max(MIN_MS, (performance.now() - startedAt) / SHARE);
    return Math.min(SHORTEST_LEASE_MS, Math.max(leastMs, nextInMs ?? SHORTEST_LEASE_MS));
  }

  async function lookFromFront(isStopped: () => boolean): Promise<number> {
    const startedAt = performance.now();
    let leastMs = AGAIN_MS;
    try {
      await putAllBack(0, isStopped);
      leastMs = FRONT_EVERY_MS;
    } catch (error) {
      onError(error);
    }
    return Math.min(FRONT_MOST_MS, Math.max(leastMs, (performance.now() - startedAt) / SHARE));
  }

  async function putAllBack(after: number | undefined, isStopped: () => boolean): Promise<LeaseEnds> {
    for (;;) {
      const found = await putBack(after);
      if (found.queues.length > 0) onBack(found.queues);
      if (found.count < MAX_PUT_BACK || isStopped()) return found; // what was put back is not there the next time
    }
  }

  return startRounds({ rounds: [look, lookFromFront], againMs: AGAIN_MS, onError });
}
