import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { createStartWindow } from '../../src/delivery/window.ts';
import type { TenantId } from '../../src/domain/ids.ts';

function setup(utilization: number, max = 1_000) {
  let nowMs = 0;
  const opened: number[] = [];
  const window = createStartWindow({
    max,
    now: () => nowMs,
    utilization: () => utilization,
    onOpen: () => opened.push(nowMs),
  });
  const pass = (ms: number) => {
    nowMs += ms;
    vi.advanceTimersByTime(ms);
  };
  const start = (tenantId: string) => window.started(tenantId as TenantId);
  /** Starts what it may. */
  const fill = (): (() => void)[] => {
    const ends: (() => void)[] = [];
    while (window.mayStart()) ends.push(start('a'));
    return ends;
  };
  return { window, opened, pass, fill, start };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe('the window of starts', () => {
  test('is full when as many young requests are under way as it holds, and one that ends makes room for one', () => {
    const { window, fill } = setup(0.5);
    const ends = fill();
    expect(ends).toHaveLength(window.size());
    ends[0]!();
    expect(fill()).toHaveLength(1);
  });

  test('does not count requests that have been under way for a while, and says when it opens', () => {
    const { window, opened, pass, fill } = setup(0.5);
    const ends = fill();
    expect(opened).toEqual([]);
    pass(10);
    expect(opened.length).toBeGreaterThan(0);
    expect(fill()).toHaveLength(window.size());
    // That old ones end now makes no more room.
    for (const end of ends) end();
    expect(window.mayStart()).toBe(false);
  });

  test('shrinks while the event loop is busy, but not to nothing, and grows again up to all', () => {
    const busy = setup(0.99);
    const idle = setup(0.1);
    for (let i = 0; i < 100; i++) {
      for (const { window, pass } of [busy, idle]) {
        pass(100);
        window.mayStart();
      }
    }
    expect([busy.window.size(), idle.window.size()]).toEqual([24, 1_000]);
  });

  test('leaves the process freer while one tenant has most of the work and others come with little', () => {
    const sizeBeside = (others: number, each: number) => {
      const { window, pass, start } = setup(0.95);
      for (let round = 0; round < 100; round++) {
        for (let i = 0; i < 60; i++) start('busy')();
        for (let i = 0; i < others * each; i++) start(`other-${i % others}`)();
        pass(100);
        window.mayStart();
      }
      return window.size();
    };
    // Alone, beside many that come with little, and one of twenty alike.
    expect([sizeBeside(0, 0), sizeBeside(20, 1), sizeBeside(20, 60)]).toEqual([100, 5, 100]);
  });

  test('full, has some room for those that come with little while one tenant has most of the work, and for nobody without it', () => {
    const startedBeyond = (others: number) => {
      const { window, pass, start } = setup(0.95);
      for (let round = 0; round < 100; round++) {
        for (let i = 0; i < 60; i++) start('busy')();
        for (let i = 0; i < others; i++) start(`other-${i}`)();
        pass(100);
        window.mayStart();
      }
      const ends: (() => void)[] = [];
      while (window.mayStart()) ends.push(start('busy'));
      const startAll = (): (() => void)[] => {
        const beyond: (() => void)[] = [];
        while (window.mayStartBeyond() && beyond.length < 100) beyond.push(start('another'));
        return beyond;
      };
      for (const end of startAll()) end();
      const count = startAll().length;
      // One more, that begins without asking, keeps it full like those before.
      if (count > 0) {
        start('late');
        ends[1]!();
        expect(window.mayStart()).toBe(false);
      }
      // They do not keep it full.
      ends[0]!();
      expect(window.mayStart()).toBe(true);
      return count;
    };
    expect([startedBeyond(20), startedBeyond(0)]).toEqual([5, 0]);
  });

  test('is never larger than what may be in flight in all', () => {
    const { fill } = setup(0.1, 3);
    expect(fill()).toHaveLength(3);
  });

  test('calls nobody after it was stopped', () => {
    const { window, opened, pass, fill } = setup(0.5);
    fill();
    window.stop();
    pass(1_000);
    expect(opened).toEqual([]);
  });
});
