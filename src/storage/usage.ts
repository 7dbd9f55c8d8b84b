// What tenants published. Table: usage, written by ingest.ts in the publish transaction; read, folded and counted here.
import { z } from 'zod';
import type { TenantId } from '../domain/ids.ts';
import { type Database, sql } from './database.ts';
import type { Statements } from './hot-pool.ts';

/** What was accepted in one hour or day, which begins at `startMs` (since 1970). */
export type UsageRow = {
  readonly startMs: number;
  readonly events: number;
  readonly bytes: number;
  readonly deliveries: number;
};

const totalsRow = z.object({ today: z.number(), month: z.number() });
const usageRow = z.object({
  start: z.number(),
  events: z.number(),
  bytes: z.number(),
  deliveries: z.number(),
});

export type UsageTotals = { readonly today: number; readonly thisMonth: number };

/** Usage by UTC hour or day in [startMs, endMs), and this day's and month's events. */
export async function readUsage(
  db: Database,
  tenantId: TenantId,
  interval: 'hour' | 'day',
  startMs: number,
  endMs: number,
): Promise<{ readonly rows: readonly UsageRow[]; readonly totals: UsageTotals }> {
  return db.inTenant(tenantId, async (tx) => {
    const rows = await tx.any(sql.type(usageRow)`
      SELECT date_trunc(${interval}, hour, 'UTC') AS start, sum(events)::int8 AS events, sum(bytes)::int8 AS bytes,
        sum(deliveries)::int8 AS deliveries
      FROM usage WHERE tenant_id = ${tenantId}
        AND hour >= date_trunc(${interval}, to_timestamp(${startMs / 1000}), 'UTC')
        AND hour < to_timestamp(${endMs / 1000})
      GROUP BY 1 ORDER BY 1`);
    const totals = await tx.one(sql.type(totalsRow)`
      SELECT coalesce(sum(events) FILTER (WHERE hour >= date_trunc('day', now(), 'UTC')), 0)::int8 AS today,
        coalesce(sum(events), 0)::int8 AS month
      FROM usage WHERE tenant_id = ${tenantId} AND hour >= date_trunc('month', now(), 'UTC')`);
    return {
      rows: rows.map(({ start, ...counts }) => ({ startMs: start, ...counts })),
      totals: { today: totals.today, thisMonth: totals.month },
    };
  });
}

const slotRow = z.object({ slot: z.number() });

/** A slot number that no other process has had: one row an hour and lane, and no waiting for each other. */
export async function takeUsageSlot(db: Pick<Database, 'many'>): Promise<number> {
  return db.many.oneFirst(sql.type(slotRow)`SELECT nextval('usage_slots') AS slot`);
}

const FOLD = 500;

/** Folds the slots of hours that are over into slot 0; sums stay what they were. Returns the rows folded. */
export async function foldUsage(db: Pick<Database, 'many'>): Promise<number> {
  // No statement that counts into a past hour is still running: none outlives its timeout (30 s).
  const result = await db.many.query(sql.typeAlias('void')`
    WITH picked AS (
      SELECT tenant_id, hour FROM usage WHERE slot <> 0 AND hour < now() - interval '1 h 5 min'
      GROUP BY tenant_id, hour LIMIT ${FOLD}),
    gone AS (
      DELETE FROM usage u USING picked p WHERE u.tenant_id = p.tenant_id AND u.hour = p.hour AND u.slot <> 0
      RETURNING u.*)
    INSERT INTO usage AS u (tenant_id, hour, slot, events, bytes, deliveries)
    SELECT tenant_id, hour, 0, sum(events), sum(bytes), sum(deliveries) FROM gone GROUP BY tenant_id, hour
    ON CONFLICT (tenant_id, hour, slot) DO UPDATE SET events = u.events + excluded.events,
      bytes = u.bytes + excluded.bytes, deliveries = u.deliveries + excluded.deliveries`);
  return result.rowCount;
}

/** Forgets usage of over 13 months ago. Returns the rows removed. */
export async function pruneUsage(db: Pick<Database, 'many'>): Promise<number> {
  const result = await db.many.query(sql.typeAlias('void')`
    DELETE FROM usage WHERE hour < now() - interval '400 days'`);
  return result.rowCount;
}

/** How many deliveries of a tenant are not finished; counts no further than `upTo`. */
export async function countBacklog(pool: Statements, tenantId: TenantId, upTo: number): Promise<number> {
  const { rows } = await pool.query<{ count: number }>({
    name: 'count-backlog',
    text: 'SELECT count(*)::float8 AS count FROM (SELECT FROM deliveries WHERE tenant_id = $1 LIMIT $2) d',
    values: [tenantId, upTo],
  });
  return rows[0]!.count;
}
