// Removes rows that nobody needs any more, in chunks, as dispatch_engine. Each function does one chunk and returns
// how many rows it removed; 0 means that there is nothing left.
import { z } from 'zod';
import { lowestUuidAt, type TenantId } from '../domain/ids.ts';
import { eraseAudit } from './audit.ts';
import { type Database, sql } from './database.ts';

const CHUNK = 5_000;
type Many = Pick<Database, 'many'>;
/** Where a subscription's deliveries are found, each by an index of its own. */
const DELIVERY_PLACES = [
  sql.fragment`NOT is_parked AND NOT is_leased`,
  sql.fragment`is_parked AND NOT is_leased`,
  sql.fragment`is_leased`,
];
const idRow = z.object({ tenant_id: z.string(), id: z.string() });

/**
 * A publish whose statement began before a deletion may commit after it. No statement outlives its timeout (30 s), so
 * what was deleted this long ago has all the rows it will ever have.
 */
const SETTLED = sql.fragment`now() - interval '60 s'`;

/** Subscriptions that were deleted and still have rows. */
export async function deletedSubscriptions(db: Many): Promise<readonly z.infer<typeof idRow>[]> {
  return db.many.any(sql.type(idRow)`
    SELECT tenant_id, id FROM subscriptions WHERE deleted_at < ${SETTLED} LIMIT 100`);
}

/** Cancels a deleted subscription's deliveries and discards its dead letters, then removes it. */
export async function purgeSubscription(db: Many, tenantId: string, uuid: string): Promise<number> {
  const close = (
    from: 'deliveries' | 'dead_letters',
    state: 'cancelled' | 'discarded',
    places: readonly ReturnType<typeof sql.fragment>[],
  ) => {
    const table = sql.identifier([from]);
    const found = places.map(
      (place) =>
        sql.fragment`SELECT id FROM ${table} WHERE tenant_id = ${tenantId} AND subscription_id = ${uuid} AND ${place}`,
    );
    return db.many.query(sql.typeAlias('void')`
      WITH gone AS (
        DELETE FROM ${table} WHERE tenant_id = ${tenantId} AND id IN (
          ${sql.join(found, sql.fragment` UNION ALL `)} LIMIT ${CHUNK})
        RETURNING tenant_id, id, subscription_id, attempt_count)
      INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
      SELECT tenant_id, id, subscription_id, ${state}, attempt_count FROM gone`);
  };
  // One statement sees each delivery in one of its places. What is held comes last, as all that is held of the tenant is read.
  const cancelled = await close('deliveries', 'cancelled', DELIVERY_PLACES);
  // After the deliveries, as they may end here.
  const discarded = await close('dead_letters', 'discarded', [sql.fragment`true`]);
  const count = cancelled.rowCount + discarded.rowCount;
  if (count > 0) return count;
  // What workers wrote after the deletion.
  for (const table of ['breakers', 'subscription_health', 'subscription_probes']) {
    await db.many.query(sql.typeAlias('void')`
      DELETE FROM ${sql.identifier([table])} WHERE tenant_id = ${tenantId} AND subscription_id = ${uuid}`);
  }
  const removed = await db.many.query(sql.typeAlias('void')`
    DELETE FROM subscriptions WHERE tenant_id = ${tenantId} AND id = ${uuid} AND deleted_at IS NOT NULL`);
  return removed.rowCount;
}

const tenantRow = z.object({ tenant_id: z.string() });

/** Tenants that are being deleted. */
export async function deletingTenants(db: Many): Promise<readonly TenantId[]> {
  const ids = await db.many.anyFirst(sql.type(tenantRow)`
    SELECT tenant_id FROM tenants WHERE state = 'deleting' AND updated_at < ${SETTLED} LIMIT 100`);
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
  ['subscription_credentials', 'subscription_id'],
  ['breakers', 'subscription_id'],
  ['subscription_health', 'subscription_id'],
  ['subscription_probes', 'subscription_id'],
  ['quota_alerts', 'period'],
  ['usage', 'hour'],
  ['subscriptions', 'id'],
  ['api_keys', 'id'],
  ['tenants', 'tenant_id'],
] as const;

/** Removes a chunk of what a tenant owns; its own row last, after its part of the audit log. */
export async function purgeTenant(
  db: Pick<Database, 'many' | 'ownerUrl'>,
  tenantId: TenantId,
): Promise<number> {
  for (const [table, key] of TENANT_TABLES) {
    if (table === 'tenants') await eraseAudit(db.ownerUrl, tenantId);
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

/** Removes closed deliveries, dead letters and replays that ended before a time (ms since 1970). */
export async function purgeBefore(db: Many, beforeMs: number): Promise<number> {
  let count = 0;
  for (const [table, ended] of [
    ['closed_deliveries', 'closed_at'],
    ['dead_letters', 'dead_at'],
    ['replays', 'finished_at'],
  ] as const) {
    const name = sql.identifier([table]);
    const result = await db.many.query(sql.typeAlias('void')`
      DELETE FROM ${name} WHERE (tenant_id, id) IN (
        SELECT tenant_id, id FROM ${name}
        WHERE ${sql.identifier([ended])} < to_timestamp(${beforeMs / 1000}) LIMIT ${CHUNK})`);
    count += result.rowCount;
  }
  return count;
}

/** Removes a chunk of one tenant's history from before a time: for tenants that keep less than the installation. */
export async function purgeHistoryOf(db: Many, tenantId: TenantId, beforeMs: number): Promise<number> {
  const below = lowestUuidAt(beforeMs);
  const expired = await db.many.query(sql.typeAlias('void')`
    WITH gone AS (
      DELETE FROM deliveries WHERE tenant_id = ${tenantId} AND id IN (
        SELECT id FROM deliveries WHERE tenant_id = ${tenantId} AND id < ${below} LIMIT ${CHUNK} FOR UPDATE SKIP LOCKED)
      RETURNING tenant_id, id, subscription_id, attempt_count)
    INSERT INTO dead_letters (tenant_id, id, subscription_id, event_type, reason, last_error_class, last_error_message,
      attempt_count)
    SELECT tenant_id, id, subscription_id, '', 'event_expired', 'internal', 'it was older than the history that is kept',
      attempt_count FROM gone`);
  if (expired.rowCount > 0) return expired.rowCount;
  let count = 0;
  for (const [table, key] of [
    ['attempts', 'delivery_id'],
    ['events', 'id'],
  ] as const) {
    const name = sql.identifier([table]);
    const column = sql.identifier([key]);
    const result = await db.many.query(sql.typeAlias('void')`
      DELETE FROM ${name} WHERE tenant_id = ${tenantId} AND ${column} IN (
        SELECT ${column} FROM ${name} WHERE tenant_id = ${tenantId} AND ${column} < ${below} LIMIT ${CHUNK})`);
    count += result.rowCount;
  }
  for (const [table, ended] of [
    ['closed_deliveries', 'closed_at'],
    ['dead_letters', 'dead_at'],
  ] as const) {
    const name = sql.identifier([table]);
    const result = await db.many.query(sql.typeAlias('void')`
      DELETE FROM ${name} WHERE tenant_id = ${tenantId} AND id IN (
        SELECT id FROM ${name} WHERE tenant_id = ${tenantId}
          AND ${sql.identifier([ended])} < to_timestamp(${beforeMs / 1000}) LIMIT ${CHUNK})`);
    count += result.rowCount;
  }
  return count;
}

/** Gives up unfinished deliveries of events from before a time, before their history is dropped. */
export async function expireDeliveries(db: Many, beforeMs: number): Promise<number> {
  const result = await db.many.query(sql.typeAlias('void')`
    WITH gone AS (
      DELETE FROM deliveries WHERE (tenant_id, id) IN (
        SELECT tenant_id, id FROM deliveries WHERE id < ${lowestUuidAt(beforeMs)} LIMIT ${CHUNK} FOR UPDATE SKIP LOCKED)
      RETURNING tenant_id, id, subscription_id, attempt_count)
    INSERT INTO dead_letters (tenant_id, id, subscription_id, event_type, reason, last_error_class, last_error_message,
      attempt_count)
    SELECT tenant_id, id, subscription_id, '', 'event_expired', 'internal', 'it was older than the history that is kept',
      attempt_count FROM gone`);
  return result.rowCount;
}

const clockRow = z.object({ now: z.number() });

/** The database's clock in ms since 1970: schedules and retention use no other. */
export async function databaseNowMs(db: Many): Promise<number> {
  return db.many.oneFirst(sql.type(clockRow)`SELECT extract(epoch FROM now())::float8 * 1000 AS now`);
}
