// Where V8 puts what is made after most of its kind outlived a collection.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

const run = promisify(execFile);

/** Keeps what it makes, again and again, and counts how often what was made last is old from the start. */
const KEEPING = `
  const make = (i) => { const made = new Array(4); for (let k = 0; k < 4; k++) made[k] = i + k; return made; };
  const keep = (kept) => { for (let i = 0; i < 500_000; i++) kept.push(make(i)); return kept.at(-1); };
  let old = 0;
  for (let round = 0; round < 12; round++) if (!%InYoungGeneration(keep([]))) old++;
  console.log(old);
`;

/** Collects and compiles where it runs, so that each run decides the same. */
async function oldOf(script: string): Promise<number> {
  const flags = ['--allow-natives-syntax', '--single-threaded', '--input-type=module'];
  return Number((await run(process.execPath, [...flags, '--eval', script])).stdout);
}

test('what is made where much was kept is made in the young generation, like everything else', async () => {
  const heap = new URL('../src/heap.ts', import.meta.url).href;
  expect(await oldOf(`import '${heap}';${KEEPING}`)).toBe(0);
  expect(await oldOf(KEEPING)).toBeGreaterThan(0); // without it: or this test would say nothing
});
