// An alarm on old snapshots. While a transaction can still see rows that were deleted since it began, vacuum leaves them,
// and claims walk over them: a forgotten session makes every delivery slower.

import { createAlarm } from '../domain/alarm.ts';

export type SnapshotWatchDeps = {
  /** The age of the oldest snapshot in the database, in seconds; 0: there is none. */
  readonly read: () => Promise<number>;
  /** For the gauge; undefined: this process does not look any more. */
  readonly onAge: (seconds: number | undefined) => void;
  /** It became too old, or is no more. Told once for each change. */
  readonly onChange: (isTooOld: boolean, seconds: number) => void;
};

export type SnapshotWatch = {
  /** Looks once. Returns 0: there is nothing to count. */
  readonly look: () => Promise<number>;
  /** Another instance looks from now on. */
  readonly rest: () => void;
};

/** Older than any statement or transaction of dispatch's own may become. */
export const MAX_SNAPSHOT_SECONDS = 300;

export function createSnapshotWatch(deps: SnapshotWatchDeps): SnapshotWatch {
  let alarm = createAlarm(MAX_SNAPSHOT_SECONDS, deps.onChange);
  return {
    async look() {
      const seconds = await deps.read();
      deps.onAge(seconds);
      alarm(seconds);
      return 0;
    },
    rest() {
      alarm = createAlarm(MAX_SNAPSHOT_SECONDS, deps.onChange);
      deps.onAge(undefined);
    },
  };
}
