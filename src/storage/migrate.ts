// Migrations: plain SQL files, forward-only, each in its own transaction, one migrator at a time.
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import type pg from 'pg';
import { asOwner, assertRolesAreBound } from './database.ts';
import { ensurePartitions, type PartitionLayout } from './partitions.ts';

const DIRECTORY = new URL('../../migrations/', import.meta.url);
const LOCK = 7_480_748_100; // any fixed number; the advisory lock of dispatch's migrator

/** What `migrate` did. */
export type MigrationReport = { readonly applied: readonly string[]; readonly partitionsMade: number };

/**
 * Brings the database up to date: applies the files that are not recorded yet, then makes the partitions that are
 * due. Safe to run from many processes at once, and while other versions serve. `layout` counts at first install
 * only. Throws if an applied file was edited or if the service roles are not bound by row-level security.
 */
export async function migrate(ownerUrl: string, layout: PartitionLayout): Promise<MigrationReport> {
  return asOwner(ownerUrl, async (client) => {
    await client.query('SELECT pg_advisory_lock($1)', [LOCK]);
    await client.query("SET lock_timeout = '2s'");
    const applied = await applyFiles(client);
    await client.query(
      'INSERT INTO installation (hash_partitions, partition_days) VALUES ($1, $2) ON CONFLICT DO NOTHING',
      [layout.hashPartitions, layout.partitionDays],
    );
    const partitionsMade = await ensurePartitions(client);
    await assertRolesAreBound(client);
    await client.query('SELECT pg_advisory_unlock($1)', [LOCK]);
    return { applied, partitionsMade };
  });
}

async function applyFiles(client: pg.Client): Promise<string[]> {
  await client.query(`CREATE TABLE IF NOT EXISTS schema_migrations
    (name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`);
  const { rows } = await client.query<{ name: string; sha256: string }>(
    'SELECT name, sha256 FROM schema_migrations',
  );
  const known = new Map(rows.map((row) => [row.name, row.sha256]));
  const applied: string[] = [];
  for (const name of (await readdir(DIRECTORY)).filter((n) => n.endsWith('.sql')).sort()) {
    const text = await readFile(new URL(name, DIRECTORY), 'utf8');
    const sha256 = createHash('sha256').update(text).digest('hex');
    if (known.get(name) === sha256) continue;
    if (known.has(name))
      throw new Error(`migration ${name} was changed after it was applied; add a new file instead`);
    await applyFile(client, name, text, sha256);
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
