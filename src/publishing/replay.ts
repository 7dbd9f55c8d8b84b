// Carries replay jobs out, step by step. A job survives restarts: its place is in the database.
import type { Replay } from '../storage/dead-letters.ts';

export type ReplayDeps = {
  readonly running: () => Promise<readonly Replay[]>;
  readonly step: (replay: Replay) => Promise<{ readonly movedCount: number; readonly finished: boolean }>;
  /** Says that some queues have something due. */
  readonly readyAny: () => void;
  readonly onError: (error: unknown) => void;
};

/** One step of every running job. Returns how many dead letters were requeued and whether a job still runs. */
export async function runReplaysOnce(
  deps: ReplayDeps,
): Promise<{ readonly movedCount: number; readonly moreToDo: boolean }> {
  let movedCount = 0;
  let moreToDo = false;
  for (const replay of await deps.running()) {
    try {
      const step = await deps.step(replay);
      movedCount += step.movedCount;
      if (!step.finished) moreToDo = true;
    } catch (error) {
      deps.onError(error); // one tenant's job must not hold up the others'
    }
  }
  if (movedCount > 0) deps.readyAny();
  return { movedCount, moreToDo };
}
