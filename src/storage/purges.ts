// Removes rows that nobody needs any more, in chunks, as dispatch_engine. Each function does one chunk and returns
// how many rows it removed; 0 means that there is nothing left.
import { z } from 'zod';
import { lowestUuidAt, type TenantId } from '../domain/ids.ts';
import { type Database, sql } from './database.ts';

const CHUNK = 5_000;
type Many = Pick<Database, 'many'>;
const idRow = z.object({ tenant_id: z.string(), id: z.string() });

/** Subscriptions that were deleted and still have rows. */
export async function deletedSubscriptions(db: Many): Promise<readonly z.infer<typeof idRow>[]> {
  return db.many.any(sql.type(idRow)`
    SELECT tenant_id, id FROM subscriptions WHERE deleted_at IS NOT NULL LIMIT 100`);
}

/** Cancels a deleted subscription's deliveries and discards its dead letters, then removes it. */
export async function purgeSubscription(db: Many, tenantId: string, uuid: string): Promise<number> {
  const close = (from: 'deliveries' | 'dead_letters', state: 'cancelled' | 'discarded') => {
    const table = sql.identifier([from]);
    return db.many.query(sql.typeAlias('void')`
      WITH gone AS (
        DELETE FROM ${table} WHERE tenant_id = ${tenantId} AND id IN (
          SELECT id FROM ${table} WHERE tenant_id = ${tenantId} AND subscription_id = ${uuid} LIMIT ${CHUNK})
        RETURNING tenant_id, id, subscription_id, attempt_count)
      INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
      SELECT tenant_id, id, subscription_id, ${state}, attempt_count FROM gone`);
  };
  const cancelled = await close('deliveries', 'cancelled');
  const discarded = await close('dead_letters', 'discarded');
  const count = cancelled.rowCount + discarded.rowCount;
  if (count > 0) return count;
  const removed = await db.many.query(sql.typeAlias('void')`
    DELETE FROM subscriptions WHERE tenant_id = ${tenantId} AND id = ${uuid} AND deleted_at IS NOT NULL`);
  return removed.rowCount;
}

/** Tenants that are being deleted. */
export async function deletingTenants(db: Many): Promise<readonly TenantId[]> {
  const ids = await db.many.anyFirst(sql.type(z.object({ tenant_id: z.string() }))`
    SELECT tenant_id FROM tenants WHERE state = 'deleting' LIMIT 100`);
  return ids.map((id) => id as TenantId);
}

// Deliveries first: once they are gone, no worker's late write can add to the history.
const TENANT_TABLES = [
  ['deliveries', 'id'],
  ['dead_letters', 'id'],
  ['closed_deliveries', 'id'],
  ['attempts', 'delivery_id'],
  ['events', 'id'],
  ['idempotency_keys', 'key'],
  ['replays', 'id'],
  ['subscription_secrets', 'subscription_id'],
  ['subscriptions', 'id'],
  ['api_keys', 'id'],
  ['tenants', 'tenant_id'],
] as const;

/** Removes a chunk of what a tenant owns; its own row last. */
export async function purgeTenant(db: Many, tenantId: TenantId): Promise<number> {
  for (const [table, key] of TENANT_TABLES) {
    const name = sql.identifier([table]);
    const column = sql.identifier([key]);
    const result = await db.many.query(sql.typeAlias('void')`
      DELETE FROM ${name} WHERE tenant_id = ${tenantId} AND ${column} IN (
        SELECT ${column} FROM ${name} WHERE tenant_id = ${tenantId} LIMIT ${CHUNK})`);
    if (result.rowCount > 0) return result.rowCount;
  }
  return 0;
}

/** Forgets idempotency keys whose time is over. */
export async function purgeIdempotencyKeys(db: Many): Promise<number> {
  const result = await db.many.query(sql.typeAlias('void')`
    DELETE FROM idempotency_keys WHERE (tenant_id, key) IN (
      SELECT tenant_id, key FROM idempotency_keys WHERE expires_at <= now() LIMIT ${CHUNK})`);
  return result.rowCount;
}

/** Removes closed deliveries, dead letters and finished replays from before a time (ms since 1970). */
export async function purgeBefore(db: Many, beforeMs: number): Promise<number> {
  const below = lowestUuidAt(beforeMs);
  let count = 0;
  for (const table of ['closed_deliveries', 'dead_letters'] as const) {
    const name = sql.identifier([table]);
    const result = await db.many.query(sql.typeAlias('void')`
      DELETE FROM ${name} WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM ${name} WHERE id < ${below} LIMIT ${CHUNK})`);
    count += result.rowCount;
  }
  const replays = await db.many.query(sql.typeAlias('void')`
    DELETE FROM replays WHERE state = 'finished' AND finished_at < to_timestamp(${beforeMs / 1000})`);
  return count + replays.rowCount;
}

/** When the event of the oldest unfinished delivery was accepted, by its id; undefined if nothing is unfinished. */
export async function oldestUnfinishedMs(db: Many): Promise<number | undefined> {
  const uuid = await db.many.maybeOneFirst(sql.type(z.object({ id: z.string() }))`
    SELECT id FROM deliveries ORDER BY id LIMIT 1`);
  return uuid === null ? undefined : Number.parseInt(uuid.replaceAll('-', '').slice(0, 12), 16);
}

/** The database's clock in ms since 1970: schedules and retention use no other. */
export async function databaseNowMs(db: Many): Promise<number> {
  return db.many.oneFirst(
    sql.type(z.object({ now: z.number() }))`SELECT extract(epoch FROM now())::float8 * 1000 AS now`,
  );
}
