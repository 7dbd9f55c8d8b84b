// npm run faults [-- --only=worker-kill,api-kill --minutes=60 --seed=1 --out=dir]
// Runs the fault scenarios against real processes and servers, one after the other, and lets the ledger checker judge
// each. Prints a table, writes a JSON report and a picture of each run, and exits with 1 if a promise was broken.
import { randomInt } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { findServer, prepareTemplate } from '../support/postgres.ts';
import { pageOf, rowOf } from './report.ts';
import { FULL_MINUTES, type Report, runScenario } from './runner.ts';
import { SCENARIOS } from './scenarios.ts';

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    minutes: { type: 'string', default: String(FULL_MINUTES) },
    seed: { type: 'string', default: String(randomInt(2 ** 31)) },
    out: { type: 'string', default: 'test/faults/results' },
  },
});
const names = values.only?.split(',');
const chosen = SCENARIOS.filter((s) => names?.includes(s.name) ?? true);
const unknown = names?.filter((name) => !SCENARIOS.some((s) => s.name === name)) ?? [];
const minutes = Number(values.minutes);
const seed = Number(values.seed);
if (unknown.length > 0 || !(minutes > 0) || !Number.isSafeInteger(seed)) {
  process.stderr.write(
    `scenarios are ${SCENARIOS.map((s) => s.name).join(', ')}; --minutes > 0 (${FULL_MINUTES}: full size); --seed a whole number\n`,
  );
  process.exit(2);
}

// Servers are processes of their own: an interrupted run stops them, too.
const interrupted = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => interrupted.abort());
// What a scenario that is over still had under way fails, as its processes end: that must not keep the rest from running.
process.on('unhandledRejection', (error) => process.stderr.write(`  left behind: ${error}\n`));

const server = await findServer();
await prepareTemplate(server.url);
await mkdir(values.out, { recursive: true });
const scale = Math.min(1, minutes / FULL_MINUTES);
const share = `${Math.round(scale * 100)} % of the full size`;
process.stdout.write(`seed ${seed}, ${share}\n`);
const reports: Report[] = [];
for (const scenario of chosen) {
  const say = (line: string) => process.stderr.write(`  ${scenario.name}: ${line}\n`);
  const options = { seed, scale, serverUrl: server.url, say, signal: interrupted.signal };
  const { report, picture } = await runScenario(scenario, options);
  if (interrupted.signal.aborted) break;
  reports.push(report);
  await writeFile(join(values.out, `${scenario.name}.svg`), picture);
  process.stdout.write(`${rowOf(report, scale)}\n`);
}
await server.stop();
if (interrupted.signal.aborted) process.exit(130);

const machine = { cpu: cpus()[0]?.model, cores: cpus().length, node: process.version };
const at = new Date().toISOString();
await writeFile(
  join(values.out, 'report.json'),
  `${JSON.stringify({ at, machine, seed, scale, reports }, null, 2)}\n`,
);
const about = `${at.slice(0, 10)}, ${share}, ${machine.cores} cores (${machine.cpu}), Node ${machine.node.slice(1)}; acked and received per second, faults in red.`;
await writeFile(join(values.out, 'README.md'), pageOf(reports, about));
const broken = reports.filter((report) => report.broken.length > 0);
process.stdout.write(
  `${reports.length - broken.length} of ${reports.length} held; report and pictures in ${values.out}\n`,
);
process.exit(broken.length === 0 ? 0 : 1);
