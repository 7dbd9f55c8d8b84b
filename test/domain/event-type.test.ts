import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  createPatternIndex,
  eventTypeProblem,
  matchesPattern,
  type PatternIndex,
  patternProblem,
} from '../../src/domain/event-type.ts';

const byNumber = (a: number, b: number) => a - b;

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
    expect(createPatternIndex([{ patterns: [pattern], value: 1 }], byNumber).match(type)).toEqual(
      matches ? [1] : [],
    );
  });

  const segment = fc.constantFrom('a', 'b', 'c');
  const type = fc.array(segment, { minLength: 1, maxLength: 4 }).map((s) => s.join('.'));
  const pattern = fc
    .tuple(
      fc.array(fc.oneof(segment, fc.constant('*')), { maxLength: 3 }),
      fc.oneof(segment, fc.constant('*'), fc.constant('**')),
    )
    .map(([head, last]) => [...head, last].join('.'));

  test('the index agrees with matching one by one, for any patterns and types', () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(pattern, { minLength: 1, maxLength: 3 }), { maxLength: 8 }),
        type,
        (all, t) => {
          const index = createPatternIndex(
            all.map((patterns, value) => ({ patterns, value })),
            byNumber,
          );
          const expected = all.flatMap((patterns, i) =>
            patterns.some((p) => matchesPattern(p, t)) ? [i] : [],
          );
          expect(index.match(t)).toEqual(expected);
          expect(index.match(t)).toEqual(expected); // also from memory
        },
      ),
    );
  });

  test('an index that was changed again and again is one that was made anew, and those before it stay as they were', () => {
    const change = fc.record({
      value: fc.integer({ min: 0, max: 7 }),
      patterns: fc.option(fc.array(pattern, { minLength: 1, maxLength: 3 }), { nil: undefined }),
    });
    const step = fc.array(change, { minLength: 1, maxLength: 4 });
    const types = fc.array(type, { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 8 }), types, (steps, all) => {
        const answers = (index: PatternIndex<number>) => all.map((t) => index.match(t));
        const entries = new Map<number, readonly string[]>();
        const before: { index: PatternIndex<number>; found: unknown }[] = [];
        let index = createPatternIndex<number>([], byNumber);
        for (const changes of steps) {
          const removed = [];
          const changed = new Map(changes.map(({ value, patterns }) => [value, patterns]));
          for (const value of changed.keys()) {
            const patterns = entries.get(value);
            if (patterns !== undefined) removed.push({ patterns, value });
            entries.delete(value);
          }
          const added = [];
          for (const [value, patterns] of changed) {
            if (patterns === undefined) continue;
            added.push({ patterns, value });
            entries.set(value, patterns);
          }
          index = index.with(removed, added);
          const fresh = [...entries].map(([value, patterns]) => ({ patterns, value }));
          const found = answers(index);
          expect(found).toEqual(answers(createPatternIndex(fresh, byNumber)));
          before.push({ index, found });
        }
        // Not from what they remember.
        for (const { index, found } of before) expect(answers(index.with([], []))).toEqual(found);
      }),
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

test.each([
  ...[
    '',
    'a..b',
    '.a',
    'a.',
    'order.*',
    '**',
    'dispatch.x',
    'dispatch',
    'a b',
    'a\n',
    'x\0y',
    'a'.repeat(256),
  ],
  `${'a.'.repeat(16)}a`,
])('refuses the event type %j', (type) => {
  expect(eventTypeProblem(type)).toBeTypeOf('string');
});
test.each(['a', 'order.created', 'a-b_c.D9', 'dispatcher.x', `${'a.'.repeat(15)}a`])(
  'takes the event type %j',
  (type) => {
    expect(eventTypeProblem(type)).toBeUndefined();
  },
);
