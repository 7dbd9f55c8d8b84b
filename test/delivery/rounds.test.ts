import { expect, test } from 'vitest';
import { oneByOne } from '../../src/delivery/rounds.ts';

test('of what goes one by one none begins before the one before it has ended, well or not', async () => {
  const run = oneByOne();
  const seen: string[] = [];
  const work = (name: string, error?: Error) => async () => {
    seen.push(`${name} begins`);
    await new Promise((done) => setImmediate(done));
    seen.push(`${name} ends`);
    if (error !== undefined) throw error;
    return name;
  };
  const away = new Error('away');
  const results = await Promise.allSettled([run(work('a')), run(work('b', away)), run(work('c'))]);
  expect(seen).toEqual(['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends']);
  expect(results).toEqual([
    { status: 'fulfilled', value: 'a' },
    { status: 'rejected', reason: away },
    { status: 'fulfilled', value: 'c' },
  ]);
});
