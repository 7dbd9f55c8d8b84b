import { expect, test } from 'vitest';
import { createDatabaseClock } from '../../src/domain/database-clock.ts';

test('goes by the database, through the monotonic clock, whatever the host’s clock says', () => {
  let atMs = 1_000;
  let hostMs = 5_000_000;
  const clock = createDatabaseClock(
    () => atMs,
    () => hostMs,
  );
  expect(clock.now()).toBe(5_000_000);
  clock.saw(9_000_000, 1_000, 1_010);
  atMs = 1_105;
  hostMs = 0;
  expect(clock.now()).toBe(9_000_100);
});

test('a slow answer is taken only if it proves what was known wrong', () => {
  let atMs = 0;
  const clock = createDatabaseClock(
    () => atMs,
    () => 0,
  );
  clock.saw(1_000_000, 0, 2);
  clock.saw(1_000_150, 0, 400);
  expect(clock.now()).toBe(999_999);
  clock.saw(1_000_500, 0, 400);
  expect(clock.now()).toBe(1_000_300);
  atMs = 400;
  expect(clock.now()).toBe(1_000_700);
});
