// Every state of small setups, and long walks through larger ones: docs/testing.md says what that shows.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { claimableOfLine, isDue } from '../../src/domain/lease.ts';
import { SCALE } from '../support/scale.ts';
import { explore, walk } from './explore.ts';
import { RULES, type Rules, SETUP, type Setup } from './state.ts';

type Case = { readonly name: string; readonly setup: Setup; readonly isLarge?: boolean };

const LINE: Setup = { ...SETUP, lines: ['k', 'k'], attempts: 1 };
const QUIET = { calls: [] } as const;
const cases: readonly Case[] = [
  {
    name: 'one delivery, 3 workers, 2 zombies',
    setup: { ...LINE, lines: [undefined], attempts: 2, workers: 3, zombies: 2 },
  },
  { name: 'a line of two, tried twice', setup: { ...LINE, ...QUIET, attempts: 2 } },
  { name: 'a line of three', setup: { ...LINE, ...QUIET, lines: ['k', 'k', 'k'] } },
  { name: 'a line of two that skips, with replays', setup: { ...LINE, calls: ['replay'] } },
  {
    name: 'a line of two that stops, with replays',
    setup: { ...LINE, onDeadLetter: 'stop', calls: ['replay', 'discard'] },
  },
  {
    name: 'a line of two that stops, with all calls',
    setup: { ...LINE, onDeadLetter: 'stop' },
    isLarge: true,
  },
  { name: 'a line of two that skips, with all calls', setup: LINE, isLarge: true },
  { name: 'a line of two, tried twice, with all calls', setup: { ...LINE, attempts: 2 }, isLarge: true },
  {
    name: 'a line of three, tried twice',
    setup: { ...LINE, ...QUIET, attempts: 2, lines: ['k', 'k', 'k'] },
    isLarge: true,
  },
  {
    name: 'two lines and one that is in none',
    setup: { ...LINE, ...QUIET, lines: ['k', 'l', undefined] },
    isLarge: true,
  },
];

describe('every state', () => {
  for (const { name, setup } of cases.filter((c) => c.isLarge !== true || SCALE === 1)) {
    test(`of ${name}: keeps every promise, and leads to an end`, { timeout: 300_000 }, () => {
      const { states, moves, broken, stuck, stuckPath } = explore(setup);
      process.stdout.write(`${name}: ${states} states, ${moves} moves\n`);
      expect(broken).toBeUndefined();
      expect({ stuck, stuckPath }).toEqual({ stuck: 0, stuckPath: [] });
    });
  }
});

test('long walks of three workers through several lines keep every promise', () => {
  const lines = ['k', 'k', 'l', 'k', undefined, 'l'];
  const choices = fc.array(fc.nat(1_000), { maxLength: 250, size: 'max' });
  const rules = fc.constantFrom<Pick<Setup, 'onDeadLetter' | 'attempts'>>(
    { onDeadLetter: 'skip', attempts: 3 },
    { onDeadLetter: 'stop', attempts: 1 },
  );
  fc.assert(
    fc.property(rules, choices, (own, chosen) => {
      const { broken, path } = walk(
        { ...SETUP, ...own, lines, workers: 3, zombies: 3, perLine: [1, 2, 99] },
        chosen,
      );
      expect(broken, path.join('\n')).toBeUndefined();
    }),
    { numRuns: 3_000 },
  );
}, 60_000);

/** Rules that are broken on purpose: the model sees each of them. */
describe('the model finds', () => {
  const found = (setup: Setup, rules: Partial<Rules>) =>
    explore({ ...setup, rules: { ...RULES, ...rules } }).broken;

  test('a write that no lease fences', () => {
    const broken = found({ ...SETUP, lines: [undefined] }, { isUnder: (row) => row !== undefined });
    expect(broken?.promise).toBe('0 may be sent without a lease');
    expect(broken?.path).toEqual([
      'worker 0 claims 0',
      'worker 0 gives 0 back',
      'time passes: the lease L0 is over',
      'worker 1 claims 0',
      'worker 0 records release of 0',
    ]);
  });

  test('a write of what had ended', () => {
    expect(found({ ...SETUP, lines: [undefined] }, { isUnder: () => true })?.promise).toBe(
      '0 had ended and was written again',
    );
  });

  test('a claim of one that is not first in its line', () => {
    const broken = found(LINE, {
      claimableOfLine: (line, nowMs, most) =>
        claimableOfLine(
          line.filter((row) => isDue(row, nowMs)),
          nowMs,
          most,
        ),
    });
    expect(broken?.promise).toBe('1 is sent before 0 is done');
  });

  test('a claim of what is held behind a head that is due', () => {
    const broken = found(LINE, {
      claimableOfLine: (line, nowMs, most) =>
        line[0] !== undefined && isDue(line[0], nowMs) ? line.slice(0, most) : [],
    });
    expect(broken?.promise).toBe('1 has two live leases');
  });

  test('a line that goes on although its first was given back', () => {
    const broken = found({ ...LINE, ...QUIET }, { letsLineGoOn: () => true });
    expect(broken?.promise).toBe('1 is sent before 0 is done');
  });

  test('a replayed dead letter that does not wait for what its line went on with', () => {
    const broken = found(LINE, {
      claimableOfLine: (line, nowMs, most) => {
        const notDue = line.findIndex((row) => !isDue(row, nowMs));
        return line.slice(0, Math.min(most, notDue < 0 ? line.length : notDue));
      },
    });
    expect(broken?.promise).toBe('1 is sent while 0 is on the wire');
  });

  test('a rule under which a delivery never ends', () => {
    const rules: Rules = {
      ...RULES,
      claimableOfLine: (line, nowMs, most) =>
        claimableOfLine(line, nowMs, most).filter((row) => row.attemptCount === 0),
    };
    const { broken, stuck, stuckPath } = explore({ ...SETUP, lines: ['k'], calls: [], rules });
    expect(broken).toBeUndefined();
    expect(stuck).toBeGreaterThan(0);
    expect(stuckPath.at(-1)).toBe('worker 0: 0 is answered 500, retry');
  });
});
