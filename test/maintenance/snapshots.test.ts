import { expect, test } from 'vitest';
import { createSnapshotWatch, MAX_SNAPSHOT_SECONDS } from '../../src/maintenance/snapshots.ts';

test('an old snapshot is told of once, and once when it is gone; another leader begins anew', async () => {
  let seconds = 0;
  const ages: (number | undefined)[] = [];
  const changes: (readonly [boolean, number])[] = [];
  const watch = createSnapshotWatch({
    read: async () => seconds,
    onAge: (age) => ages.push(age),
    onChange: (isTooOld, age) => changes.push([isTooOld, age]),
  });
  for (seconds of [0, MAX_SNAPSHOT_SECONDS, 301, 361, 2]) await watch.look();
  expect(ages).toEqual([0, 300, 301, 361, 2]);
  expect(changes).toEqual([
    [true, 301],
    [false, 2],
  ]);
  seconds = 400;
  await watch.look();
  watch.rest();
  await watch.look();
  expect(changes.slice(2)).toEqual([
    [true, 400],
    [true, 400],
  ]);
  expect(ages.slice(-2)).toEqual([undefined, 400]);
});
