// Receivers that do what a receiver should not, against the sender of a worker: every attempt ends in time and once, with
// the right reason, and leaves nothing behind. The behaviours are in test/support/hostile.ts.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { BEHAVIOURS } from '../../support/hostile.ts';
import type { HostileReport } from '../../support/hostile-run.ts';
import type { Scenario } from '../scenario.ts';

const DEADLINE_MS = 1_000;
const ATTEMPTS = 100;
const RUN = new URL('../../support/hostile-run.ts', import.meta.url).pathname;

export const hostile: Scenario = {
  name: 'hostile',
  about: `${BEHAVIOURS.length} hostile behaviours of receivers, ${ATTEMPTS} attempts each`,
  promises: ['P2', 'P7'],
  seconds: 45,
  isTimed: true,
  isQuiet: true,
  async run(world) {
    const attempts = world.sized(ATTEMPTS, 10);
    const args = [RUN, DEADLINE_MS, attempts].map(String);
    const { stdout } = await promisify(execFile)(process.execPath, args);
    const report = JSON.parse(stdout) as HostileReport;
    for (const sentence of report.wrong) world.say(sentence);
    return {
      verdict: undefined,
      figures: [
        { name: 'behaviours', value: BEHAVIOURS.length, atLeast: 40 },
        { name: 'attempts each', value: attempts },
        { name: 'wrong', value: report.wrong.length, atMost: 0 },
        { name: 'latest, ms', value: report.latestMs, atMost: DEADLINE_MS + 1_000 },
        { name: 'memory, MB more', value: report.addedMb, atMost: 100 },
        // Of thousands of connections none is left; one or two may be what the process itself opened meanwhile.
        { name: 'descriptors more', value: report.descriptorsAfter - report.descriptorsBefore, atMost: 2 },
      ],
    };
  },
};
