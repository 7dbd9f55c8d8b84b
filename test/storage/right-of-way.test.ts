import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { createRightOfWay } from '../../src/storage/right-of-way.ts';

function setup() {
  const begun = new Map<string, { readonly end: () => void; readonly fail: (error: Error) => void }>();
  const work = (name: string) => () =>
    new Promise<string>((done, fail) => begun.set(name, { end: () => done(name), fail }));
  const rightOfWay = createRightOfWay(() => performance.now());
  const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);
  return {
    commit: (name: string, rowCount = 2) => rightOfWay.commit(rowCount, work(name)),
    ask: (name: string, canWait = () => true) => rightOfWay.giveWay(canWait, work(name)),
    recheck: rightOfWay.recheck,
    names: () => [...begun.keys()].join(' '),
    pass,
    /** Lets what this brings about happen. */
    end: async (name: string) => {
      begun.get(name)!.end();
      await pass(0);
    },
    fail: async (name: string) => {
      begun.get(name)!.fail(new Error(`${name} failed`));
      await pass(0);
    },
  };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe('the right of way', () => {
  test('is nobody’s where nothing is published: work begins at once, and beside other work', async () => {
    const { ask, names, pass } = setup();
    for (const name of ['a', 'b', 'c']) void ask(name);
    await pass(0);
    expect(names()).toBe('a b c');
  });

  test('is a small commit’s: other work begins after it, one at a time, in its order', async () => {
    const { commit, ask, names, end, pass } = setup();
    void commit('commit');
    for (const name of ['a', 'b', 'c']) void ask(name);
    await pass(2);
    expect(names()).toBe('commit');
    await end('commit');
    expect(names()).toBe('commit a');
    await end('a');
    expect(names()).toBe('commit a b');
    await end('b');
    expect(names()).toBe('commit a b c');
  });

  test('is the next commit’s, too, that begins as the one before it ends', async () => {
    const { commit, ask, names, end, pass } = setup();
    const second = commit('first').then(() => commit('second'));
    void ask('a');
    await pass(0);
    await end('first');
    expect(names()).toBe('first second');
    await end('second');
    expect([await second, names()]).toEqual(['second', 'first second a']);
  });

  test('is not taken from work that has begun, and a commit waits for nothing', async () => {
    const { commit, ask, names, end, pass } = setup();
    const asked = ask('a');
    await pass(0);
    void commit('few');
    void commit('many', 100);
    await pass(0);
    expect(names()).toBe('a few many');
    await end('a');
    expect(await asked).toBe('a');
  });

  test('holds for a while after a small commit, in which work goes on one at a time', async () => {
    const { commit, ask, names, end, pass } = setup();
    void commit('commit');
    await end('commit');
    for (const name of ['a', 'b']) void ask(name);
    await pass(0);
    expect(names()).toBe('commit a');
    await end('a');
    expect(names()).toBe('commit a b');
    await pass(25);
    for (const name of ['c', 'd']) void ask(name);
    await pass(0);
    expect(names()).toBe('commit a b c d');
  });

  test('is not a commit’s of many, and ends with one', async () => {
    const { commit, ask, names, end, pass } = setup();
    void commit('few', 16);
    await end('few');
    void commit('many', 17);
    void ask('a');
    void ask('b');
    await pass(0);
    expect(names()).toBe('few many a b');
  });

  test('keeps nothing waiting for more than 8 ms, whatever takes longer: a commit, many without gaps, or other work', async () => {
    const { commit, ask, names, end, pass } = setup();
    void commit('one');
    void ask('a');
    await pass(5);
    void commit('another');
    await end('one');
    await pass(2);
    expect(names()).toBe('one another');
    await pass(1);
    expect(names()).toBe('one another a');
    await end('another');
    void ask('b');
    await pass(7);
    expect(names()).toBe('one another a');
    await pass(1);
    expect(names()).toBe('one another a b');
  });

  test('is not given by what cannot wait, nor any longer by what can no longer, and others wait for that', async () => {
    const { commit, ask, recheck, names, end, pass } = setup();
    let isInTime = true;
    void commit('commit');
    void ask('c');
    void ask('a', () => false);
    void ask('b', () => isInTime);
    await pass(0);
    recheck();
    await pass(0);
    expect(names()).toBe('commit a');
    isInTime = false;
    recheck();
    await pass(0);
    expect(names()).toBe('commit a b');
    await end('commit');
    await end('a');
    expect(names()).toBe('commit a b');
    await end('b');
    expect(names()).toBe('commit a b c');
  });

  test('is lost by a commit that takes long, until the next one begins', async () => {
    const { commit, ask, names, pass } = setup();
    void commit('stuck');
    await pass(25);
    void ask('a');
    await pass(0);
    expect(names()).toBe('stuck a');
    void commit('next');
    void ask('b');
    await pass(7);
    expect(names()).toBe('stuck a next');
  });

  test('ends with a commit or with work that fails, which tell their errors', async () => {
    const { commit, ask, names, fail, pass } = setup();
    const refused = expect(commit('commit')).rejects.toThrow('commit failed');
    const first = expect(ask('a')).rejects.toThrow('a failed');
    void ask('b');
    await pass(0);
    await fail('commit');
    await refused;
    expect(names()).toBe('commit a');
    await fail('a');
    await first;
    expect(names()).toBe('commit a b');
  });
});
