// npm run fuzz [-- --only=url,jwt --seconds=60 --seed=1 --plain --keep]
// Runs the fuzz targets, one after the other, guided by what code their inputs reach (--plain: not guided, as the tests
// do it). Prints an input that fails, stores it in test/fuzz/corpus/ and exits with 1. --keep also stores what reached
// new code.
import { createHash, randomInt } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startCoverage } from './coverage.ts';
import { corpusOf, type Failure, fuzz } from './fuzzer.ts';
import type { Target } from './target.ts';
import { TARGETS } from './targets.ts';

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    seconds: { type: 'string', default: '10' },
    seed: { type: 'string', default: String(randomInt(2 ** 31)) },
    plain: { type: 'boolean', default: false },
    keep: { type: 'boolean', default: false },
  },
});
const names = values.only?.split(',');
const chosen = TARGETS.filter((target) => names?.includes(target.name) ?? true);
const unknown = names?.filter((name) => !TARGETS.some((target) => target.name === name)) ?? [];
const seconds = Number(values.seconds);
const seed = Number(values.seed);
if (unknown.length > 0 || !(seconds > 0) || !Number.isSafeInteger(seed)) {
  process.stderr.write(
    `targets are ${TARGETS.map((target) => target.name).join(', ')}; --seconds > 0; --seed a whole number\n`,
  );
  process.exit(2);
}

/** Stored inputs that are not failures: a few KiB for each target. */
const MAX_KEPT_BYTES = 3_000;

process.stdout.write(`seed ${seed}\n`);
let failures = 0;
for (const target of chosen) {
  const coverage = values.plain ? undefined : startCoverage((url) => url.includes('/src/'));
  const run = await fuzz(target, { seed, seconds, coverage });
  const rate = Math.round(run.executions / run.seconds);
  const reached =
    coverage === undefined ? '' : `, ${coverage.size()} characters of src, ${run.kept.length} new inputs`;
  process.stdout.write(
    `${run.failure === undefined ? 'held  ' : 'BROKEN'}  ${target.name.padEnd(22)} ${run.executions} inputs, ${rate}/s${reached}\n`,
  );
  if (run.failure !== undefined) {
    failures++;
    await report(target, run.failure);
  }
  if (values.keep) await keep(target, run.kept);
}
process.exit(failures === 0 ? 0 : 1);

async function report(target: Target, { input, error }: Failure): Promise<void> {
  const path = await store(target, 'found', input);
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  process.stdout.write(
    `        ${JSON.stringify(input.toString('latin1'))}\n        stored as ${path}\n${text}\n`,
  );
}

async function keep(target: Target, inputs: readonly Buffer[]): Promise<void> {
  let bytes = 0;
  for (const input of [...inputs].sort((a, b) => a.length - b.length)) {
    bytes += input.length;
    if (bytes > MAX_KEPT_BYTES) return;
    await store(target, 'new', input);
  }
}

async function store(target: Target, kind: string, input: Buffer): Promise<string> {
  const folder = corpusOf(target);
  await mkdir(folder, { recursive: true });
  const digest = createHash('sha256').update(input).digest('hex').slice(0, 12);
  const path = join(folder, `${kind}-${digest}`);
  await writeFile(path, input);
  return path;
}
