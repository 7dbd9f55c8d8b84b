// Deliveries that are due much later are parked: they are in the index deliveries_parked instead of deliveries_due, so that
// neither claims nor the walk over all queues pay for them. Whoever writes a time when a delivery is due says with it
// whether that parks it; unpark() takes them out again well before that time. Runs as dispatch_engine (ADR 0023).
import { idBytes } from '../domain/ids.ts';
import { textArray, uuidArray } from './binary-arrays.ts';
import type { QueueKey } from './claims.ts';
import type { Statements } from './hot-pool.ts';

/** What the index deliveries_due asks of a statement that is to use it. */
export const IN_DUE = 'NOT is_parked AND NOT is_leased';

/** Whether what is due at `time`, an expression, is parked. */
export const isParkedAt = (time: string) => `${time} > now() + interval '2 minutes'`;

/**
 * How long before its time a delivery is taken out, in ms. Less than what parks it, so that a short delay is written once;
 * and enough for a worker that comes by every ten seconds, or a million of them.
 */
export const UNPARK_AHEAD_MS = 60_000;

/** Most deliveries of one call. */
export const MAX_UNPARK = 5_000;

/**
 * Takes up to MAX_UNPARK deliveries of these queues out that are due within UNPARK_AHEAD_MS, of each queue the first ones
 * first; fewer: there are no more. Returns how many. Those that somebody else is taking out are passed over.
 *
 * An update whose rows are found by their key, as in a claim.
 */
export async function unpark(pool: Statements, queues: readonly QueueKey[]): Promise<number> {
  const { rows } = await pool.query<{ count: number }>({
    name: 'unpark',
    text: `WITH picked AS MATERIALIZED (
        SELECT p.* FROM unnest($1::text[], $2::uuid[]) AS q (tenant_id, subscription_id)
        CROSS JOIN LATERAL (
          SELECT d.tenant_id, d.id, d.subscription_id, d.run_at FROM deliveries d
          WHERE d.tenant_id = q.tenant_id AND d.subscription_id = q.subscription_id
            AND d.run_at <= now() + interval '${UNPARK_AHEAD_MS} ms' AND d.is_parked
          ORDER BY d.run_at, d.id LIMIT ${MAX_UNPARK} FOR UPDATE SKIP LOCKED) p LIMIT ${MAX_UNPARK}),
      taken AS (
        INSERT INTO deliveries AS d (tenant_id, id, subscription_id, run_at)
        SELECT tenant_id, id, subscription_id, run_at FROM picked
        ON CONFLICT (tenant_id, id) DO UPDATE SET is_parked = false)
      SELECT count(*)::int4 AS count FROM picked`,
    values: [
      textArray(queues.map((q) => q.tenantId)),
      uuidArray(queues.map((q) => idBytes(q.subscriptionId))),
    ],
  });
  return rows[0]!.count;
}
