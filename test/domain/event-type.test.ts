import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  createPatternIndex,
  eventTypeProblem,
  matchesPattern,
  patternProblem,
} from '../../src/domain/event-type.ts';

describe('patterns', () => {
  test.each([
    ['order.created', 'order.created', true],
    ['order.created', 'order.updated', false],
    ['order.created', 'order.created.eu', false],
    ['order.*', 'order.created', true],
    ['order.*', 'order', false],
    ['order.*', 'order.created.eu', false],
    ['order.**', 'order.created', true],
    ['order.**', 'order.created.eu', true],
    ['order.**', 'order', false],
    ['*', 'order', true],
    ['*', 'order.created', false],
    ['**', 'order', true],
    ['**', 'order.created.eu', true],
    ['*.created', 'order.created', true],
    ['*.created', 'created', false],
    ['order.*.eu', 'order.created.eu', true],
    ['Order.created', 'order.created', false],
  ])('%s on %s: %s', (pattern, type, matches) => {
    expect(matchesPattern(pattern, type)).toBe(matches);
    expect(createPatternIndex([{ patterns: [pattern], value: 1 }]).match(type)).toEqual(matches ? [1] : []);
  });

  test('the index agrees with matching one by one, for any patterns and types', () => {
    const segment = fc.constantFrom('a', 'b', 'c');
    const type = fc.array(segment, { minLength: 1, maxLength: 4 }).map((s) => s.join('.'));
    const pattern = fc
      .tuple(
        fc.array(fc.oneof(segment, fc.constant('*')), { maxLength: 3 }),
        fc.oneof(segment, fc.constant('*'), fc.constant('**')),
      )
      .map(([head, last]) => [...head, last].join('.'));
    fc.assert(
      fc.property(
        fc.array(fc.array(pattern, { minLength: 1, maxLength: 3 }), { maxLength: 8 }),
        type,
        (all, t) => {
          const index = createPatternIndex(all.map((patterns, value) => ({ patterns, value })));
          const expected = all.flatMap((patterns, i) =>
            patterns.some((p) => matchesPattern(p, t)) ? [i] : [],
          );
          expect(index.match(t)).toEqual(expected);
          expect(index.match(t)).toEqual(expected); // also from memory
        },
      ),
    );
  });

  test.each([
    '',
    '.',
    'a.',
    '.a',
    'a..b',
    'a.**.b',
    '***',
    'a*',
    'a b',
    'é',
    `${'a.'.repeat(16)}a`,
    'a'.repeat(256),
  ])('refuses the pattern %j', (pattern) => {
    expect(patternProblem(pattern)).toBeTypeOf('string');
  });
});

test.each(['', 'a..b', 'order.*', '**', 'dispatch.x', 'dispatch', 'a b', 'x\0y', 'a'.repeat(256)])(
  'refuses the event type %j',
  (type) => {
    expect(eventTypeProblem(type)).toBeTypeOf('string');
  },
);
test.each(['a', 'order.created', 'a-b_c.D9', 'dispatcher.x'])('takes the event type %j', (type) => {
  expect(eventTypeProblem(type)).toBeUndefined();
});
