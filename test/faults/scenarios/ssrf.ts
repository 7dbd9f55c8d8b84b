// The guard of every way out, by the tests that hold it: spellings, an oracle on random addresses, rebinding names and
// public controls, on the units and through the API. They always run in full; this brings them into the report.
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Scenario } from '../scenario.ts';

const FILES = ['test/egress/ssrf.test.ts', 'test/egress/guard.test.ts', 'test/e2e/ssrf.test.ts'];
const ROOT = new URL('../../../', import.meta.url).pathname;
const VITEST = `${ROOT}node_modules/vitest/vitest.mjs`;

type VitestReport = { readonly numPassedTests: number; readonly numTotalTests: number };

export const ssrf: Scenario = {
  name: 'ssrf',
  about: '≥ 250 spellings × every way in, 100,000 random addresses against an oracle, 1,000 rebinding tries',
  promises: ['P6'],
  seconds: 45,
  isOfTests: true,
  async run(world) {
    const dir = await mkdtemp(join(tmpdir(), 'dispatch-ssrf-'));
    const file = join(dir, 'report.json');
    const args = [VITEST, 'run', '--reporter=json', `--outputFile.json=${file}`, ...FILES];
    const run = promisify(execFile)(process.execPath, args, { cwd: ROOT, maxBuffer: 2 ** 26 });
    await run.catch((error: Error) => world.say(error.message)); // what failed is counted below
    const report = JSON.parse(await readFile(file, 'utf8')) as VitestReport;
    await rm(dir, { recursive: true });
    return {
      verdict: undefined,
      figures: [
        { name: 'checks', value: report.numTotalTests, atLeast: 250 },
        { name: 'that failed', value: report.numTotalTests - report.numPassedTests, atMost: 0 },
      ],
    };
  },
};
