// Finds what workers held that died or stood still: once its lease has run out it is put back among what is due. Each worker
// looks, whatever the others do: what one is putting back is passed over by the next.
import type { QueueKey } from '../storage/claims.ts';
import { type LeaseEnds, MAX_PUT_BACK, SHORTEST_LEASE_MS } from '../storage/leases.ts';
import { startRounds } from './rounds.ts';

/** At least this long from one look to the next, however leases end; and after a failure. */
const MIN_MS = 250;
const AGAIN_MS = 1_000;
/** A look begins this long before the last one: what is committed later than what ended after it lies there. */
const BACK_US = 5_000_000;
/**
 * From the front, for what was being written to as a look came by, or took longer than that to commit: this often, and no more
 * than this part of the time, as everything that was recorded and is not vacuumed yet is read.
 */
const FRONT_EVERY_MS = 60_000;
const FRONT_SHARE = 0.05;

export type LeaseEndsDeps = {
  /** Puts back up to MAX_PUT_BACK whose leases ended after a time. */
  readonly putBack: (afterUs: number) => Promise<LeaseEnds>;
  /** Queues that have something due again. */
  readonly onBack: (queues: readonly QueueKey[]) => void;
  readonly onError: (error: unknown) => void;
};

/**
 * Runs until it is disposed of, which waits for the statement that is under way. A look comes right after the end of the first
 * lease that the last one saw, and before any that it could not see: each SHORTEST_LEASE_MS.
 */
export function startLeaseEnds({ putBack, onBack, onError }: LeaseEndsDeps): AsyncDisposable {
  let afterUs = 0;
  let frontAt = Number.NEGATIVE_INFINITY;

  async function round(isStopped: () => boolean): Promise<number> {
    const startedAt = performance.now();
    const isFromFront = startedAt >= frontAt;
    for (;;) {
      const { queues, count, nowUs, nextInMs } = await putBack(isFromFront ? 0 : afterUs);
      if (queues.length > 0) onBack(queues);
      if (count === MAX_PUT_BACK && !isStopped()) continue; // what was put back is not there the next time
      const endedAt = performance.now();
      if (isFromFront) frontAt = endedAt + Math.max(FRONT_EVERY_MS, (endedAt - startedAt) / FRONT_SHARE);
      afterUs = nowUs - BACK_US;
      return Math.max(MIN_MS, Math.min(nextInMs ?? SHORTEST_LEASE_MS, SHORTEST_LEASE_MS));
    }
  }

  return startRounds({ round, againMs: AGAIN_MS, onError });
}
