import { expect, test } from 'vitest';
import { handOversOf, looserBySeconds } from './hands.ts';

const away = (atMs: number) => ({ atMs, isShared: false });
const back = (atMs: number) => ({ atMs, isShared: true });
const WINDOW = { fromMs: 10_000, toMs: 11_000 };

test('changes of hands are read from what a process logs, and nothing else is', () => {
  const line = (time: string, msg: string) => JSON.stringify({ level: 'info', time, pid: 1, msg });
  const output = [
    line('2026-11-27T10:00:00.000Z', 'Redis is there: limits are shared'),
    line('2026-11-27T10:00:01.500Z', 'Redis is away: limits are kept by each instance'),
    line('2026-11-27T10:00:02.000Z', 'a breaker changed'),
  ].join('\n');
  const startedAtMs = Date.parse('2026-11-27T10:00:00.000Z');
  expect(handOversOf(output)).toEqual([back(startedAtMs), away(startedAtMs + 1_500)]);
});

test('a rate is not looser while all share it, nor while all have kept their own parts for long', () => {
  expect(looserBySeconds([[back(0)], [back(0)]], WINDOW)).toBe(0);
  expect(looserBySeconds([[away(5_000)], [away(5_000)]], WINDOW)).toBe(0);
});

test('two that change hands at once let 0.3 s pass, for each time', () => {
  const once = [away(10_500)];
  expect(looserBySeconds([once, once], WINDOW)).toBeCloseTo(0.3);
  const twice = [away(10_200), back(10_900)];
  expect(looserBySeconds([twice, twice], WINDOW)).toBeCloseTo(0.6);
});

test('one that is alone uses its part beside what the other shares, for as long as that lasts', () => {
  expect(looserBySeconds([[away(10_200), back(10_600)], []], WINDOW)).toBeCloseTo(0.3 + 0.4 / 2);
  // It has been for longer than the window, of which what was kept from before it is part.
  expect(looserBySeconds([[away(5_000)], []], WINDOW)).toBeCloseTo(1.3 / 2);
});
