import { platform } from 'node:os';
import { expect, test } from 'vitest';
import { coreCount, coreTicks, hostId, ticksIn } from '../../src/compose/host.ts';

test('cores that wait for the disk are free, those that another guest of the machine has are not', () => {
  const text = 'cpu  10 20 30 400 50 6 7 8 900 1000\ncpu0 10 20 30 400 50 6 7 8 900 1000\nintr 1 2 3\n';
  expect(ticksIn(text)).toEqual({ all: 531, free: 450 });
});

test.each(['', 'cpu  1 2 3\n', 'intr 1\n'])('of %j nothing is known', (text) => {
  expect(ticksIn(text)).toBe(undefined);
});

test('Linux tells of this host, other systems of nothing', () => {
  if (platform() !== 'linux') {
    expect([hostId(), coreCount(), coreTicks()]).toEqual([undefined, 0, undefined]);
    return;
  }
  expect(hostId()).toMatch(/^[0-9a-f-]{36}$/);
  expect(hostId()).toBe(hostId());
  expect(coreCount()).toBeGreaterThan(0);
  const { all, free } = coreTicks()!;
  expect(free).toBeLessThanOrEqual(all);
  expect(coreTicks()!.all).toBeGreaterThanOrEqual(all);
});
