// Where V8 puts what is made after most of its kind outlived a collection, and when it collects what is old.
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

/** Keeps all that it makes, and tells at how many times what lived V8 begins to collect all of it. */
const GROWING = `
  import { PerformanceObserver } from 'node:perf_hooks';
  const FULL = 4;
  let count = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (entry.detail.kind === FULL) count++;
  }).observe({ entryTypes: ['gc'] });
  const turn = () => new Promise((done) => setTimeout(done, 1));
  const kept = [];
  const keep = (n) => { for (let i = 0; i < n; i++) kept.push({ i, list: [i, i + 1, i + 2] }); };
  keep(1_000_000);
  gc();
  await turn();
  await turn();
  const lived = process.memoryUsage().heapUsed;
  const before = count;
  let size = lived;
  while (count === before) {
    size = process.memoryUsage().heapUsed;
    keep(5_000);
    await turn();
  }
  console.log(size / lived);
`;

test('the heap grows by about a half between two full collections, however fast it grows', async () => {
  const heap = new URL('../src/heap.ts', import.meta.url).href;
  const grownBy = async (script: string) => {
    const flags = ['--expose-gc', '--max-old-space-size=4096', '--input-type=module'];
    const { stdout, stderr } = await run(process.execPath, [...flags, '--eval', script]);
    expect(stderr).toBe('');
    return Number(stdout);
  };
  const grown = await grownBy(`import '${heap}';${GROWING}`);
  expect(grown).toBeGreaterThan(1.4);
  expect(grown).toBeLessThan(2.2);
  expect(await grownBy(GROWING)).toBeGreaterThan(3.3); // without it: or this test would say nothing
});
