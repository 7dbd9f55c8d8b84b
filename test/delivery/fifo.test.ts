import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Fifo } from '../../src/delivery/fifo.ts';

test('a list does what an array does, whatever comes after what', () => {
  const step = fc.oneof(
    { weight: 40, arbitrary: fc.record({ kind: fc.constant('push' as const), item: fc.nat() }) },
    { weight: 10, arbitrary: fc.record({ kind: fc.constant('unshift' as const), item: fc.nat() }) },
    { weight: 40, arbitrary: fc.record({ kind: fc.constant('shift' as const) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('clear' as const) }) },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
      const fifo = new Fifo<number>();
      const array: number[] = [];
      for (const s of steps) {
        if (s.kind === 'push') {
          fifo.push(s.item);
          array.push(s.item);
        } else if (s.kind === 'unshift') {
          fifo.unshift(s.item);
          array.unshift(s.item);
        } else if (s.kind === 'shift') {
          expect(fifo.shift()).toBe(array.shift());
        } else {
          fifo.clear();
          array.length = 0;
        }
        expect([fifo.size, fifo.first()]).toEqual([array.length, array[0]]);
      }
      while (array.length > 0) expect(fifo.shift()).toBe(array.shift());
      expect(fifo.shift()).toBeUndefined();
    }),
  );
});

test('a list that was long is as it was new once it is empty', () => {
  const fifo = new Fifo<number>();
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 1_000; i++) fifo.push(i);
    for (let i = 0; i < 1_000; i++) expect(fifo.shift()).toBe(i);
    expect([fifo.size, fifo.shift()]).toEqual([0, undefined]);
  }
});
