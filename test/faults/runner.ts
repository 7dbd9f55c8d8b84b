// Runs one scenario in a world of its own, within its time, and judges it.
import { setTimeout as wait } from 'node:timers/promises';
import type { Verdict } from '../support/ledger.ts';
import { brokenBy, type Figure, type Outcome, type Scenario } from './scenario.ts';
import { createWorld, type WorldOptions } from './world.ts';

/** What a run of every scenario at full size takes, about. */
export const FULL_MINUTES = 50;

/** What is written down of a run. */
export type Report = {
  readonly scenario: string;
  readonly about: string;
  readonly promises: readonly string[];
  readonly seed: number;
  readonly seconds: number;
  readonly verdict: Verdict | undefined;
  readonly figures: readonly Figure[];
  /** Empty: every promise held. */
  readonly broken: readonly string[];
};

/** Beyond this and three times its own time a scenario hangs. */
const GRACE_S = 120;

/** Never throws: what goes wrong is a broken promise in the report. */
export async function runScenario(
  scenario: Scenario,
  options: WorldOptions,
): Promise<{ readonly report: Report; readonly picture: string }> {
  const startedAt = performance.now();
  const world = createWorld(options);
  const limitS = scenario.seconds * options.scale * 3 + GRACE_S;
  const timer = new AbortController();
  const signal = AbortSignal.any([timer.signal, ...(options.signal === undefined ? [] : [options.signal])]);
  let outcome: Outcome = { verdict: undefined, figures: [] };
  let broken: readonly string[];
  try {
    const late = wait(limitS * 1000, undefined, { signal }).then(() => {
      throw new Error(`it was not done after ${limitS.toFixed(0)} s`);
    });
    late.catch(() => {}); // the race has it
    outcome = await Promise.race([scenario.run(world), late]);
    broken = brokenBy(outcome);
  } catch (error) {
    broken = [error instanceof Error ? (error.stack ?? error.message) : String(error)];
  } finally {
    timer.abort();
    await world[Symbol.asyncDispose]();
  }
  const seconds = (performance.now() - startedAt) / 1000;
  const report = {
    scenario: scenario.name,
    about: scenario.about,
    promises: scenario.promises,
    seed: options.seed,
    seconds: Math.round(seconds * 10) / 10,
    ...outcome,
    broken,
  };
  return { report, picture: world.timeline.toSvg(`${scenario.name}, seed ${options.seed}`) };
}
