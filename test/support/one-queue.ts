// A database with one tenant and one subscription, whose queue is empty before each test of a file.
import { afterAll, beforeAll, beforeEach } from 'vitest';
import { encodeId, type SubscriptionId, type TenantId, uuidOf } from '../../src/domain/ids.ts';
import { type Database, openDatabase } from '../../src/storage/database.ts';
import { cloneDatabase, type TestDatabase } from './database.ts';

export const tenantId = 'acme' as TenantId;
export const subscriptionId = encodeId('sub', Buffer.alloc(16, 1)) as SubscriptionId;
export const queue = { tenantId, subscriptionId };

/** For a whole file: `opened` is told of the database before its first test. */
export function useOneQueue(opened: (database: TestDatabase, db: Database) => void): void {
  let database: TestDatabase;
  let db: Database;
  beforeAll(async () => {
    database = await cloneDatabase();
    db = await openDatabase(database.url, 4, () => {});
    await database.owner.query(
      `INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')`,
      [tenantId],
    );
    opened(database, db);
  });
  beforeEach(async () => {
    await database.owner.query('TRUNCATE deliveries, events, attempts, closed_deliveries, subscriptions');
    await database.owner.query(
      `INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, attempt_timeout_ms, metadata, state)
       VALUES ($1, $2, 'http://127.0.0.1/', '{a}', '', '{}', 1000, '{}', 'active')`,
      [tenantId, uuidOf(subscriptionId)],
    );
  });
  afterAll(async () => {
    await db[Symbol.asyncDispose]();
    await database[Symbol.asyncDispose]();
  });
}
