// Leaves of the partitioned tables. Made with LIKE + CHECK + ATTACH, because CREATE TABLE … PARTITION OF locks the
// parent exclusively. Every leaf gets row-level security of its own: a parent's policy does not guard a leaf that
// is read directly. Every function here takes a connection of the tables' owner.
import type pg from 'pg';
import { lowestUuidAt } from '../domain/ids.ts';

/** Fixed at install. */
export type PartitionLayout = { readonly hashPartitions: number; readonly partitionDays: number };

const HASHED = ['deliveries', 'dead_letters', 'closed_deliveries', 'idempotency_keys'];
const HISTORY = ['events', 'attempts'] as const;
/** The column of each history table that holds the UUIDv7 its leaves are ranges of. */
const RANGE_KEY = { events: 'id', attempts: 'delivery_id' } as const;

/** The leaf of a table that holds the tenants with a remainder; for history, the parent of its leaves. */
export const hashLeaf = (table: string, remainder: number): string => `${table}_h${remainder}`;

const DAY_MS = 24 * 3600 * 1000;
/** Leaves are made this far ahead, and one width back for clocks that are behind. */
const AHEAD_MS = 14 * DAY_MS;

/** Queue leaves turn over completely: vacuum by count of dead rows, never by a share of the table. */
const QUEUE_SETTINGS = `fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000`;

/** Makes every leaf that is missing. Safe to repeat after a crash half-way. Returns how many leaves were made. */
export async function ensurePartitions(client: pg.Client): Promise<number> {
  const layout = await readLayout(client);
  const existing = await leafNames(client);
  let made = 0;
  for (const table of HASHED) {
    for (let i = 0; i < layout.hashPartitions; i++) {
      const leaf = hashLeaf(table, i);
      if (existing.has(leaf)) continue;
      const settings = table === 'deliveries' ? QUEUE_SETTINGS : undefined;
      await inTransaction(client, () =>
        makeHashLeaf(client, table, leaf, layout.hashPartitions, i, settings),
      );
      made++;
    }
  }
  for (const table of HISTORY) {
    for (let i = 0; i < layout.hashPartitions; i++) {
      const parent = hashLeaf(table, i);
      if (!existing.has(parent)) {
        await inTransaction(client, () => makeHashParent(client, table, parent, layout.hashPartitions, i));
        made++;
      }
      for (const range of await rangesDue(client, layout.partitionDays)) {
        if (existing.has(`${parent}_${range.name}`)) continue;
        await inTransaction(client, () => makeRangeLeaf(client, table, parent, range));
        made++;
      }
    }
  }
  return made;
}

/** A range of history: [fromMs, toMs) in ms since 1970; the name is its first day, `20261123`. */
export type HistoryRange = { readonly name: string; readonly fromMs: number; readonly toMs: number };

/** Drops the leaves of history that end before `keepFromMs`, and what else is as old. Returns the leaves dropped. */
export async function dropHistory(client: pg.Client, keepFromMs: number): Promise<string[]> {
  const { partitionDays } = await readLayout(client);
  const dropped: string[] = [];
  for (const leaf of await historyLeaves(client)) {
    const match = /^(events|attempts)_h\d+_(\d{4})(\d{2})(\d{2})$/.exec(leaf);
    if (match === null) continue;
    const fromMs = Date.UTC(Number(match[2]), Number(match[3]) - 1, Number(match[4]));
    if (fromMs + partitionDays * DAY_MS > keepFromMs) continue;
    const parent = leaf.slice(0, leaf.lastIndexOf('_'));
    // CONCURRENTLY cannot run in a transaction; one that was cut short is finished with FINALIZE.
    const { rows } = await client.query<{ inhdetachpending: boolean }>(
      'SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = $1::regclass',
      [leaf],
    );
    const attached = rows[0]; // none: a run that was cut short had detached it already
    const how = attached?.inhdetachpending === true ? 'FINALIZE' : 'CONCURRENTLY';
    if (attached !== undefined) await client.query(`ALTER TABLE ${parent} DETACH PARTITION ${leaf} ${how}`);
    await client.query(`DROP TABLE ${leaf}`);
    dropped.push(leaf);
  }
  return dropped;
}

async function readLayout(client: pg.Client): Promise<PartitionLayout> {
  const { rows } = await client.query<{ hash_partitions: number; partition_days: number }>(
    'SELECT hash_partitions, partition_days FROM installation',
  );
  const row = rows[0];
  if (row === undefined) throw new Error('the database is not installed: run `dispatch migrate`');
  return { hashPartitions: row.hash_partitions, partitionDays: row.partition_days };
}

/** Leaves of the history by name, attached or not. */
async function historyLeaves(client: pg.Client): Promise<string[]> {
  const { rows } = await client.query<{ relname: string }>(
    `SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace
       AND relname ~ '^(events|attempts)_h[0-9]+_[0-9]{8}$' ORDER BY relname`,
  );
  return rows.map((row) => row.relname);
}

async function leafNames(client: pg.Client): Promise<Set<string>> {
  const { rows } = await client.query<{ relname: string }>(
    `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE c.relkind IN ('r', 'p') AND c.relnamespace = current_schema()::regnamespace`,
  );
  return new Set(rows.map((row) => row.relname));
}

/** The ranges from one before the database's now to AHEAD_MS after it, on a fixed grid. */
async function rangesDue(client: pg.Client, partitionDays: number): Promise<HistoryRange[]> {
  const { rows } = await client.query<{ now: number }>(
    'SELECT extract(epoch FROM now())::float8 * 1000 AS now',
  );
  const width = partitionDays * DAY_MS;
  const now = rows[0]!.now;
  const ranges: HistoryRange[] = [];
  for (let from = Math.floor(now / width) * width - width; from < now + AHEAD_MS; from += width) {
    const name = new Date(from).toISOString().slice(0, 10).replaceAll('-', '');
    ranges.push({ name, fromMs: from, toMs: from + width });
  }
  return ranges;
}

async function inTransaction(client: pg.Client, work: () => Promise<void>): Promise<void> {
  await client.query('BEGIN');
  try {
    await work();
    await client.query('COMMIT');
  } catch (error) {
    await client.query('ROLLBACK');
    throw error;
  }
}

async function makeHashLeaf(
  client: pg.Client,
  table: string,
  leaf: string,
  modulus: number,
  remainder: number,
  settings: string | undefined,
): Promise<void> {
  await client.query(`CREATE TABLE IF NOT EXISTS ${leaf} (LIKE ${table} INCLUDING ALL)`);
  if (settings !== undefined) await client.query(`ALTER TABLE ${leaf} SET (${settings})`);
  await guard(client, leaf);
  await client.query(
    `ALTER TABLE ${table} ATTACH PARTITION ${leaf} FOR VALUES WITH (MODULUS ${modulus}, REMAINDER ${remainder})`,
  );
}

async function makeHashParent(
  client: pg.Client,
  table: 'events' | 'attempts',
  parent: string,
  modulus: number,
  remainder: number,
): Promise<void> {
  await client.query(
    `CREATE TABLE IF NOT EXISTS ${parent} (LIKE ${table} INCLUDING ALL) PARTITION BY RANGE (${RANGE_KEY[table]})`,
  );
  await guard(client, parent);
  await client.query(
    `ALTER TABLE ${table} ATTACH PARTITION ${parent} FOR VALUES WITH (MODULUS ${modulus}, REMAINDER ${remainder})`,
  );
}

async function makeRangeLeaf(
  client: pg.Client,
  table: 'events' | 'attempts',
  parent: string,
  range: HistoryRange,
): Promise<void> {
  const leaf = `${parent}_${range.name}`;
  const column = RANGE_KEY[table];
  const from = `'${lowestUuidAt(range.fromMs)}'`;
  const to = `'${lowestUuidAt(range.toMs)}'`;
  await client.query(`CREATE TABLE IF NOT EXISTS ${leaf} (LIKE ${parent} INCLUDING ALL)`);
  // The CHECK says what ATTACH would otherwise find out by reading the leaf under a lock.
  await client.query(
    `ALTER TABLE ${leaf} DROP CONSTRAINT IF EXISTS in_range, ADD CONSTRAINT in_range
       CHECK (${column} IS NOT NULL AND ${column} >= ${from} AND ${column} < ${to})`,
  );
  await guard(client, leaf);
  await client.query(`ALTER TABLE ${parent} ATTACH PARTITION ${leaf} FOR VALUES FROM (${from}) TO (${to})`);
  await client.query(`ALTER TABLE ${leaf} DROP CONSTRAINT in_range`);
}

const OWN_TENANT = "tenant_id = NULLIF(current_setting('app.tenant_id', true), '')";

/** Row-level security, policies and grants, as the parents have them from migrations/0002. */
async function guard(client: pg.Client, table: string): Promise<void> {
  await client.query(`ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY`);
  await client.query(`DROP POLICY IF EXISTS tenant_only ON ${table}`);
  await client.query(`DROP POLICY IF EXISTS engine_all ON ${table}`);
  await client.query(
    `CREATE POLICY tenant_only ON ${table} TO dispatch_tenant USING (${OWN_TENANT}) WITH CHECK (${OWN_TENANT})`,
  );
  await client.query(
    `CREATE POLICY engine_all ON ${table} TO dispatch_engine USING (true) WITH CHECK (true)`,
  );
  await client.query(`GRANT SELECT, INSERT, UPDATE, DELETE ON ${table} TO dispatch_tenant, dispatch_engine`);
}
