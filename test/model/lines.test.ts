// The lines of a worker as they are, under every order in which claims, results and the ends of leases can be heard of.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { SETUP, type Setup } from './state.ts';
import { simulate } from './worker-lines.ts';

const setup: Setup = { ...SETUP, lines: ['k', 'k', 'k', 'k'], attempts: 3, perLine: [1, 2, 99] };
const choices = fc.array(fc.nat(1_000), { maxLength: 120, size: 'max' });

test('a line goes in order whatever is heard of when, ends, and leaves no place behind', () => {
  fc.assert(
    fc.property(choices, fc.integer({ min: 0, max: 1_000_000 }), (faulty, seed) => {
      const simulation = simulate(setup);
      for (const choice of faulty) simulation.step(choice, false);
      let state = seed;
      for (let i = 0; i < 5_000 && simulation.step(state, true); i++)
        state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 1;
      const { broken, isDone, places, path } = simulation;
      const seen = { broken: broken(), isDone: isDone(), places: places() };
      expect(seen, path.join('\n')).toEqual({ broken: undefined, isDone: true, places: 0 });
    }),
    { numRuns: 2_000 },
  );
});
