// Connections of hot statements that break while they are lent, on a real server.
import { expect, test } from 'vitest';
import { type HotPool, openHotPool, type Statements } from '../../src/storage/hot-pool.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

/** One connection. */
const poolOf = (url: string): HotPool =>
  openHotPool({ url, name: 'test', settings: {}, max: 1, isPooled: false, onIdleError: () => {} });

const OWN = 'SELECT pg_backend_pid() AS pid';
const pidOf = (statements: Statements) =>
  statements.query<{ pid: number }>(OWN).then(({ rows }) => rows[0]!.pid);

test('a backend that is terminated between two statements fails its work, and the pool goes on', async () => {
  await using database = await cloneDatabase();
  const pool = poolOf(database.url);
  const work = pool.transaction(async (tx) => {
    const pid = await pidOf(tx);
    await database.owner.query('SELECT pg_terminate_backend($1)', [pid]);
    // Nothing is in hand when the end of the connection comes: only its 'error' event tells of it.
    await eventually(async () => {
      const left = await database.owner.query('SELECT FROM pg_stat_activity WHERE pid = $1', [pid]);
      if (left.rowCount !== 0) throw new Error('the backend is still there');
    });
    await tx.query(OWN);
  });
  await expect(work).rejects.toThrow();
  expect((await pool.query(OWN)).rowCount).toBe(1);
  await pool.end();
});

test('a connection on which something failed is not lent again; one on which all went well is', async () => {
  await using database = await cloneDatabase();
  const pool = poolOf(database.url);
  const first = await pool.transaction(pidOf);
  expect(await pool.transaction(pidOf)).toBe(first);
  await expect(pool.transaction((tx) => tx.query('SELECT 1 / 0'))).rejects.toThrow('division');
  expect(await pool.transaction(pidOf)).not.toBe(first);
  await pool.end();
});
