// Reads deliveries wherever they are (hot, given up, closed, or done and only in the history), and the two things a
// tenant may do to a pending one. Tables: deliveries, dead_letters, closed_deliveries, attempts. Runs as
// dispatch_tenant. docs/delivery-lifecycle.md has the states.
import { z } from 'zod';
import type { AttemptTiming } from '../domain/delivery.ts';
import { DispatchError, notFound } from '../domain/errors.ts';
import {
  type DeliveryId,
  deliveryIdOf,
  type EventId,
  encodeId,
  eventIdOf,
  idBytes,
  idFromUuid,
  MAX_ORDINAL,
  type SubscriptionId,
  type TenantId,
  timeOfId,
  uuidOf,
} from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import { type Database, sql, type TenantTransaction } from './database.ts';
import { type ScannedPage, scanPage } from './scan-page.ts';

export type DeliveryState =
  | 'pending'
  | 'in_flight'
  | 'succeeded'
  | 'dead_lettered'
  | 'cancelled'
  | 'discarded';

/** A delivery as a tenant sees it. Times in ms since 1970. */
export type StoredDelivery = {
  readonly tenantId: TenantId;
  readonly deliveryId: DeliveryId;
  readonly uuid: string;
  readonly eventId: EventId;
  readonly subscriptionId: SubscriptionId;
  readonly state: DeliveryState;
  readonly attemptCount: number;
  readonly nextAttemptAtMs: number | undefined;
  readonly createdAtMs: number;
  readonly finishedAtMs: number | undefined;
};

const deliveryRow = z.object({
  id: z.string(),
  subscription_id: z.string(),
  state: z.enum(['pending', 'in_flight', 'succeeded', 'dead_lettered', 'cancelled', 'discarded']),
  attempt_count: z.number(),
  next_at: z.number().nullable(),
  finished_at: z.number().nullable(),
});

function toDelivery(tenantId: TenantId, row: z.infer<typeof deliveryRow>): StoredDelivery {
  const bytes = Buffer.from(row.id.replaceAll('-', ''), 'hex');
  return {
    tenantId,
    deliveryId: encodeId('dlv', bytes) as DeliveryId,
    uuid: row.id,
    eventId: encodeId('evt', eventIdOf(bytes)) as EventId,
    subscriptionId: idFromUuid('sub', row.subscription_id) as SubscriptionId,
    state: row.state,
    attemptCount: row.attempt_count,
    nextAttemptAtMs: row.next_at ?? undefined,
    createdAtMs: timeOfId(bytes),
    finishedAtMs: row.finished_at ?? undefined,
  };
}

/** Deliveries with `first` ≥ id > … ≥ `last`, newest first, from all four places. */
function readRange(tx: TenantTransaction, tenantId: TenantId, below: string, from: string, limit: number) {
  const range = (column: 'id' | 'delivery_id') => {
    const id = sql.identifier([column]);
    return sql.fragment`tenant_id = ${tenantId} AND ${id} < ${below} AND ${id} >= ${from}`;
  };
  return tx.any(sql.type(deliveryRow)`
    SELECT * FROM (
      (SELECT id, subscription_id,
          CASE WHEN lease IS NOT NULL AND run_at > now() THEN 'in_flight' ELSE 'pending' END AS state,
          attempt_count, CASE WHEN lease IS NULL OR run_at <= now() THEN run_at END AS next_at,
          NULL::timestamptz AS finished_at
        FROM deliveries WHERE ${range('id')} AND run_at < 'infinity' ORDER BY id DESC LIMIT ${limit})
      UNION ALL
      (SELECT id, subscription_id, 'dead_lettered', attempt_count, NULL, dead_at
        FROM dead_letters WHERE ${range('id')} ORDER BY id DESC LIMIT ${limit})
      UNION ALL
      (SELECT id, subscription_id, state, attempt_count, NULL, closed_at
        FROM closed_deliveries WHERE ${range('id')} ORDER BY id DESC LIMIT ${limit})
      UNION ALL
      (SELECT delivery_id, subscription_id, 'succeeded', attempt, NULL, recorded_at
        FROM attempts WHERE ${range('delivery_id')} AND outcome = 'succeeded' ORDER BY delivery_id DESC LIMIT ${limit})
    ) AS found ORDER BY id DESC LIMIT ${limit}`);
}

/** The id just after a uuid; the last one for the last, which is no UUIDv7 and so nobody's. */
function uuidAfter(uuid: string): string {
  const n = BigInt(`0x${uuid.replaceAll('-', '')}`) + 1n;
  const h = n
    .toString(16)
    .padStart(32, '0')
    .replace(/^10{32}$/, 'f'.repeat(32));
  return `${h.slice(0, 8)}-${h.slice(8, 12)}-${h.slice(12, 16)}-${h.slice(16, 20)}-${h.slice(20)}`;
}

/** Reads one. NOT_FOUND if it is not this tenant's. */
export async function getDelivery(
  db: Database,
  tenantId: TenantId,
  deliveryId: DeliveryId,
): Promise<StoredDelivery> {
  return db.inTenant(tenantId, (tx) => readDelivery(tx, tenantId, deliveryId));
}

async function readDelivery(
  tx: TenantTransaction,
  tenantId: TenantId,
  deliveryId: DeliveryId,
): Promise<StoredDelivery> {
  const uuid = uuidOf(deliveryId);
  const [row] = await readRange(tx, tenantId, uuidAfter(uuid), uuid, 1);
  if (row === undefined) throw notFound('delivery', deliveryId);
  return toDelivery(tenantId, row);
}

/** Which deliveries. */
export type DeliveryFilter = {
  readonly eventId: EventId | undefined;
  readonly subscriptionId: SubscriptionId | undefined;
  readonly state: DeliveryState | undefined;
};

/** A page, newest first. */
export async function listDeliveries(
  db: Database,
  tenantId: TenantId,
  page: Page,
  filter: DeliveryFilter,
): Promise<ScannedPage<StoredDelivery>> {
  const { eventId, subscriptionId, state } = filter;
  let from = '00000000-0000-0000-0000-000000000000';
  let below = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  if (eventId !== undefined) {
    const event = idBytes(eventId);
    from = uuidOf(encodeId('dlv', deliveryIdOf(event, 1)));
    below = uuidAfter(uuidOf(encodeId('dlv', deliveryIdOf(event, MAX_ORDINAL))));
  }
  const filtered = subscriptionId !== undefined || state !== undefined;
  const matches = (d: StoredDelivery) =>
    (subscriptionId === undefined || d.subscriptionId === subscriptionId) &&
    (state === undefined || d.state === state);
  return db.inTenant(tenantId, (tx) =>
    scanPage(
      page,
      async (after, limit) => {
        const rows = await readRange(tx, tenantId, after ?? below, from, limit);
        return rows.map((row) => toDelivery(tenantId, row));
      },
      (delivery) => delivery.uuid,
      filtered ? matches : undefined,
    ),
  );
}

/** One HTTP try as it is stored. */
export type StoredAttempt = {
  readonly attempt: number;
  readonly outcome: 'succeeded' | 'retry_scheduled' | 'dead_lettered';
  readonly status: number;
  readonly errorClass: string;
  readonly errorMessage: string;
  readonly startedAtMs: number;
  readonly durationUs: number;
  readonly responseBody: Buffer;
  readonly nextAttemptAtMs: number | undefined;
  readonly timing: AttemptTiming;
  readonly responseHeaders: Readonly<Record<string, string>>;
  /** 0: it was no batch. */
  readonly batchSize: number;
};

const attemptRow = z.object({
  attempt: z.number(),
  outcome: z.enum(['succeeded', 'retry_scheduled', 'dead_lettered']),
  status: z.number().nullable(),
  error_class: z.string().nullable(),
  error_message: z.string().nullable(),
  started_at: z.number(),
  duration_us: z.number(),
  next_attempt_at: z.number().nullable(),
  response_body: z.instanceof(Buffer).nullable(),
  dns_us: z.number().nullable(),
  connect_us: z.number().nullable(),
  tls_us: z.number().nullable(),
  first_byte_us: z.number().nullable(),
  response_headers: z.string().nullable(),
  batch_size: z.number().nullable(),
});
const headersSchema = z.record(z.string(), z.string());

/** One more than a page of a delivery's attempts after the `after`-th. NOT_FOUND for an unknown delivery. */
export async function listAttempts(
  db: Database,
  tenantId: TenantId,
  deliveryId: DeliveryId,
  after: number,
  size: number,
): Promise<StoredAttempt[]> {
  const rows = await db.inTenant(tenantId, async (tx) => {
    await readDelivery(tx, tenantId, deliveryId);
    return tx.any(sql.type(attemptRow)`
      SELECT attempt, outcome, status, error_class, error_message, started_at, duration_us, next_attempt_at, response_body,
        dns_us, connect_us, tls_us, first_byte_us, response_headers, batch_size
      FROM attempts WHERE tenant_id = ${tenantId} AND delivery_id = ${uuidOf(deliveryId)} AND attempt > ${after}
      ORDER BY attempt LIMIT ${size + 1}`);
  });
  return rows.map((row) => ({
    attempt: row.attempt,
    outcome: row.outcome,
    status: row.status ?? 0,
    errorClass: row.error_class ?? '',
    errorMessage: row.error_message ?? '',
    startedAtMs: row.started_at,
    durationUs: row.duration_us,
    responseBody: row.response_body ?? Buffer.alloc(0),
    nextAttemptAtMs: row.next_attempt_at ?? undefined,
    timing: {
      dnsUs: row.dns_us ?? undefined,
      connectUs: row.connect_us ?? undefined,
      tlsUs: row.tls_us ?? undefined,
      firstByteUs: row.first_byte_us ?? undefined,
    },
    responseHeaders: headersSchema.parse(JSON.parse(row.response_headers ?? '{}')),
    batchSize: row.batch_size ?? 0,
  }));
}

/** Makes a pending delivery due now. One that is in flight is left alone. FAILED_PRECONDITION if it is finished. */
export async function retryDelivery(
  db: Database,
  tenantId: TenantId,
  deliveryId: DeliveryId,
): Promise<StoredDelivery> {
  return db.inTenant(tenantId, async (tx) => {
    await tx.query(sql.typeAlias('void')`
      UPDATE deliveries SET run_at = now(), is_parked = false
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(deliveryId)} AND lease IS NULL AND run_at > now()
        AND run_at < 'infinity'`);
    const delivery = await readDelivery(tx, tenantId, deliveryId);
    assertUnfinished(delivery);
    return delivery;
  });
}

/**
 * Ends a pending delivery. One that is in flight loses its lease: an attempt that is on the wire is not recalled,
 * and what comes of it is not recorded. FAILED_PRECONDITION if it is finished otherwise.
 */
export async function cancelDelivery(
  db: Database,
  tenantId: TenantId,
  deliveryId: DeliveryId,
): Promise<StoredDelivery> {
  return db.inTenant(tenantId, async (tx) => {
    await tx.query(sql.typeAlias('void')`
      WITH gone AS (
        DELETE FROM deliveries
        WHERE tenant_id = ${tenantId} AND id = ${uuidOf(deliveryId)} AND run_at < 'infinity'
        RETURNING tenant_id, id, subscription_id, attempt_count)
      INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
      SELECT tenant_id, id, subscription_id, 'cancelled', attempt_count FROM gone`);
    const delivery = await readDelivery(tx, tenantId, deliveryId);
    if (delivery.state !== 'cancelled') assertUnfinished(delivery);
    return delivery;
  });
}

/** Most deliveries that one call cancels. */
const MAX_CANCEL = 1_000;

/** Ends up to 1,000 pending deliveries of a subscription, oldest first. Returns how many. */
export async function cancelDeliveries(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
): Promise<number> {
  // An index for each.
  const first = (inIndex: ReturnType<typeof sql.fragment>) => sql.fragment`SELECT id FROM deliveries
    WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)} AND run_at < 'infinity' AND ${inIndex}
    ORDER BY run_at LIMIT ${MAX_CANCEL} FOR UPDATE SKIP LOCKED`;
  const result = await db.inTenant(tenantId, async (tx) => {
    const known = await tx.exists(sql.typeAlias('any')`
      SELECT FROM subscriptions
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)} AND deleted_at IS NULL`);
    if (!known) throw notFound('subscription', subscriptionId);
    return tx.query(sql.typeAlias('void')`
      WITH due AS MATERIALIZED (${first(sql.fragment`NOT is_parked AND NOT is_leased`)}),
      parked AS MATERIALIZED (${first(sql.fragment`is_parked`)}),
      leased AS MATERIALIZED (${first(sql.fragment`is_leased`)}),
      gone AS (
        DELETE FROM deliveries WHERE tenant_id = ${tenantId} AND id IN (
          SELECT id FROM due UNION ALL SELECT id FROM parked UNION ALL SELECT id FROM leased LIMIT ${MAX_CANCEL})
        RETURNING tenant_id, id, subscription_id, attempt_count)
      INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
      SELECT tenant_id, id, subscription_id, 'cancelled', attempt_count FROM gone`);
  });
  return result.rowCount;
}

function assertUnfinished(delivery: StoredDelivery): void {
  if (delivery.state === 'pending' || delivery.state === 'in_flight') return;
  const state = delivery.state.replace('_', '-');
  const hint = delivery.state === 'dead_lettered' ? '; use DeadLetterService.ReplayDeadLetter' : '';
  throw new DispatchError('FAILED_PRECONDITION', `delivery ${delivery.deliveryId} is ${state}${hint}`, {
    reason: 'DELIVERY_FINISHED',
  });
}
