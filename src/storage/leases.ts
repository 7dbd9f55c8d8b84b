// What a worker holds is in the index deliveries_leased instead of deliveries_due: by the end of its lease, so that leasing
// writes to the end of its tenant's part and not to a page of its queue's, and neither claims nor the walk over all queues
// meet it. Whoever leases a delivery says so (is_leased), whoever ends its lease takes that back, and where nobody does, putBack()
// does once the lease has run out. The token stays: results are told by it until another claim. Runs as dispatch_engine (ADR 0034).
import { idFromUuid, type SubscriptionId, type TenantId } from '../domain/ids.ts';
import { SHORTEST_LEASE_MS } from '../domain/lease.ts';
import type { Statements } from './hot-pool.ts';
import type { QueueHead } from './walk.ts';

/** Most deliveries of one call. */
export const MAX_PUT_BACK = 5_000;

/** What a look found. */
export type LeaseEnds = {
  /** Queues that have something due again, and when the first of it was due. */
  readonly queues: readonly QueueHead[];
  /** How many deliveries were put back: MAX_PUT_BACK, and there may be more. */
  readonly count: number;
  /** When the statement began, in µs since 1970 on the database's clock. */
  readonly nowUs: number;
  /** When the first lease that was there and had not ended will, in ms from now; undefined: none within SHORTEST_LEASE_MS. */
  readonly nextInMs: number | undefined;
};

type Row = {
  readonly tenant_id: string | null;
  readonly subscription_id: string | null;
  readonly count: number;
  /** Of a queue's first; of the last row, of the statement. */
  readonly at_us: number;
  /** Of a queue's first; of the last row, of the next that will end. */
  readonly in_ms: number | null;
};

/**
 * Puts up to MAX_PUT_BACK deliveries whose leases have ended after `afterUs` (µs since 1970, on the database's clock; undefined:
 * ten minutes ago) back among what is due. What somebody else is writing to is passed over: it is not held up, and another look comes by.
 *
 * What was recorded stays in the index until it is vacuumed. What of that lies between the two times is looked up in the table, so a
 * look does not begin at the front each time; the rest is passed over by its key. An update whose rows are found by their key, as
 * in a claim.
 */
export async function putBack(pool: Statements, afterUs: number | undefined): Promise<LeaseEnds> {
  const { rows } = await pool.query<Row>({
    name: 'put-back',
    text: `WITH over AS MATERIALIZED (
        SELECT tenant_id, id, subscription_id, run_at FROM deliveries
        WHERE run_at > coalesce(timestamptz 'epoch' + $1::float8 * interval '1 us', now() - interval '10 min')
          AND run_at <= now() AND is_leased
        LIMIT ${MAX_PUT_BACK} FOR UPDATE SKIP LOCKED),
      back AS (
        INSERT INTO deliveries AS d (tenant_id, id, subscription_id, run_at)
        SELECT tenant_id, id, subscription_id, run_at FROM over
        ON CONFLICT (tenant_id, id) DO UPDATE SET is_leased = false)
      SELECT tenant_id, subscription_id, count(*)::int4 AS count, extract(epoch FROM min(run_at))::float8 * 1000000 AS at_us,
        extract(epoch FROM min(run_at) - now())::float8 * 1000 AS in_ms
      FROM over GROUP BY tenant_id, subscription_id
      UNION ALL
      SELECT NULL, NULL, 0, extract(epoch FROM now())::float8 * 1000000, extract(epoch FROM min(run_at) - now())::float8 * 1000
      FROM deliveries WHERE run_at > now() AND run_at <= now() + interval '${SHORTEST_LEASE_MS} ms' AND is_leased`,
    values: [afterUs ?? null],
  });
  const last = rows[rows.length - 1]!;
  const found = rows.slice(0, -1);
  return {
    queues: found.map((row) => ({
      tenantId: row.tenant_id as TenantId,
      subscriptionId: idFromUuid('sub', row.subscription_id!) as SubscriptionId,
      dueAtMs: row.at_us / 1000,
      dueInMs: row.in_ms!,
    })),
    count: found.reduce((sum, row) => sum + row.count, 0),
    nowUs: last.at_us,
    nextInMs: last.in_ms ?? undefined,
  };
}
