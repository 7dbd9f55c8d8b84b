// The fault scenarios at a tenth of their size. `npm run faults` runs them in full.
import { randomInt } from 'node:crypto';
import { expect, inject, test } from 'vitest';
import { rowOf } from './report.ts';
import { runScenario } from './runner.ts';
import { SCENARIOS } from './scenarios.ts';

const SCALE = 0.1;
const seed = Number(process.env['DISPATCH_TEST_SEED'] ?? randomInt(2 ** 31));

for (const scenario of SCENARIOS.filter((s) => s.isOfTests !== true)) {
  test(`${scenario.about}, at ${SCALE * 100} %, keeps ${scenario.promises.join(', ')}`, async () => {
    const options = { seed, scale: SCALE, serverUrl: inject('serverUrl'), say: () => {} };
    const { report } = await runScenario(scenario, options);
    console.log(rowOf(report, SCALE));
    expect(report.broken).toEqual([]);
  }, 300_000);
}
