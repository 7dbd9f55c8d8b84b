import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { createOverdue } from '../../src/egress/overdue.ts';

function setup() {
  let lateMs = 0;
  const overdue = createOverdue(() => performance.now() + lateMs);
  /** Time that passes while the event loop does something else. */
  const stall = (ms: number) => {
    lateMs += ms;
    vi.advanceTimersByTime(4);
  };
  const givenUp: number[] = [];
  const addMany = (count: number) => {
    for (let i = 0; i < count; i++) overdue.add(() => givenUp.push(i));
  };
  return { overdue, givenUp, addMany, stall };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test('a few are given up at once', () => {
  const { givenUp, addMany } = setup();
  addMany(4);
  expect(givenUp).toEqual([0, 1, 2, 3]);
});

test('of many that are overdue at the same time never more than a few go at once, and all within half a second, in their order', () => {
  for (const [count, atOnce] of [
    [500, 5],
    [5_000, 60],
  ] as const) {
    const { givenUp, addMany } = setup();
    addMany(count);
    let most = givenUp.length;
    let elapsedMs = 0;
    for (; givenUp.length < count; elapsedMs++) {
      const before = givenUp.length;
      vi.advanceTimersByTime(1);
      most = Math.max(most, givenUp.length - before);
    }
    expect(most).toBeLessThanOrEqual(atOnce);
    expect(elapsedMs).toBeLessThanOrEqual(504);
    expect(elapsedMs).toBeGreaterThan(400);
    expect(givenUp).toEqual(Array.from({ length: count }, (_, i) => i));
  }
});

test('an event loop that is late gives up what it missed, and all if the time is over', () => {
  const { givenUp, addMany, stall } = setup();
  addMany(504);
  stall(300);
  expect(givenUp.length).toBeGreaterThan(250);
  expect(givenUp.length).toBeLessThan(500);
  stall(1_000);
  expect(givenUp).toHaveLength(504);
});

test('one that comes while others wait has its turn behind them', () => {
  const { overdue, givenUp, addMany } = setup();
  addMany(100);
  overdue.add(() => givenUp.push(-1));
  vi.advanceTimersByTime(1_000);
  expect(givenUp).toHaveLength(101);
  expect(givenUp.at(-1)).toBe(-1);
});

test('disposed, it gives up nothing more', () => {
  const { overdue, givenUp, addMany } = setup();
  addMany(100);
  overdue[Symbol.dispose]();
  vi.advanceTimersByTime(1_000);
  expect(givenUp).toHaveLength(4);
});
