// Deliveries that are due much later are parked: they are in the index deliveries_parked instead of deliveries_due, so that
// neither claims nor the walk over all queues pay for them. Whoever writes a time when a delivery is due says with it
// whether that parks it; unpark() takes them out again well before that time, by an index of what is parked by time alone
// (deliveries_parked_by_time). Runs as dispatch_engine (ADRs 0023, 0035).
import type { Statements } from './hot-pool.ts';

/** What the index deliveries_due asks of a statement that is to use it. */
export const IN_DUE = 'NOT is_parked AND NOT is_leased';

/** Whether what is due at `time`, an expression, is parked. */
export const isParkedAt = (time: string) => `${time} > now() + interval '2 minutes'`;

/**
 * How long before its time a delivery is taken out, in ms. Less than what parks it, so that a short delay is written once;
 * and enough for a worker that comes by every twenty seconds, or a million of them.
 */
export const UNPARK_AHEAD_MS = 60_000;

/** Most deliveries of one call. */
export const MAX_UNPARK = 5_000;

/** Where a look along what is parked stands: behind a time (µs since 1970, on the database's clock), and behind an id of that time. */
export type ParkedPosition = { readonly atUs: number; readonly uuid: string };

/** Before all of a time. */
export const parkedFrom = (atUs: number): ParkedPosition => ({
  atUs,
  uuid: '00000000-0000-0000-0000-000000000000',
});

/** Before all that is parked. */
export const PARKED_FRONT = parkedFrom(0);

/** What a look took out. */
export type Unparked = {
  readonly count: number;
  /** Where the next goes on; undefined: nothing more is due within UNPARK_AHEAD_MS. */
  readonly next: ParkedPosition | undefined;
  /** When the statement began, in µs since 1970 on the database's clock. */
  readonly nowUs: number;
};

/**
 * Takes up to MAX_UNPARK deliveries out that are due within UNPARK_AHEAD_MS, the first ones first, from a position on;
 * undefined: from ten minutes ago. What somebody else is taking out or writing to is passed over.
 *
 * What was taken out stays in the index until it is vacuumed, so a look does not begin at the front each time. An update whose
 * rows are found by their key, as in a claim.
 */
export async function unpark(pool: Statements, after: ParkedPosition | undefined): Promise<Unparked> {
  const { rows } = await pool.query<{ count: number; now_us: number; at_us: number; uuid: string }>({
    name: 'unpark',
    text: `WITH picked AS MATERIALIZED (
        SELECT tenant_id, id, subscription_id, run_at FROM deliveries
        WHERE (run_at, id) > (coalesce(timestamptz 'epoch' + $1::float8 * interval '1 us', now() - interval '10 min'), $2::uuid)
          AND run_at <= now() + interval '${UNPARK_AHEAD_MS} ms' AND is_parked AND run_at > '-infinity'
        ORDER BY run_at, id LIMIT ${MAX_UNPARK} FOR UPDATE SKIP LOCKED),
      taken AS (
        INSERT INTO deliveries AS d (tenant_id, id, subscription_id, run_at)
        SELECT tenant_id, id, subscription_id, run_at FROM picked
        ON CONFLICT (tenant_id, id) DO UPDATE SET is_parked = false)
      SELECT (SELECT count(*)::int4 FROM picked) AS count, (extract(epoch FROM now()) * 1000000)::float8 AS now_us,
        (extract(epoch FROM last.run_at) * 1000000)::float8 AS at_us, last.id AS uuid
      FROM (VALUES (1)) AS one LEFT JOIN (SELECT * FROM picked ORDER BY run_at DESC, id DESC LIMIT 1) AS last ON true`,
    values: [after?.atUs ?? null, (after ?? PARKED_FRONT).uuid],
  });
  const { count, now_us: nowUs, at_us: atUs, uuid } = rows[0]!;
  return { count, next: count === MAX_UNPARK ? { atUs, uuid } : undefined, nowUs };
}
