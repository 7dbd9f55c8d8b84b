// The database's clock, without asking it: every host's own may be wrong or set anew, and schedules, ages and ids of one
// delivery are worked out on several hosts.

export type DatabaseClock = {
  /** The database said that it was this time (ms since 1970) between two readings of the monotonic clock. */
  readonly saw: (databaseMs: number, beganMs: number, endedMs: number) => void;
  /** Its time now, in whole ms since 1970. */
  readonly now: () => number;
};

/** `monotonic` in ms; `hostNow` is what counts until the database has been seen. */
export function createDatabaseClock(monotonic: () => number, hostNow: () => number): DatabaseClock {
  let offsetMs = hostNow() - monotonic();
  let errorMs = Number.POSITIVE_INFINITY;
  return {
    saw(databaseMs, beganMs, endedMs) {
      const seenMs = databaseMs - (beganMs + endedMs) / 2;
      const seenErrorMs = (endedMs - beganMs) / 2;
      // An answer that took longer, and agrees with what is known, teaches nothing.
      if (seenErrorMs > errorMs && Math.abs(seenMs - offsetMs) <= seenErrorMs) return;
      offsetMs = seenMs;
      errorMs = seenErrorMs;
    },
    now: () => Math.round(offsetMs + monotonic()),
  };
}
