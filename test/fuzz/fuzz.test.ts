// Every decoder of foreign bytes: what its corpus holds, and a second of mutations of that. Longer: npm run fuzz.
import { randomInt } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { SCALE } from '../support/scale.ts';
import { fuzz } from './fuzzer.ts';
import { Broken, ensure, type Target } from './target.ts';
import { TARGETS } from './targets.ts';

const seed = Number(process.env['DISPATCH_TEST_SEED'] ?? randomInt(2 ** 31));
const seconds = 10 * SCALE;

describe(`with seed ${seed}`, () => {
  for (const target of TARGETS) {
    test(`${target.name}: ${target.about}`, { timeout: 60_000 }, async () => {
      const { failure, executions } = await fuzz(target, { seed, seconds });
      const shown =
        failure && `${JSON.stringify(failure.input.toString('latin1'))}: ${String(failure.error)}`;
      expect(
        shown,
        `seed ${seed}: npm run fuzz -- --plain --only=${target.name} --seed=${seed}`,
      ).toBeUndefined();
      expect(executions).toBeGreaterThan(0);
    });
  }
});

test('every folder of the corpus belongs to a target', async () => {
  const folders = await readdir(join(import.meta.dirname, 'corpus'));
  expect(folders.filter((name) => !TARGETS.some((target) => target.name === name))).toEqual([]);
});

describe('the fuzzer', () => {
  const target: Target = {
    name: 'none',
    about: '',
    seeds: ['a=1;b=22'],
    words: ['=', ';'],
    run: (input) => ensure(!/;;./.test(input.toString('latin1')), 'two semicolons'),
  };

  test('finds what breaks a target, makes it small, and does the same again with the same seed', async () => {
    const [once, again] = [
      await fuzz(target, { seed: 7, seconds: 10 }),
      await fuzz(target, { seed: 7, seconds: 10 }),
    ];
    expect(once.failure?.error).toBeInstanceOf(Broken);
    expect(once.failure?.input).toHaveLength(3);
    expect(again.failure?.input).toEqual(once.failure?.input);
    expect(again.executions).toBe(once.executions);
  });

  test('finds what takes too long', async () => {
    const slow: Target = {
      ...target,
      run: () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300) as unknown as undefined,
    };
    const { failure } = await fuzz(slow, { seed: 7, seconds: 1 });
    expect(String(failure?.error)).toMatch(/^Broken: it took \d+ ms/);
  });
});
