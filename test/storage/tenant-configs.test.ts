// The cache of configurations: while the database does not answer, and what reading one costs.
import { setTimeout as wait } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { TenantId } from '../../src/domain/ids.ts';
import { DEFAULT_QUOTA } from '../../src/domain/quota.ts';
import { openDatabase } from '../../src/storage/database.ts';
import { createTenantConfigs } from '../../src/storage/tenant-configs.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

test('a check that failed is not tried again at once, however often the configuration is used', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 1, () => {});
  const tenantId = 'acme' as TenantId;
  await database.owner.query(
    "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')",
    [tenantId],
  );
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

test('a configuration of many subscriptions is read by their keys, also by a plan that was made while there were none', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 1, () => {}); // one session, which prepares the statement
  const tenantId = 'acme' as TenantId;
  await database.owner.query(
    "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')",
    [tenantId],
  );
  const configs = createTenantConfigs(
    db,
    [],
    DEFAULT_QUOTA,
    () => performance.now(),
    (error) => expect.fail(`${error}`),
  );
  for (let i = 0; i < 10; i++) await configs.reload(tenantId); // from the sixth on a plan may be kept
  const count = 1_000;
  await database.owner.query(
    `WITH made AS (
        INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, attempt_timeout_ms, metadata, state)
        SELECT $1, gen_random_uuid(), 'https://example.com/', '{order}', '', '{}', 1000, '{}', 'active'
        FROM generate_series(1, $2) RETURNING id),
      secrets AS (
        INSERT INTO subscription_secrets (tenant_id, subscription_id, id, master_key_id, sealed)
        SELECT $1, id, gen_random_uuid(), 'k1', '' FROM made),
      credentials AS (
        INSERT INTO subscription_credentials (tenant_id, subscription_id, master_key_id, sealed)
        SELECT $1, id, 'k1', '' FROM made)
      INSERT INTO breakers (tenant_id, subscription_id, phase, reason, open_count, changed_at)
      SELECT $1, id, 'closed', '', 1, now() FROM made`,
    [tenantId, count],
  );
  const { rows } = await db.claims.query<{ 'QUERY PLAN': [{ Plan: { [name: string]: unknown } }] }>(
    `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE "tenant-config" ('${tenantId}')`,
  );
  const plan = rows[0]!['QUERY PLAN'][0].Plan;
  expect(plan['Actual Rows']).toBe(count);
  const pages = Number(plan['Shared Hit Blocks']) + Number(plan['Shared Read Blocks']);
  // Three look-ups of a row, of at most four pages each: of all of a tenant's rows for each it would be ten times that.
  expect(pages).toBeLessThan(count * 12 + 200);
});
