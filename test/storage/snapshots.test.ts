import pg from 'pg';
import { expect, test } from 'vitest';
import { oldestSnapshotSeconds } from '../../src/storage/snapshots.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

test('an open transaction counts once it has a snapshot, and no longer than it is open', async () => {
  await using database = await cloneDatabase();
  const other = new pg.Client({ connectionString: database.url });
  await other.connect();
  expect(await oldestSnapshotSeconds(database.url)).toBe(0);
  await other.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  expect(await oldestSnapshotSeconds(database.url)).toBe(0);
  await other.query('SELECT 1');
  await eventually(async () => expect(await oldestSnapshotSeconds(database.url)).toBeGreaterThan(0.05));
  await other.query('COMMIT');
  expect(await oldestSnapshotSeconds(database.url)).toBe(0);
  await other.end();
});
