// Takes parked deliveries out before they are due: every fifteen seconds a look along what is parked, by time. Each worker does so,
// whatever the others do: what one is taking out is passed over by the next.
import { type ParkedPosition, parkedFrom, UNPARK_AHEAD_MS, type Unparked } from '../storage/parking.ts';
import { startRounds } from './rounds.ts';

const EVERY_MS = 15_000;
/** After a failure. The time that is left before the first are late is three rounds. */
const AGAIN_MS = 1_000;
/** A look begins this long before where the last one came to: so each time is looked at twice, as what is being written to is passed over. */
const BACK_MS = 30_000;
/** How often one begins at the front instead: for what was parked too late to be seen, or by a clock that went wrong. */
const FRONT_EVERY_MS = 60_000;
/** Most of the time that those may take: they read all that was taken out and is not vacuumed yet, and may fail where the others do not. */
const FRONT_SHARE = 0.05;

export type UnparkerDeps = {
  /** Takes out up to so many from a position on; undefined: some minutes ago. */
  readonly unpark: (after: ParkedPosition | undefined) => Promise<Unparked>;
  readonly onError: (error: unknown) => void;
};

/** Runs until it is disposed of, which waits for the statement that is under way. */
export function startUnparker({ unpark, onError }: UnparkerDeps): AsyncDisposable {
  let from: ParkedPosition | undefined;
  let frontAtMs = 0;

  async function round(isStopped: () => boolean): Promise<number> {
    const isFront = performance.now() >= frontAtMs;
    const nowUs = isFront ? await takeOutFromFront(isStopped) : await takeOut(from, isStopped);
    from = parkedFrom(nowUs + (UNPARK_AHEAD_MS - BACK_MS) * 1000);
    return EVERY_MS;
  }

  async function takeOutFromFront(isStopped: () => boolean): Promise<number> {
    const startedAtMs = performance.now();
    let leastMs = 0;
    try {
      const nowUs = await takeOut(parkedFrom(0), isStopped);
      leastMs = FRONT_EVERY_MS;
      return nowUs;
    } finally {
      const endedAtMs = performance.now();
      frontAtMs = endedAtMs + Math.max(leastMs, (endedAtMs - startedAtMs) / FRONT_SHARE);
    }
  }

  /**
   * Whatever comes near. In half of the time, so that a million that are due together leave the other half to what is due now.
   * Returns when the first statement began.
   */
  async function takeOut(after: ParkedPosition | undefined, isStopped: () => boolean): Promise<number> {
    let startedAtMs = performance.now();
    let { next, nowUs } = await unpark(after);
    while (next !== undefined && !isStopped()) {
      const tookMs = performance.now() - startedAtMs;
      await new Promise((done) => setTimeout(done, tookMs));
      startedAtMs = performance.now();
      ({ next } = await unpark(next));
    }
    return nowUs;
  }

  return startRounds({ round, againMs: AGAIN_MS, onError });
}
