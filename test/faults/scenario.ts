// A fault scenario: what it breaks, which promises it proves, and the bounds its figures must keep. The ledger checker
// judges every run; `brokenBy` is where a verdict becomes a list of broken promises.
import { BROKEN, type Verdict } from '../support/ledger.ts';
import type { World } from './world.ts';

/** A measured number and, where the design states one, its bound. */
export type Figure = {
  readonly name: string;
  readonly value: number;
  readonly atMost?: number;
  readonly atLeast?: number;
};

/** What a run found. */
export type Outcome = {
  /** Undefined for scenarios that deliver nothing; what they found is in `figures` then. */
  readonly verdict: Verdict | undefined;
  readonly figures: readonly Figure[];
};

export type Scenario = {
  /** Its name for --only: lower case, with dashes. */
  readonly name: string;
  /** One line: the fault, and what must hold under it. */
  readonly about: string;
  /** P1–P8 of the design. */
  readonly promises: readonly string[];
  /** What it takes at full size, in seconds; a run of three times as long is broken. */
  readonly seconds: number;
  /** Its figures say how long things took: nothing may run beside it, but for what leaves the cores idle as it does. */
  readonly isTimed?: boolean;
  /** In a cut it waits nearly all the time. */
  readonly isQuiet?: boolean;
  /** It is made of tests, which run with all others: nothing to be cut. */
  readonly isOfTests?: boolean;
  readonly run: (world: World) => Promise<Outcome>;
};

/** Every promise that an outcome breaks, as sentences; empty: it held. */
export function brokenBy({ verdict, figures }: Outcome): string[] {
  const broken: string[] = [];
  if (verdict !== undefined) {
    if (verdict.acked === 0) broken.push('nothing was acked: the run proves nothing');
    for (const name of BROKEN) if (verdict[name] > 0) broken.push(`${name}: ${verdict[name]}`);
  }
  for (const { name, value, atMost, atLeast } of figures) {
    if (Number.isNaN(value)) broken.push(`${name} was not measured`);
    if (atMost !== undefined && value > atMost) broken.push(`${name}: ${value}, at most ${atMost}`);
    if (atLeast !== undefined && value < atLeast) broken.push(`${name}: ${value}, at least ${atLeast}`);
  }
  return broken;
}
