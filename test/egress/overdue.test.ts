import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { createOverdue } from '../../src/egress/overdue.ts';

function setup() {
  let lateMs = 0;
  const now = () => performance.now() + lateMs;
  const overdue = createOverdue(now);
  /** Time that passes while the event loop does something else. */
  const stall = (ms: number) => {
    lateMs += ms;
    vi.advanceTimersByTime(4);
  };
  const givenUp: number[] = [];
  const addMany = (count: number) => {
    for (let i = 0; i < count; i++) overdue.add(now(), () => givenUp.push(i));
  };
  return { overdue, givenUp, now, addMany, stall };
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
  const { overdue, givenUp, now, addMany } = setup();
  addMany(100);
  overdue.add(now(), () => givenUp.push(-1));
  vi.advanceTimersByTime(1_000);
  expect(givenUp).toHaveLength(101);
  expect(givenUp.at(-1)).toBe(-1);
});

test('many that come as others have almost had their time go as evenly, and none too late', () => {
  const { overdue, givenUp, now, addMany } = setup();
  const lateMs: number[] = [];
  const addLate = (count: number) => {
    const deadlineMs = now();
    for (let i = 0; i < count; i++) overdue.add(deadlineMs, () => lateMs.push(now() - deadlineMs));
  };
  addMany(500);
  let most = 0;
  for (let ms = 0; ms < 1_010; ms++) {
    if (ms === 497) addLate(500);
    const before = givenUp.length + lateMs.length;
    vi.advanceTimersByTime(1);
    if (ms > 0) most = Math.max(most, givenUp.length + lateMs.length - before);
  }
  expect(most).toBeLessThanOrEqual(6);
  expect([givenUp.length, lateMs.length]).toEqual([500, 500]);
  expect(Math.max(...lateMs)).toBeLessThanOrEqual(504);
});

test('what is noticed late is given up no later than others', () => {
  const { overdue, givenUp, now } = setup();
  for (let i = 0; i < 100; i++) overdue.add(now() - 490, () => givenUp.push(i));
  vi.advanceTimersByTime(12);
  expect(givenUp).toHaveLength(100);
});

test('disposed, it gives up all that waits, and what comes later at once', () => {
  const { overdue, givenUp, addMany } = setup();
  addMany(100);
  expect(givenUp).toHaveLength(4);
  overdue[Symbol.dispose]();
  expect(givenUp).toHaveLength(100);
  addMany(10);
  expect(givenUp).toHaveLength(110);
});
