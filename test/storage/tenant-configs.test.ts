// The cache of configurations: while the database does not answer, and what reading one costs.
import { setImmediate as turn, setTimeout as wait } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { TenantId } from '../../src/domain/ids.ts';
import { DEFAULT_QUOTA } from '../../src/domain/quota.ts';
import { type Database, type ManyStatements, openDatabase } from '../../src/storage/database.ts';
import { createTenantConfigs } from '../../src/storage/tenant-configs.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

const failed = (error: unknown) => expect.fail(`${error}`);

type PlanNode = {
  readonly 'Actual Rows': number;
  readonly 'Shared Hit Blocks': number;
  readonly 'Shared Read Blocks': number;
  readonly 'Actual Loops': number;
  readonly 'Rows Removed by Filter'?: number;
  readonly 'Relation Name'?: string;
  readonly 'Parent Relationship'?: string;
  readonly Plans?: readonly PlanNode[];
};

/** As many subscriptions ($2) of a tenant ($1), without secrets. */
const SUBSCRIPTIONS = `
  INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, attempt_timeout_ms, metadata, state)
  SELECT $1, gen_random_uuid(), 'https://example.com/', '{order}', '', '{}', 1000, '{}', 'active'
  FROM generate_series(1, $2::int4)`;

async function createTenant({ owner }: TestDatabase): Promise<TenantId> {
  const tenantId = 'acme' as TenantId;
  const text =
    "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')";
  await owner.query(text, [tenantId]);
  return tenantId;
}

/** A database's statements, and the checks that were asked for by them. */
function checksOf(db: Database): { readonly many: ManyStatements; readonly checks: Promise<unknown>[] } {
  const checks: Promise<unknown>[] = [];
  const any: ManyStatements['any'] = (query) => {
    const check = db.many.any(query);
    checks.push(check);
    return check;
  };
  return { many: { ...db.many, any }, checks };
}

test('a check that failed is not tried again at once, however often the configuration is used', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 1, () => {});
  const tenantId = await createTenant(database);
  let nowMs = 0;
  let failureCount = 0;
  const configs = createTenantConfigs(
    db,
    [],
    DEFAULT_QUOTA,
    () => nowMs,
    () => failureCount++,
  );
  await configs.get(tenantId);
  await database.owner.query('ALTER TABLE tenants RENAME TO elsewhere'); // every check fails, and fails fast
  nowMs = 6_000; // older than what is used unchecked
  const useUntil = async (failures: number) =>
    eventually(() => {
      expect(configs.peek(tenantId)?.version).toBeGreaterThan(0); // an old one is better than none
      expect(failureCount).toBe(failures);
    });
  await useUntil(1);
  for (let i = 0; i < 50; i++) {
    configs.peek(tenantId);
    await wait(1);
  }
  expect(failureCount).toBe(1);
  nowMs = 6_500;
  await useUntil(2);
});

test('one that is asked for while it is checked is not checked once more', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 1, () => {});
  const tenantId = await createTenant(database);
  const { many, checks } = checksOf(db);
  let nowMs = 0;
  const configs = createTenantConfigs({ many, claims: db.claims }, [], DEFAULT_QUOTA, () => nowMs, failed);
  await configs.get(tenantId);
  for (const until of [1, 2]) {
    nowMs += 6_000;
    for (let i = 0; i < 3; i++) configs.peek(tenantId);
    await checks.at(-1);
    await turn(); // what hears of it would check again
    expect(checks.length).toBe(until);
  }
});

test('what a statement has found is not checked, for as long as it is no older than that', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 1, () => {});
  const tenantId = await createTenant(database);
  const { many, checks } = checksOf(db);
  let nowMs = 0;
  const configs = createTenantConfigs({ many, claims: db.claims }, [], DEFAULT_QUOTA, () => nowMs, failed);
  const { version } = (await configs.get(tenantId))!;
  await database.owner.query('UPDATE tenants SET config_version = config_version + 1'); // and nobody is told
  nowMs = 6_000;
  configs.confirm(tenantId, version, 5_000);
  configs.confirm(tenantId, version, 1_000); // older than what is known
  configs.confirm(tenantId, version + 1, 6_000); // another version than the one that is in memory
  for (nowMs of [6_000, 10_000]) expect(configs.peek(tenantId)?.version).toBe(version);
  expect(checks.length).toBe(0);
  nowMs = 10_001;
  expect(configs.peek(tenantId)?.version).toBe(version);
  expect(checks.length).toBe(1);
  await eventually(() => expect(configs.peek(tenantId)).toBeUndefined());
});

test('configurations of many subscriptions are read by their keys, also by plans that were made while there were none', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 1, () => {}); // one session, which prepares the statements
  const tenantId = 'acme' as TenantId;
  await database.owner.query(
    "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')",
    [tenantId],
  );
  const configs = createTenantConfigs(db, [], DEFAULT_QUOTA, () => performance.now(), failed);
  for (let i = 0; i < 10; i++) {
    configs.clear();
    await configs.get(tenantId); // all of it; from the sixth on a plan may be kept
    await configs.reload(tenantId); // what changed
  }
  const count = 1_000;
  await database.owner.query(
    `WITH made AS (${SUBSCRIPTIONS} RETURNING id),
      secrets AS (
        INSERT INTO subscription_secrets (tenant_id, subscription_id, id, master_key_id, sealed)
        SELECT $1, id, gen_random_uuid(), 'k1', '' FROM made),
      credentials AS (
        INSERT INTO subscription_credentials (tenant_id, subscription_id, master_key_id, sealed)
        SELECT $1, id, 'k1', '' FROM made)
      INSERT INTO breakers (tenant_id, subscription_id, phase, reason, open_count, changed_at)
      SELECT $1, id, 'closed', '', 1, now() - interval '1 h' FROM made`,
    [tenantId, count],
  );
  await database.owner.query(
    'UPDATE subscriptions SET config_version = 9 WHERE id IN (SELECT id FROM subscriptions LIMIT 3)',
  );
  const { rows: ids } = await database.owner.query(
    'SELECT id FROM subscriptions ORDER BY id OFFSET 500 LIMIT 1',
  );
  const planOf = async (execute: string) => {
    const { rows } = await db.claims.query<{ 'QUERY PLAN': [{ Plan: PlanNode }] }>(
      `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE ${execute}`,
    );
    const plan = rows[0]!['QUERY PLAN'][0].Plan;
    const nodes = [plan];
    for (const node of nodes)
      nodes.push(...(node.Plans ?? []).filter((n) => n['Parent Relationship'] !== 'InitPlan'));
    // Rows that were looked at, also those that were not wanted.
    const rowsOf = (table: string) =>
      nodes.reduce(
        (sum, node) =>
          sum +
          (node['Relation Name'] === table
            ? (node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0)) * node['Actual Loops']
            : 0),
        0,
      );
    return {
      rows: plan['Actual Rows'],
      pages: plan['Shared Hit Blocks'] + plan['Shared Read Blocks'],
      rowsOf,
    };
  };
  // Of the thousand no more are read than a page has, wherever it begins.
  const page = await planOf(`"tenant-config" ('${tenantId}', '${ids[0].id}', 200)`);
  expect(page.rows).toBe(200);
  for (const table of ['subscriptions', 'subscription_secrets', 'subscription_credentials']) {
    expect([table, page.rowsOf(table)]).toEqual([table, 200]);
  }
  // Three look-ups of a row, of at most four pages each: of all of a tenant's rows for each it would be ten times that.
  expect(page.pages).toBeLessThan(200 * 12 + 200);
  // Of three that changed no more than those are read, beside the number of all.
  const before = '00000000-0000-0000-0000-000000000000';
  const nowMs = Date.now();
  const changes = await planOf(`"tenant-config-changes" ('${tenantId}', '${before}', 200, 8, ${nowMs})`);
  expect(changes.rows).toBe(3);
  expect(changes.rowsOf('subscriptions')).toBe(3 + 3); // their ids, and they
  expect(changes.rowsOf('breakers')).toBe(3);
  for (const table of ['subscription_secrets', 'subscription_credentials']) {
    expect([table, changes.rowsOf(table)]).toEqual([table, 3]);
  }
});

test('a configuration has all of its subscriptions, whatever their number is to that of a page', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 2, () => {});
  const configs = createTenantConfigs(db, [], DEFAULT_QUOTA, () => performance.now(), failed);
  for (const count of [0, 1, 199, 200, 201, 400, 1_001]) {
    const tenantId = `with-${count}` as TenantId;
    await database.owner.query(
      "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')",
      [tenantId],
    );
    await database.owner.query(SUBSCRIPTIONS, [tenantId, count]);
    const config = await configs.get(tenantId);
    expect([tenantId, config?.targets.size]).toEqual([tenantId, count]);
    expect([tenantId, config?.matches.match('order').length]).toEqual([tenantId, count]);
  }
});

test('a configuration that changes while it is read has the version from before, so that nothing is matched with it', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 2, () => {});
  const tenantId = 'acme' as TenantId;
  await database.owner.query(
    "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')",
    [tenantId],
  );
  await database.owner.query(SUBSCRIPTIONS, [tenantId, 300]);
  let pageCount = 0;
  const query: typeof db.claims.query = async (...args) => {
    const page = await db.claims.query(...(args as Parameters<typeof db.claims.query>));
    if (pageCount++ === 0) {
      await database.owner.query('UPDATE tenants SET config_version = config_version + 1');
      await database.owner.query("UPDATE subscriptions SET url = 'https://example.com/new'");
    }
    return page as never;
  };
  const claims = { query } as typeof db.claims;
  const configs = createTenantConfigs(
    { many: db.many, claims },
    [],
    DEFAULT_QUOTA,
    () => performance.now(),
    failed,
  );
  const [config] = await Promise.all([configs.get(tenantId)]);
  const { rows } = await database.owner.query('SELECT config_version::float8 AS version FROM tenants');
  const paths = [...config!.targets.values()].map(({ path }) => path);
  expect([config!.version, paths.filter((path) => path === '/new').length]).toEqual([
    rows[0].version - 1,
    100,
  ]);
  expect((await configs.reload(tenantId))?.version).toBe(rows[0].version);
});
