// Migrations: plain SQL files, forward-only, each in its own transaction, one migrator at a time.
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { asOwner, assertRolesAreBound } from './database.ts';
import { ensurePartitions, type PartitionLayout } from './partitions.ts';

const DIRECTORY = new URL('../../migrations/', import.meta.url);
const LOCK = 7_480_748_100; // any fixed number; the advisory lock of dispatch's migrator

/**
 * Whoever wants a table that a migration waits for waits behind it: never for longer than this. Between two tries all who
 * came meanwhile get their turn. It is less than PostgreSQL's deadlock_timeout of 1 s: a statement that holds what a file needs
 * next, and waits for what it has, is not ended as one of two in a deadlock, to wait again behind the one that was not.
 */
const LOCK_TIMEOUT_MS = 750;
const PAUSE_MS = 1_000;
/** Some three minutes. */
const MAX_TRIES = 110;

/** What `migrate` did. */
export type MigrationReport = { readonly applied: readonly string[]; readonly partitionsMade: number };

/**
 * Brings the database up to date: applies the files that are not recorded yet, then makes the partitions that are
 * due. Safe to run from many processes at once, and while other versions serve. `layout` counts at first install
 * only. Throws if an applied file was edited, if the service roles are not bound by row-level security, or if
 * others held the locks that a file needs through every try.
 */
export async function migrate(
  ownerUrl: string,
  layout: PartitionLayout,
  directory = DIRECTORY,
): Promise<MigrationReport> {
  return asOwner(ownerUrl, async (client) => {
    await client.query('SELECT pg_advisory_lock($1)', [LOCK]);
    await client.query(`SET lock_timeout = ${LOCK_TIMEOUT_MS}`);
    const applied = await applyFiles(client, directory);
    await client.query(
      'INSERT INTO installation (hash_partitions, partition_days) VALUES ($1, $2) ON CONFLICT DO NOTHING',
      [layout.hashPartitions, layout.partitionDays],
    );
    const partitionsMade = await patiently('making partitions', () => ensurePartitions(client));
    await assertRolesAreBound(client);
    await client.query('SELECT pg_advisory_unlock($1)', [LOCK]);
    return { applied, partitionsMade };
  });
}

async function applyFiles(client: pg.Client, directory: URL): Promise<string[]> {
  await client.query(`CREATE TABLE IF NOT EXISTS schema_migrations
    (name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`);
  const { rows } = await client.query<{ name: string; sha256: string }>(
    'SELECT name, sha256 FROM schema_migrations',
  );
  const known = new Map(rows.map((row) => [row.name, row.sha256]));
  const applied: string[] = [];
  for (const name of (await readdir(directory)).filter((n) => n.endsWith('.sql')).sort()) {
    const text = await readFile(new URL(name, directory), 'utf8');
    const sha256 = createHash('sha256').update(text).digest('hex');
    if (known.get(name) === sha256) continue;
    if (known.has(name))
      throw new Error(`migration ${name} was changed after it was applied; add a new file instead`);
    await patiently(`migration ${name}`, () => applyFile(client, name, text, sha256));
    applied.push(name);
  }
  return applied;
}

async function applyFile(client: pg.Client, name: string, text: string, sha256: string): Promise<void> {
  await client.query('BEGIN');
  try {
    await client.query(text);
    await client.query('INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)', [name, sha256]);
    await client.query('COMMIT');
  } catch (error) {
    await client.query('ROLLBACK');
    throw new Error(`migration ${name} failed: ${error instanceof Error ? error.message : error}`, {
      cause: error,
    });
  }
}

/** Tries again while others hold the locks that `work` needs, whose transaction is rolled back by then. */
async function patiently<T>(what: string, work: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await work();
    } catch (error) {
      if (!isLockTimeout(error)) throw error;
      if (tries === MAX_TRIES) {
        throw new Error(
          `${what} did not get its locks in ${tries} tries of ${LOCK_TIMEOUT_MS / 1000} s; end the transactions that hold ` +
            'them (pg_locks, pg_stat_activity) and start again: nothing was changed',
          { cause: error },
        );
      }
      await wait(PAUSE_MS * (0.5 + Math.random()));
    }
  }
}

/** lock_not_available, or deadlock_detected: a statement that works holds what the file needs next, and waits for it. */
function isLockTimeout(error: unknown): boolean {
  for (let e = error; e instanceof Error; e = e.cause) {
    if ('code' in e && (e.code === '55P03' || e.code === '40P01')) return true;
  }
  return false;
}
