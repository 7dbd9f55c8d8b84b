// The fault scenarios at a tenth of their size, as tests. `npm run faults` runs them in full.
import { randomInt } from 'node:crypto';
import { expect, inject, test } from 'vitest';
import { rowOf } from './report.ts';
import { runScenario } from './runner.ts';
import type { Scenario } from './scenario.ts';

const SCALE = 0.1;

/** A test for each. What is made of tests has run as such. */
export function testAll(scenarios: readonly Scenario[], how: { readonly concurrent?: boolean } = {}): void {
  const seed = Number(process.env['DISPATCH_TEST_SEED'] ?? randomInt(2 ** 31));
  for (const scenario of scenarios.filter((s) => s.isOfTests !== true)) {
    const name = `${scenario.name}: ${scenario.about}, at ${SCALE * 100} %, keeps ${scenario.promises.join(', ')}`;
    test(name, { ...how, timeout: 300_000 }, async () => {
      const said: string[] = [];
      const say = (line: string) => void said.push(line);
      const options = { seed, scale: SCALE, serverUrl: inject('serverUrl'), say };
      const { report } = await runScenario(scenario, options);
      console.log(rowOf(report, SCALE));
      if (report.broken.length > 0) console.log(said.join('\n'));
      expect(report.broken).toEqual([]);
    });
  }
}
