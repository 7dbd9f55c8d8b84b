// npm run bench [-- --only=end-to-end,ingest-batch --seconds=5 --rounds=3 --json=file]
// Each scenario measures product and floor in turn (A B A B …) and tells the medians, their spread and the ratio. A
// ratio counts; an absolute figure on a shared machine does not. The JSON file has all of it, an SVG beside it the ratios.
import { mkdir, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { budget } from './scenarios/budget.ts';
import { changes } from './scenarios/changes.ts';
import { claims } from './scenarios/claims.ts';
import { delayed } from './scenarios/delayed.ts';
import { endToEnd, endToEnd10, endToEnd10By2, endToEnd100 } from './scenarios/end-to-end.ts';
import { fairness } from './scenarios/fairness.ts';
import { idle } from './scenarios/idle.ts';
import { ingestBatch, ingestJson, ingestStream, ingestUnary } from './scenarios/ingest.ts';
import { busyLatency, idleLatency } from './scenarios/latency.ts';
import { limits } from './scenarios/limits.ts';
import { processes } from './scenarios/processes.ts';
import { oneHangs, receivers } from './scenarios/receivers.ts';
import { backlog, stored, subscriptions } from './scenarios/scale.ts';
import type { Measured, Scenario } from './scenarios/scenario.ts';
import { workers } from './scenarios/workers.ts';
import { chart, type Pair, type Series } from './support/chart.ts';
import { startDatabase } from './support/processes.ts';

const SCENARIOS: readonly Scenario[] = [
  ingestBatch,
  ingestStream,
  ingestUnary,
  ingestJson,
  endToEnd,
  endToEnd10,
  endToEnd10By2,
  endToEnd100,
  budget,
  limits,
  idleLatency,
  busyLatency,
  receivers,
  oneHangs,
  processes,
  subscriptions,
  idle,
  workers,
  claims,
  delayed,
  fairness,
  changes,
  backlog,
  stored,
];

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    seconds: { type: 'string', default: '5' },
    rounds: { type: 'string', default: '3' },
    json: { type: 'string', default: 'bench/results/latest.json' },
  },
});
const names = values.only?.split(',');
const chosen = SCENARIOS.filter((s) => names?.includes(s.name) ?? s.isLong !== true);
const unknown = names?.filter((name) => !SCENARIOS.some((s) => s.name === name)) ?? [];
const seconds = Number(values.seconds);
const rounds = Number(values.rounds);
if (unknown.length > 0 || !(seconds > 0) || !(rounds >= 1)) {
  process.stderr.write(
    `scenarios are ${SCENARIOS.map((s) => s.name).join(', ')}; --seconds > 0, --rounds ≥ 1\n`,
  );
  process.exit(2);
}

type Result = {
  readonly scenario: string;
  readonly about: string;
  readonly product?: Series;
  readonly floor?: Series;
  readonly ratio?: number;
  readonly figures?: Readonly<Record<string, Series>>;
};

function seriesOf(numbers: readonly number[]): Series {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const median = (sorted[Math.ceil(middle) - 1]! + sorted[Math.floor(middle)]!) / 2;
  return { median, min: sorted[0]!, max: sorted[sorted.length - 1]! };
}

function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
  else process.stderr.write(`${text}\n`);
}

async function measure(scenario: Scenario, serverUrl: string): Promise<Result> {
  progress(`${scenario.name}: starting`);
  await using running = await scenario.start({ serverUrl, seconds });
  const product: Measured[] = [];
  const floor: Measured[] = [];
  for (let round = 1; round <= rounds; round++) {
    progress(`${scenario.name}: round ${round}/${rounds}, product`);
    product.push(await running.product());
    if (running.floor === undefined) continue;
    progress(`${scenario.name}: round ${round}/${rounds}, floor`);
    floor.push(await running.floor());
  }
  return resultOf(scenario, product, floor);
}

function resultOf(scenario: Scenario, product: readonly Measured[], floor: readonly Measured[]): Result {
  const head = { scenario: scenario.name, about: scenario.about };
  const rates = (list: readonly Measured[]) => list.flatMap((m) => ('perSecond' in m ? [m.perSecond] : []));
  if (rates(product).length > 0) {
    const measured = { ...head, product: seriesOf(rates(product)) };
    if (floor.length === 0) return measured;
    const bare = seriesOf(rates(floor));
    return { ...measured, floor: bare, ratio: measured.product.median / bare.median };
  }
  const all = product.flatMap((m) => ('figures' in m ? [m.figures] : []));
  const keys = Object.keys(all[0] ?? {});
  return {
    ...head,
    figures: Object.fromEntries(keys.map((key) => [key, seriesOf(all.map((f) => f[key]!))])),
  };
}

function line(result: Result): string {
  const rate = (s: Series | undefined) =>
    s === undefined ? '' : `${Math.round(s.median)} /s (${Math.round(s.min)}–${Math.round(s.max)})`;
  const name = result.scenario.padEnd(16);
  if (result.figures === undefined) {
    const ratio = result.ratio === undefined ? '' : result.ratio.toFixed(2);
    return `${name}${rate(result.product).padEnd(28)}${rate(result.floor).padEnd(28)}${ratio}`;
  }
  const figures = Object.entries(result.figures).map(
    ([key, s]) => `${key} ${s.median.toFixed(2)} (${s.min.toFixed(2)}–${s.max.toFixed(2)})`,
  );
  return name + figures.join('  ');
}

await using database = await startDatabase();
const results: Result[] = [];
for (const scenario of chosen) {
  const result = await measure(scenario, database.url);
  results.push(result);
  progress('');
  if (results.length === 1)
    process.stdout.write(`${'scenario'.padEnd(16)}${'product'.padEnd(28)}${'floor'.padEnd(28)}ratio\n`);
  process.stdout.write(`${line(result)}\n`);
}
const machine = {
  cpu: cpus()[0]?.model,
  cores: cpus().length,
  node: process.version,
  platform: process.platform,
};
await mkdir(new URL('./results/', import.meta.url), { recursive: true });
await writeFile(
  values.json,
  `${JSON.stringify({ at: new Date().toISOString(), machine, seconds, rounds, results }, null, 2)}\n`,
);
const pairs = results.flatMap(({ scenario, product, floor }): Pair[] =>
  product === undefined || floor === undefined ? [] : [{ scenario, product, floor }],
);
const picture = values.json.replace(/\.json$/, '.svg');
if (pairs.length > 0 && picture !== values.json) {
  await writeFile(picture, chart('events or deliveries per second, medians (least–most)', pairs));
}
process.stdout.write(`\nmedians (min–max) of ${rounds} rounds of ${seconds} s; JSON in ${values.json}\n`);
