// Takes parked deliveries out before they are due: every twenty seconds a look along what is parked, by time. Each worker does so,
// whatever the others do: what one is taking out is passed over by the next.
import {
  PARKED_FRONT,
  type ParkedPosition,
  parkedFrom,
  UNPARK_AHEAD_MS,
  type Unparked,
} from '../storage/parking.ts';
import { startRounds } from './rounds.ts';

/** From the end of a look to the next. */
const EVERY_MS = 20_000;
/** After a failure. The time that is left before the first are late is two looks. */
const AGAIN_MS = 1_000;
/** A look begins this long before where the one before the last came to: what was being written to lies there. */
const BACK_MS = 5_000;
/** How often one begins at the front: for what was parked too late to be seen, by the clock of its time or by its commit. */
const FRONT_EVERY_MS = 60_000;
/** Most of the time that those may read what was taken out and is not vacuumed yet. They may fail of it where the others do not. */
const FRONT_SHARE = 0.05;
/** But so often, whatever the last one took: a statement ends after 30 s. */
const FRONT_MOST_MS = 600_000;

export type UnparkerDeps = {
  /** Takes out up to so many from a position on; undefined: from some minutes ago. */
  readonly unpark: (after: ParkedPosition | undefined) => Promise<Unparked>;
  readonly onError: (error: unknown) => void;
};

/** Runs until it is disposed of, which waits for the statements that are under way. Looks from the front come beside the others. */
export function startUnparker({ unpark, onError }: UnparkerDeps): AsyncDisposable {
  let from: ParkedPosition | undefined;
  let lastUs: number | undefined;

  async function look(isStopped: () => boolean): Promise<number> {
    const { next, nowUs } = await unpark(from);
    await takeOut(next, isStopped);
    from = parkedFrom((lastUs ?? nowUs) + (UNPARK_AHEAD_MS - BACK_MS) * 1000); // so each time is looked at twice
    lastUs = nowUs;
    return EVERY_MS;
  }

  async function lookFromFront(isStopped: () => boolean): Promise<number> {
    const startedAtMs = performance.now();
    let readMs: number | undefined;
    let leastMs = AGAIN_MS;
    try {
      const { next } = await unpark(PARKED_FRONT);
      readMs = performance.now() - startedAtMs;
      await takeOut(next, isStopped);
      leastMs = FRONT_EVERY_MS;
    } catch (error) {
      onError(error);
    }
    readMs ??= performance.now() - startedAtMs;
    return Math.min(FRONT_MOST_MS, Math.max(leastMs, readMs / FRONT_SHARE));
  }

  /** What there is more. In half of the time, so that a million that are due together leave the other half to what is due now. */
  async function takeOut(next: ParkedPosition | undefined, isStopped: () => boolean): Promise<void> {
    for (let after = next; after !== undefined && !isStopped(); ) {
      const startedAtMs = performance.now();
      ({ next: after } = await unpark(after));
      const tookMs = performance.now() - startedAtMs;
      if (after !== undefined) await new Promise((done) => setTimeout(done, tookMs));
    }
  }

  return startRounds({ rounds: [look, lookFromFront], againMs: AGAIN_MS, onError });
}
