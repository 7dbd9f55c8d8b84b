import { availableParallelism, platform } from 'node:os';
import { expect, test } from 'vitest';
import { coresIn, readHost, ticksIn } from '../../src/compose/host.ts';

test('cores that wait for the disk are free, those that another guest of the machine has are not', () => {
  const text = 'cpu  10 20 30 400 50 6 7 8 900 1000\ncpu0 10 20 30 400 50 6 7 8 900 1000\nintr 1 2 3\n';
  expect(ticksIn(text)).toEqual({ all: 531, free: 450 });
  expect(coresIn(text)).toBe(1);
});

test.each(['', 'cpu  1 2 3\n', 'intr 1\n'])('of %j nothing is known', (text) => {
  expect(ticksIn(text)).toBe(undefined);
  expect(coresIn(text)).toBe(0);
});

test('a host tells who it is and what its cores did, and is known only where this process may use all of them', () => {
  const host = readHost();
  if (host === undefined) {
    console.log(`This host is not known (${platform()}, ${availableParallelism()} cores to use).`);
    return;
  }
  expect(host.id).toMatch(/^[0-9a-f-]{36}$/);
  expect(readHost()!.id).toBe(host.id);
  expect(host.coreCount).toBeLessThanOrEqual(availableParallelism());
  const { all, free } = host.coreTicks()!;
  expect(free).toBeLessThanOrEqual(all);
  expect(host.coreTicks()!.all).toBeGreaterThanOrEqual(all);
});
