// Carries replay jobs out, step by step. A job survives restarts: its place is in the database.
import type { Replay, ReplayStep, RunningReplay } from '../storage/replays.ts';

export type ReplayDeps = {
  readonly running: () => Promise<readonly RunningReplay[]>;
  readonly step: (replay: RunningReplay) => Promise<ReplayStep>;
  /** Says that some queues have something due. */
  readonly readyAny: () => void;
  readonly onFinished: (replay: Replay) => void;
  readonly onError: (error: unknown) => void;
};

/** What a round did. `nextInMs`: when a job may go on; undefined: none runs. */
export type ReplayRound = { readonly movedCount: number; readonly nextInMs: number | undefined };

/** One step of every job whose turn it is. */
export async function runReplaysOnce(deps: ReplayDeps): Promise<ReplayRound> {
  let movedCount = 0;
  let nextInMs: number | undefined;
  for (const replay of await deps.running()) {
    if (replay.waitMs > 0) {
      nextInMs = Math.min(nextInMs ?? replay.waitMs, replay.waitMs);
      continue;
    }
    try {
      const step = await deps.step(replay);
      movedCount += step.movedCount;
      if (step.finished !== undefined) deps.onFinished(step.finished);
      if (!step.isOver) nextInMs = 0;
    } catch (error) {
      deps.onError(error); // one tenant's job must not hold up the others'
    }
  }
  if (movedCount > 0) deps.readyAny();
  return { movedCount, nextInMs };
}
