// A migration beside statements that hold what it needs.
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import pg from 'pg';
import { expect, onTestFinished, test } from 'vitest';
import { migrate } from '../../src/storage/migrate.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

/** This version's migrations, and one more. */
async function migrationsAnd(text: string): Promise<URL> {
  const directory = await mkdtemp(join(tmpdir(), 'dispatch-migrations-'));
  onTestFinished(() => rm(directory, { recursive: true }));
  await cp(fileURLToPath(new URL('../../migrations/', import.meta.url)), directory, { recursive: true });
  await writeFile(join(directory, '9999_more.sql'), text);
  return pathToFileURL(`${directory}/`);
}

test('a migration gives way to a statement that holds what it needs next, before there is a deadlock to be ended', async () => {
  await using stack = new AsyncDisposableStack();
  const { url, owner } = stack.use(await cloneDatabase());
  const worker = new pg.Client({ connectionString: url });
  await worker.connect();
  stack.defer(() => worker.end());
  await worker.query('BEGIN');
  await worker.query('LOCK TABLE deliveries IN ROW EXCLUSIVE MODE');

  const directory = await migrationsAnd('LOCK TABLE tenants, deliveries IN ACCESS EXCLUSIVE MODE;');
  const migrating = migrate(url, { hashPartitions: 2, partitionDays: 7 }, directory);
  await eventually(async () => {
    const { rows } = await owner.query(
      "SELECT FROM pg_locks WHERE relation = 'deliveries'::regclass AND NOT granted",
    );
    expect(rows).toHaveLength(1);
  });
  await worker.query('SELECT FROM tenants'); // which the migration has locked by now
  await worker.query('COMMIT');
  expect((await migrating).applied).toEqual(['9999_more.sql']);

  await eventually(async () => {
    const { rows } = await owner.query(
      'SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1',
      ['dispatch-owner'],
    );
    expect(rows).toHaveLength(0); // a session that has ended has told all that it counted
  });
  const { rows } = await owner.query(
    'SELECT deadlocks::int4 FROM pg_stat_database WHERE datname = current_database()',
  );
  expect(rows).toEqual([{ deadlocks: 0 }]);
});
