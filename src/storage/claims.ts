// Claims: how a worker finds due deliveries of many tenants and leases them. Runs as dispatch_engine.
// A claim pushes run_at to the end of the lease and writes a new token: there is no status and no reaper, an expired
// lease is simply due again. This file and ingest.ts hold the only hot statements that span tenants.
import type { Pool } from 'pg';
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
import { int4Array, textArray, uuidArray } from './binary-arrays.ts';

/** A subscription's queue in the database. */
export type QueueKey = { readonly tenantId: TenantId; readonly subscriptionId: SubscriptionId };

/** A queue that holds something, and when its first delivery is due, in ms from now (≤ 0: due). */
export type QueueHead = QueueKey & { readonly dueInMs: number };

/** Where a walk over the queues stands. */
export type WalkPosition = { readonly tenantId: string; readonly subscriptionUuid: string };

export const WALK_START: WalkPosition = {
  tenantId: '',
  subscriptionUuid: '00000000-0000-0000-0000-000000000000',
};

/**
 * Walks the queues in key order from a position and returns up to `limit` heads: a loose index scan, which costs one
 * descent of deliveries_due for each queue, however long it is.
 */
export async function walkQueues(pool: Pool, from: WalkPosition, limit: number): Promise<QueueHead[]> {
  const { rows } = await pool.query<{ tenant_id: string; subscription_id: string; due_in_ms: number }>({
    name: 'walk-queues',
    text: `WITH RECURSIVE walk AS (
        (SELECT tenant_id, subscription_id, run_at FROM deliveries
          WHERE (tenant_id, subscription_id) > ($1::text, $2::uuid) ORDER BY tenant_id, subscription_id, run_at LIMIT 1)
        UNION ALL
        SELECT n.* FROM walk w CROSS JOIN LATERAL (
          SELECT d.tenant_id, d.subscription_id, d.run_at FROM deliveries d
          WHERE (d.tenant_id, d.subscription_id) > (w.tenant_id, w.subscription_id)
          ORDER BY d.tenant_id, d.subscription_id, d.run_at LIMIT 1) n)
      SELECT tenant_id, subscription_id, extract(epoch FROM run_at - now())::float8 * 1000 AS due_in_ms
      FROM walk LIMIT $3`,
    values: [from.tenantId, from.subscriptionUuid, limit],
  });
  return rows.map((row) => ({
    tenantId: row.tenant_id as TenantId,
    subscriptionId: idFromUuid('sub', row.subscription_id) as SubscriptionId,
    dueInMs: row.due_in_ms,
  }));
}

/** The position after a queue. */
export function positionAfter(queue: QueueKey): WalkPosition {
  return { tenantId: queue.tenantId, subscriptionUuid: uuidOf(queue.subscriptionId) };
}

/** Whether walkQueues returned the last queue there is. */
export const isLastPage = (heads: readonly QueueHead[], limit: number): boolean => heads.length < limit;

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

/**
 * Most deliveries of one claim. Also tells the planner how few rows to look up by key: without it, it took a tenth of the
 * queue and joined by hash, 40 ms beside a backlog of 100,000 where 0.3 ms do.
 */
export const MAX_CLAIM = 400;

/**
 * Leases up to `room` (at most MAX_CLAIM in all) due deliveries of each queue for `leaseMs`, oldest due first, and reads their events. Rows that
 * another worker is claiming are passed over. `lease` is 16 fresh random bytes; `nowMs` is this process's monotonic
 * clock from before the call, so that the local end of the lease is never later than the database's.
 */
export async function claim(
  pool: Pool,
  queues: readonly (QueueKey & { readonly room: number })[],
  lease: Buffer,
  leaseMs: number,
  nowMs: number,
): Promise<Claimed> {
  const { rows } = await pool.query<ClaimRow>({
    name: 'claim',
    text: `WITH picked AS MATERIALIZED (
        SELECT p.* FROM unnest($1::text[], $2::uuid[], $3::int4[]) AS q (tenant_id, subscription_id, room)
        CROSS JOIN LATERAL (
          SELECT d.tenant_id, d.id, d.run_at FROM deliveries d
          WHERE d.tenant_id = q.tenant_id AND d.subscription_id = q.subscription_id AND d.run_at <= now()
          ORDER BY d.run_at, d.id LIMIT q.room FOR UPDATE SKIP LOCKED) p LIMIT ${MAX_CLAIM})
      UPDATE deliveries d SET run_at = now() + $4::interval, lease = $5::uuid
      FROM picked p WHERE d.tenant_id = p.tenant_id AND d.id = p.id
      RETURNING d.tenant_id, d.id, d.subscription_id, d.attempt_count, d.retry_base,
        extract(epoch FROM d.round_at)::float8 * 1000 AS round_ms, extract(epoch FROM p.run_at)::float8 * 1000 AS due_ms`,
    values: [
      textArray(queues.map((q) => q.tenantId)),
      uuidArray(queues.map((q) => idBytes(q.subscriptionId))),
      int4Array(queues.map((q) => q.room)),
      `${leaseMs} ms`,
      lease,
    ],
  });
  if (rows.length === 0) return { deliveries: [], withoutEvent: [] };
  const claims = rows.map((row): Claim => {
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
      leaseUntilMs: nowMs + leaseMs,
      dueAtMs: row.due_ms,
    };
  });
  claims.sort((a, b) => a.dueAtMs - b.dueAtMs || Buffer.compare(a.idBytes, b.idBytes));
  return withEvents(pool, claims);
}

/** Reads each distinct event once, however many of its deliveries were claimed. */
async function withEvents(pool: Pool, claims: readonly Claim[]): Promise<Claimed> {
  const wanted = new Map<string, { tenantId: TenantId; bytes: Buffer; eventId: EventId }>();
  const keyOf = (c: Claim) => `${c.tenantId}/${c.idBytes.toString('latin1', 0, 13)}`;
  for (const c of claims) {
    const key = keyOf(c);
    if (wanted.has(key)) continue;
    const bytes = eventIdOf(c.idBytes);
    wanted.set(key, { tenantId: c.tenantId, bytes, eventId: encodeId('evt', bytes) as EventId });
  }
  const list = [...wanted.values()];
  const { rows } = await pool.query<{
    n: string;
    type: string;
    content_type: string | null;
    payload: Buffer;
  }>({
    name: 'claimed-events',
    text: `SELECT w.n, e.type, e.content_type, e.payload
      FROM unnest($1::text[], $2::uuid[]) WITH ORDINALITY AS w (tenant_id, id, n)
      CROSS JOIN LATERAL (SELECT type, content_type, payload FROM events e
        WHERE e.tenant_id = w.tenant_id AND e.id = w.id OFFSET 0) e`,
    values: [textArray(list.map((e) => e.tenantId)), uuidArray(list.map((e) => e.bytes))],
  });
  const found = new Map<string, EventContent>();
  for (const row of rows) {
    const { tenantId, bytes, eventId } = list[Number(row.n) - 1]!;
    const content = {
      eventId,
      type: row.type,
      contentType: row.content_type ?? 'application/json',
      payload: row.payload,
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
