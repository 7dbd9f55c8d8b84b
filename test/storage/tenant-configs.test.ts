// The cache of configurations while the database does not answer.
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
