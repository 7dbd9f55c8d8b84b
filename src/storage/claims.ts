// Claims: how a worker finds due deliveries of many tenants and leases them. Runs as dispatch_engine.
// A claim pushes run_at to the end of the lease and writes a new token: there is no status, an expired lease is simply due
// again (domain/lease.ts has the rules without SQL), and leases.ts brings it to where claims look. This file and ingest.ts
// hold the only hot statements that span tenants.
import type { ClaimedDelivery, EventContent } from '../domain/delivery.ts';
import {
  type DeliveryId,
  type EventId,
  encodeId,
  eventIdOf,
  idBytes,
  idFromUuid,
  type SubscriptionId,
  type TenantId,
  uuidOf,
} from '../domain/ids.ts';
import { float8Array, int4Array, textArray, uuidArray } from './binary-arrays.ts';
import { IN_BINARY, type Statements } from './hot-pool.ts';
import { IN_DUE } from './parking.ts';

/** A subscription's queue in the database. */
export type QueueKey = { readonly tenantId: TenantId; readonly subscriptionId: SubscriptionId };

type ClaimRow = {
  tenant_id: string;
  id: string;
  subscription_id: string;
  attempt_count: number;
  retry_base: number;
  round_ms: number | null;
  due_ms: number;
};

/** A claim before its event was read. */
type Claim = Omit<ClaimedDelivery, 'event'>;

/** What a claim brought. */
export type Claimed = {
  readonly deliveries: readonly ClaimedDelivery[];
  /** Claims whose event is not in the history any more. */
  readonly withoutEvent: readonly Claim[];
};

/** What a claim of lines brought: the deliveries of a line follow each other. */
export type ClaimedLines = Claimed & {
  readonly lines: readonly (readonly ClaimedDelivery[])[];
  /** Where the next look at this queue goes on: the last line that was seen, or '' after the last there is. */
  readonly reached: string;
  /** When the first line that was seen and not due will be, in ms from now; undefined: none will by itself. */
  readonly dueInMs: number | undefined;
};

/**
 * Most deliveries of one claim. Also tells the planner how few events to look up by key: without it, it took a tenth of the
 * queue and joined by hash, 40 ms beside a backlog of 100,000 where 0.3 ms do.
 */
export const MAX_CLAIM = 100;

/** Where a claim of a queue ended: its last delivery in the order of claims. */
export type ClaimPosition = Pick<ClaimedDelivery, 'dueAtMs' | 'idBytes'>;

/** What is claimed of a queue. */
export type Wanted = QueueKey & {
  readonly room: number;
  /**
   * Only what comes behind this. What was claimed before stays in front of the index until it is vacuumed, and a claim
   * from the front walks over all of it: twice the time after 250,000.
   */
  readonly after: ClaimPosition | undefined;
};

/** The order of claims: oldest due first. */
export const compareClaims = (a: ClaimPosition, b: ClaimPosition): number =>
  a.dueAtMs - b.dueAtMs || Buffer.compare(a.idBytes, b.idBytes);

const FRONT: ClaimPosition = { dueAtMs: 0, idBytes: Buffer.alloc(16) };

/**
 * Leases up to `room` (at most MAX_CLAIM in all) due deliveries of each queue for `leaseMs`, oldest due first, and reads
 * their events. No queue may be there twice. Rows that another worker is claiming are passed over. `lease` is 16 fresh random
 * bytes; `nowMs` is this process's monotonic clock from before the call, so that the local end of the lease is never later
 * than the database's.
 *
 * What was picked is locked and there, so nothing is inserted: this is an update whose rows are found by their key whatever
 * the planner believes. One that knows a queue as empty reads all of its index instead, which took 0.4 s where an old
 * snapshot kept what was delivered (ADR 0021). A scan begins at the first lower bound of run_at that is written: IN_DUE, which
 * a locking statement keeps, comes after the position, or each claim reads the index of its queue from the front.
 *
 * Its commit does not wait for the disk: nothing is promised by a claim, and a database that crashes and forgets one
 * has what it held due as before. A claim of lines does wait, or two could send of a line at once (ADR 0024).
 */
export async function claim(
  pool: Statements,
  queues: readonly Wanted[],
  lease: Buffer,
  leaseMs: number,
  nowMs: number,
): Promise<Claimed> {
  const after = queues.map((q) => q.after ?? FRONT);
  const { rows } = await pool.query<ClaimRow>({
    name: 'claim',
    text: `WITH picked AS MATERIALIZED (
        SELECT p.* FROM unnest($1::text[], $2::uuid[], $3::int4[], $6::float8[], $7::uuid[])
          AS q (tenant_id, subscription_id, room, after_us, after_id)
        CROSS JOIN LATERAL (
          SELECT d.tenant_id, d.id, d.subscription_id, d.attempt_count, d.retry_base, d.round_at, d.run_at
          FROM deliveries d
          WHERE d.tenant_id = q.tenant_id AND d.subscription_id = q.subscription_id
            AND (d.run_at, d.id) > (timestamptz 'epoch' + q.after_us * interval '1 us', q.after_id)
            AND d.run_at <= now() AND ${IN_DUE}
          ORDER BY d.run_at, d.id LIMIT q.room FOR UPDATE SKIP LOCKED) p LIMIT ${MAX_CLAIM}),
      leased AS (
        INSERT INTO deliveries AS d (tenant_id, id, subscription_id, run_at, lease)
        SELECT tenant_id, id, subscription_id, now() + $4::interval, $5::uuid FROM picked
        ON CONFLICT (tenant_id, id) DO UPDATE SET run_at = excluded.run_at, lease = excluded.lease, is_leased = true)
      SELECT tenant_id, id, subscription_id, attempt_count, retry_base,
        extract(epoch FROM round_at)::float8 * 1000 AS round_ms, extract(epoch FROM run_at)::float8 * 1000 AS due_ms
      FROM picked CROSS JOIN set_config('synchronous_commit', 'off', true)`,
    values: [
      textArray(queues, (q) => q.tenantId),
      uuidArray(queues, (q) => idBytes(q.subscriptionId)),
      int4Array(queues, (q) => q.room),
      `${leaseMs} ms`,
      lease,
      // Microseconds, which is what the database counts in, are whole numbers and pass through a double as they are.
      float8Array(after, (position) => Math.round(position.dueAtMs * 1000)),
      uuidArray(after, (position) => position.idBytes),
    ],
  });
  if (rows.length === 0) return { deliveries: [], withoutEvent: [] };
  const claims = rows.map((row) => toClaim(row, lease, nowMs + leaseMs, false));
  claims.sort(compareClaims);
  return withEvents(pool, claims);
}

function toClaim(row: ClaimRow, lease: Buffer, leaseUntilMs: number, isOrdered: boolean): Claim {
  const bytes = Buffer.from(row.id.replaceAll('-', ''), 'hex');
  return {
    tenantId: row.tenant_id as TenantId,
    deliveryId: encodeId('dlv', bytes) as DeliveryId,
    idBytes: bytes,
    subscriptionId: idFromUuid('sub', row.subscription_id) as SubscriptionId,
    attemptCount: row.attempt_count,
    retryBase: row.retry_base,
    roundAtMs: row.round_ms ?? undefined,
    lease,
    leaseUntilMs,
    dueAtMs: row.due_ms,
    isOrdered,
    place: undefined,
  };
}

/** Lines that one claim looks at. */
const MAX_LINES_SEEN = 1_000;
/** No lease ends later than this (DISPATCH_LEASE_SECONDS): what is due later waits for something else. */
const LONGEST_LEASE = '1 hour 1 minute';

type LineRow = ClaimRow & {
  readonly order_key: string;
  readonly order_seq: string;
  readonly seen: number;
  readonly reached: string | null;
  readonly next_ms: number | null;
};

/**
 * Leases the heads of up to `room` lines of an ordered queue that are due, each with up to `perLine` - 1 of what is
 * behind it. Only what is first in its line in the database can be claimed, and the worker that claims it is the only one
 * that can claim what is behind it: so nobody else sends anything of a line while one of its deliveries is under way,
 * waits for its retry, or was claimed by a worker that died (until that lease ends).
 *
 * A loose index scan over deliveries_order finds the heads, from the line after `after`: one descent for each line,
 * however long it is. The lock on the head is what makes the claim good: a head that another worker claimed or finished
 * meanwhile is passed over with all that is behind it. A dead letter that its line skipped and that was replayed
 * (retry_base) is a head that was not there when what is behind it was claimed: it waits until nothing of its line is held.
 *
 * domain/lease.ts states the rule without SQL: claimableOfLine.
 */
export async function claimLines(
  pool: Statements,
  queue: QueueKey,
  which: { readonly after: string; readonly room: number; readonly perLine: number },
  lease: Buffer,
  leaseMs: number,
  nowMs: number,
): Promise<ClaimedLines> {
  const { rows } = await pool.query<LineRow>({
    name: 'claim-lines',
    text: `WITH RECURSIVE heads AS (
        (SELECT order_key, order_seq, id, run_at FROM deliveries
          WHERE tenant_id = $1 AND subscription_id = $2 AND order_key > $3 ORDER BY order_key, order_seq LIMIT 1)
        UNION ALL
        SELECT n.* FROM heads h CROSS JOIN LATERAL (
          SELECT d.order_key, d.order_seq, d.id, d.run_at FROM deliveries d
          WHERE d.tenant_id = $1 AND d.subscription_id = $2 AND d.order_key > h.order_key
          ORDER BY d.order_key, d.order_seq LIMIT 1) n),
      seen AS MATERIALIZED (SELECT * FROM heads LIMIT ${MAX_LINES_SEEN}),
      due AS MATERIALIZED (SELECT * FROM seen WHERE run_at <= now() ORDER BY order_key LIMIT $4),
      locked AS MATERIALIZED (
        SELECT d.order_key, d.order_seq FROM deliveries d JOIN due ON d.id = due.id
        WHERE d.tenant_id = $1 AND d.run_at <= now() AND (d.retry_base = 0 OR NOT EXISTS (
          SELECT FROM deliveries h WHERE h.tenant_id = $1 AND h.subscription_id = $2 AND h.order_key = d.order_key
            AND h.lease IS NOT NULL AND h.run_at > now() AND h.run_at < now() + interval '${LONGEST_LEASE}'))
        FOR UPDATE OF d SKIP LOCKED),
      behind AS MATERIALIZED (
        SELECT c.id, c.run_at, bool_and(c.run_at <= now()) OVER (PARTITION BY l.order_key ORDER BY c.order_seq) AS goes
        FROM locked l CROSS JOIN LATERAL (
          SELECT d.id, d.run_at, d.order_seq FROM deliveries d
          WHERE d.tenant_id = $1 AND d.subscription_id = $2 AND d.order_key = l.order_key
            AND d.order_seq >= l.order_seq ORDER BY d.order_seq LIMIT $5) c),
      claimed AS (
        UPDATE deliveries d SET run_at = now() + $6::interval, lease = $7::uuid, is_parked = false, is_leased = true
        FROM (SELECT * FROM behind WHERE goes LIMIT ${MAX_CLAIM}) b WHERE d.tenant_id = $1 AND d.id = b.id
        RETURNING d.tenant_id, d.id, d.subscription_id, d.attempt_count, d.retry_base,
          extract(epoch FROM d.round_at)::float8 * 1000 AS round_ms,
          extract(epoch FROM b.run_at)::float8 * 1000 AS due_ms, d.order_key, d.order_seq)
      SELECT c.*, 0 AS seen, NULL AS reached, NULL AS next_ms FROM claimed c
      UNION ALL
      SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, count(*)::int4, max(order_key),
        extract(epoch FROM min(run_at) FILTER (WHERE run_at > now() AND run_at < 'infinity') - now())::float8 * 1000
      FROM seen`,
    values: [
      queue.tenantId,
      uuidOf(queue.subscriptionId),
      which.after,
      which.room,
      which.perLine,
      `${leaseMs} ms`,
      lease,
    ],
  });
  const last = rows[rows.length - 1]!;
  const found = rows.slice(0, -1);
  found.sort((a, b) =>
    a.order_key !== b.order_key
      ? a.order_key < b.order_key
        ? -1
        : 1
      : Number(BigInt(a.order_seq) - BigInt(b.order_seq)),
  );
  const claims = found.map((row) => toClaim(row, lease, nowMs + leaseMs, true));
  const claimed = claims.length === 0 ? { deliveries: [], withoutEvent: [] } : await withEvents(pool, claims);
  const keys = new Map(claims.map((c, i) => [c.deliveryId, found[i]!.order_key]));
  const lines = new Map<string, ClaimedDelivery[]>();
  for (const delivery of claimed.deliveries) {
    const key = keys.get(delivery.deliveryId)!;
    const line = lines.get(key);
    if (line === undefined) lines.set(key, [delivery]);
    else line.push(delivery);
  }
  return {
    ...claimed,
    lines: [...lines.values()],
    reached: last.seen < MAX_LINES_SEEN ? '' : (last.reached ?? ''),
    dueInMs: last.next_ms ?? undefined,
  };
}

/** Rows at the front of a queue that a look for leftovers goes through. */
const MAX_LEFTOVERS_SEEN = 2_000;

/**
 * Leases due deliveries of an ordered queue that are in no line: published before the subscription asked for order.
 */
export async function claimLeftovers(
  pool: Statements,
  queue: QueueKey,
  room: number,
  lease: Buffer,
  leaseMs: number,
  nowMs: number,
): Promise<Claimed> {
  const { rows } = await pool.query<ClaimRow>({
    name: 'claim-leftovers',
    text: `WITH front AS MATERIALIZED (
        SELECT id, order_key FROM deliveries
        WHERE tenant_id = $1 AND subscription_id = $2 AND run_at <= now() AND ${IN_DUE}
        ORDER BY run_at, id LIMIT ${MAX_LEFTOVERS_SEEN}),
      picked AS MATERIALIZED (
        SELECT d.id, d.run_at FROM deliveries d JOIN (SELECT id FROM front WHERE order_key IS NULL LIMIT $3) f
          ON d.id = f.id
        WHERE d.tenant_id = $1 AND d.run_at <= now() FOR UPDATE OF d SKIP LOCKED)
      UPDATE deliveries d SET run_at = now() + $4::interval, lease = $5::uuid, is_leased = true
      FROM picked p WHERE d.tenant_id = $1 AND d.id = p.id
      RETURNING d.tenant_id, d.id, d.subscription_id, d.attempt_count, d.retry_base,
        extract(epoch FROM d.round_at)::float8 * 1000 AS round_ms, extract(epoch FROM p.run_at)::float8 * 1000 AS due_ms`,
    values: [queue.tenantId, uuidOf(queue.subscriptionId), room, `${leaseMs} ms`, lease],
  });
  if (rows.length === 0) return { deliveries: [], withoutEvent: [] };
  return withEvents(
    pool,
    rows.map((row) => toClaim(row, lease, nowMs + leaseMs, false)),
  );
}

type WantedEvent = { readonly tenantId: TenantId; readonly bytes: Buffer; readonly eventId: EventId };

/** Reads each distinct event once, however many of its deliveries were claimed. */
async function withEvents(pool: Statements, claims: readonly Claim[]): Promise<Claimed> {
  const wanted = new Map<string, WantedEvent>();
  const keyOf = (c: Claim) => `${c.tenantId}/${c.idBytes.toString('latin1', 0, 13)}`;
  for (const c of claims) {
    const key = keyOf(c);
    if (wanted.has(key)) continue;
    const bytes = eventIdOf(c.idBytes);
    wanted.set(key, { tenantId: c.tenantId, bytes, eventId: encodeId('evt', bytes) as EventId });
  }
  const list = [...wanted.values()];
  const rows = await readEvents(pool, list);
  const found = new Map<string, EventContent>();
  for (const [n, json, hex, type, contentType, source, subject] of rows) {
    const { tenantId, bytes, eventId } = list[Number(n) - 1]!;
    const content = {
      eventId,
      type,
      contentType: contentType ?? 'application/json',
      payload: json ?? hex!,
      source: source ?? '',
      subject: subject ?? '',
    };
    found.set(`${tenantId}/${bytes.toString('latin1', 0, 13)}`, content);
  }
  const deliveries: ClaimedDelivery[] = [];
  const withoutEvent: Claim[] = [];
  for (const c of claims) {
    const event = found.get(keyOf(c));
    if (event === undefined) withoutEvent.push(c);
    else deliveries.push({ ...c, event });
  }
  return { deliveries, withoutEvent };
}

type EventRow = readonly [
  /** Which it is of those that were asked for, from 1. */
  n: string,
  /** One of the two is its body; undefined: it is JSON and could not be read so. */
  json: Buffer | null | undefined,
  hex: Buffer | null,
  type: string,
  contentType: string | null,
  source: string | null,
  subject: string | null,
];

/**
 * JSON comes in Postgres's binary format, in which it is what is stored: nothing is converted, measured or copied for the wire,
 * which took PostgreSQL as long as all else that it does for a large event. dispatch stores no JSON that is not UTF-8. If
 * somebody else did, or U+FFFD is in a body, that one is read again in hexadecimal, at three times the cost.
 */
async function readEvents(pool: Statements, list: readonly WantedEvent[]): Promise<EventRow[]> {
  const json = 'CASE WHEN e.content_type IS NULL THEN e.payload END';
  const hex = `CASE WHEN e.content_type IS NULL THEN NULL ELSE ${HEX} END`;
  const { rows } = await pool.query<EventRow>(eventsStatement('claimed-events', json, hex, list));
  const unread = rows.filter(([, bytes]) => bytes === undefined);
  if (unread.length === 0) return rows;
  const again = unread.map(([n]) => list[Number(n) - 1]!);
  const read = await pool.query<EventRow>(eventsStatement('claimed-bytes', 'NULL', HEX, again));
  const readAgain = read.rows.map(([n, ...row]): EventRow => [unread[Number(n) - 1]![0], ...row]);
  return [...rows.filter(([, bytes]) => bytes !== undefined), ...readAgain];
}

const HEX = "encode(e.payload, 'hex')::varchar";

const eventsStatement = (name: string, json: string, hex: string, list: readonly WantedEvent[]) => ({
  name,
  text: `SELECT w.n::text, ${json}, ${hex}, e.type, e.content_type, e.source, e.subject
    FROM unnest($1::text[], $2::uuid[]) WITH ORDINALITY AS w (tenant_id, id, n)
    CROSS JOIN LATERAL (SELECT type, content_type, payload, source, subject FROM events e
      WHERE e.tenant_id = w.tenant_id AND e.id = w.id OFFSET 0) e`,
  values: [textArray(list, (e) => e.tenantId), uuidArray(list, (e) => e.bytes)],
  ...IN_BINARY,
});
