// Connections that break while they are lent, on a real server.
import pg from 'pg';
import { expect, test } from 'vitest';
import { onConnection } from '../../src/storage/database.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

/** One connection; the pool itself is listened to, as the product's is. */
function poolOf(connectionString: string): pg.Pool {
  const pool = new pg.Pool({ connectionString, max: 1 });
  pool.on('error', () => {});
  return pool;
}

const OWN = 'SELECT pg_backend_pid() AS pid';

test('a backend that is terminated between two statements fails its work, and the pool goes on', async () => {
  await using database = await cloneDatabase();
  const pool = poolOf(database.url);
  const work = onConnection(pool, async (client) => {
    const { rows } = await client.query<{ pid: number }>(OWN);
    await database.owner.query('SELECT pg_terminate_backend($1)', [rows[0]!.pid]);
    // Nothing is in hand when the end of the connection comes: only its 'error' event tells of it.
    await eventually(async () => {
      const left = await database.owner.query('SELECT FROM pg_stat_activity WHERE pid = $1', [rows[0]!.pid]);
      if (left.rowCount !== 0) throw new Error('the backend is still there');
    });
    await client.query(OWN);
  });
  await expect(work).rejects.toThrow();
  expect((await pool.query(OWN)).rowCount).toBe(1);
  await pool.end();
});

test('a connection on which something failed is not lent again; one on which all went well is', async () => {
  await using database = await cloneDatabase();
  const pool = poolOf(database.url);
  const pidOf = (client: Pick<pg.Pool, 'query'>) =>
    client.query<{ pid: number }>(OWN).then(({ rows }) => rows[0]!.pid);
  const first = await onConnection(pool, pidOf);
  expect(await onConnection(pool, pidOf)).toBe(first);
  await expect(onConnection(pool, (client) => client.query('SELECT 1 / 0'))).rejects.toThrow('division');
  expect(await onConnection(pool, pidOf)).not.toBe(first);
  await pool.end();
});
