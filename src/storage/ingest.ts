// The statement that stores events: many tenants, one round trip, one fsynced transaction (promise P1).
// Runs as dispatch_engine. Tables: tenants (read), idempotency_keys, events, deliveries, usage; sequence delivery_order.
import { fingerprintOf, IDEMPOTENCY_HOURS, type NewEvent } from '../domain/event.ts';
import { type EventId, encodeId, idFromUuid, type TenantId } from '../domain/ids.ts';
import {
  boolArray,
  byteaArray,
  float8Array,
  int4Array,
  int8Array,
  textArray,
  uuidArray,
} from './binary-arrays.ts';
import type { HotPool, Statements } from './hot-pool.ts';
import type { BinaryParameter } from './message-writer.ts';
import { isParkedAt } from './parking.ts';

/** An event of a batch, with the deliveries that matching gave it. */
export type IngestEvent = {
  readonly event: NewEvent;
  /** 16 bytes. */
  readonly eventId: Buffer;
  readonly deliveries: readonly IngestDelivery[];
};

export type IngestDelivery = {
  /** 16 bytes. */
  readonly deliveryId: Buffer;
  /** 16 bytes. */
  readonly subscriptionId: Buffer;
  /** Stored under this instance's lease: the instance delivers it right after the commit. */
  readonly owned: boolean;
  /** The line it waits in; undefined: none. Lines are in the order of the batch, behind what was stored before. */
  readonly orderKey: string | undefined;
};

export type IngestBatch = {
  readonly tenants: ReadonlyMap<TenantId, IngestTenant>;
  readonly events: readonly IngestEvent[];
  /** 16 bytes; written to owned deliveries. */
  readonly lease: Buffer;
  readonly leaseMs: number;
  /** Where usage is counted: no two commits that run at once have the same. */
  readonly slot: number;
  /** Events that other commits may have under way when a quota is looked at. */
  readonly margin: number;
  /** Whether it counts as usage: dispatch's own events do not. */
  readonly isUsage: boolean;
  /** A tenant is so far from the end of its quotas that they need not be looked at for a second. */
  readonly onFar: (tenantId: TenantId, version: number) => void;
};

/** A tenant of a batch. */
export type IngestTenant = {
  /** The configuration version that matching was done with. */
  readonly version: number;
  /** 0: no limit. */
  readonly eventsPerDay: number;
  readonly eventsPerMonth: number;
};

/** What became of one event. */
export type IngestResult =
  | { readonly kind: 'stored' }
  /** The tenant's configuration changed, or it is not active: match again with a fresh one. Nothing was stored. */
  | { readonly kind: 'stale' }
  /** The idempotency key is taken. Nothing was stored. */
  | {
      readonly kind: 'duplicate';
      readonly eventId: EventId;
      readonly deliveryCount: number;
      readonly same: boolean;
    }
  /** The idempotency key was taken and has gone since: try again. Nothing was stored. */
  | { readonly kind: 'retry' }
  /** The tenant comes near the end of a quota: see ingestNearLimit(). Nothing was stored. */
  | { readonly kind: 'near' }
  /** The quota is used up. Nothing was stored. */
  | {
      readonly kind: 'over';
      readonly field: 'eventsPerDay' | 'eventsPerMonth';
      readonly limit: number;
      readonly retryAfterMs: number;
    };

/**
 * Stores a batch. Results come in the order of the events. Within a batch no idempotency key may occur twice.
 * Throws only if the whole batch failed; then nothing was stored, or, if the connection broke at COMMIT, all of it.
 */
export async function ingest(pool: Statements, batch: IngestBatch): Promise<IngestResult[]> {
  return store(pool, batch, [...batch.tenants.values()].some(isCounted));
}

async function store(pool: Statements, batch: IngestBatch, limited: boolean): Promise<IngestResult[]> {
  const keyed = batch.events.filter((e) => e.event.idempotencyKey !== '').sort(byKey);
  // A tenant's beside each other, in their order: in each index the next row then goes to the page of the last one.
  const events = [...Map.groupBy(batch.events, (e) => e.event.tenantId).values()].flat();
  const deliveries: IngestDelivery[] = [];
  const delivered: NewEvent[] = []; // of each of them, the event
  for (const e of events) {
    for (const delivery of e.deliveries) {
      deliveries.push(delivery);
      delivered.push(e.event);
    }
  }
  const values = [
    ...tenantColumns(batch),
    ...eventColumns(events),
    ...deliveryColumns(deliveries, delivered),
    batch.lease,
    `${batch.leaseMs} ms`,
    batch.slot,
    ...countColumns(batch),
    ...(limited ? limitColumns(batch) : []),
    ...(keyed.length === 0 ? [] : keyColumns(keyed)),
  ];
  const first = values.length + 1;
  const isOrdered =
    deliveries.some((d) => d.orderKey !== undefined) || events.some((e) => e.event.orderingKey !== '');
  if (isOrdered) {
    values.push(textArray(events, ({ event: { orderingKey } }) => (orderingKey === '' ? null : orderingKey)));
    values.push(textArray(deliveries, (d) => d.orderKey ?? null));
  }
  const name = `ingest${limited ? '-limited' : ''}${keyed.length === 0 ? '' : '-keyed'}${isOrdered ? '-ordered' : ''}`;
  const text = statement(limited, keyed.length > 0, isOrdered ? first : undefined);
  const { rows } = await pool.query<Row>({ name, text, values });
  const results = await keyedResults(pool, batch, keyed, rows);
  if (limited) {
    for (const row of rows) {
      const tenant = row.is_far ? batch.tenants.get(row.tenant_id as TenantId) : undefined;
      if (tenant !== undefined) batch.onFar(row.tenant_id as TenantId, tenant.version);
    }
  }
  const near = new Set(rows.filter((row) => row.near).map((row) => row.tenant_id));
  if (near.size === 0) return results;
  return results.map((result, i) => (near.has(batch.events[i]!.event.tenantId) ? { kind: 'near' } : result));
}

/**
 * Stores events of one tenant that comes near the end of its day's or month's quota: one transaction at a time, so
 * that as many are stored as the quota has left, and not one more. The others are `over`; repeats of a key are
 * answered as ever.
 */
export function ingestNearLimit(pool: HotPool, batch: IngestBatch): Promise<IngestResult[]> {
  const [tenantId, tenant] = [...batch.tenants][0]!;
  return pool.transaction(async (tx) => {
    await tx.query("SELECT pg_advisory_xact_lock(hashtext('dispatch.usage'), hashtext($1))", [tenantId]);
    const left = await readLeft(tx, tenantId, tenant);
    const keyed = batch.events.filter((e) => e.event.idempotencyKey !== '');
    const known = await readOwners(tx, keyed);
    const fresh = batch.events.filter((e) => (known.get(e)?.kind ?? 'retry') === 'retry');
    const events = fresh.slice(0, Math.max(0, left.count));
    const stored = events.length === 0 ? [] : await store(tx, { ...batch, events }, false);
    const of = new Map<IngestEvent, IngestResult>(events.map((e, i) => [e, stored[i]!]));
    return batch.events.map((e) => of.get(e) ?? (fresh.includes(e) ? left.over : known.get(e)!));
  });
}

type Left = { readonly count: number; readonly over: Extract<IngestResult, { kind: 'over' }> };

async function readLeft(
  client: Statements,
  tenantId: TenantId,
  { eventsPerDay, eventsPerMonth }: IngestTenant,
): Promise<Left> {
  const { rows } = await client.query<{ day: string; month: string; day_ms: number; month_ms: number }>({
    name: 'usage-left',
    text: `SELECT coalesce(sum(events) FILTER (WHERE hour >= ${DAY}), 0) AS day, coalesce(sum(events), 0) AS month,
        extract(epoch FROM ${DAY} + interval '1 day' - now())::float8 * 1000 AS day_ms,
        extract(epoch FROM ${MONTH} + interval '1 month' - now())::float8 * 1000 AS month_ms
      FROM usage WHERE tenant_id = $1 AND hour >= ${MONTH}`,
    values: [tenantId],
  });
  const row = rows[0]!;
  const ofDay = eventsPerDay === 0 ? Number.POSITIVE_INFINITY : eventsPerDay - Number(row.day);
  const ofMonth = eventsPerMonth === 0 ? Number.POSITIVE_INFINITY : eventsPerMonth - Number(row.month);
  const over =
    ofMonth <= ofDay
      ? { field: 'eventsPerMonth' as const, limit: eventsPerMonth, retryAfterMs: row.month_ms }
      : { field: 'eventsPerDay' as const, limit: eventsPerDay, retryAfterMs: row.day_ms };
  return { count: Math.min(ofDay, ofMonth), over: { kind: 'over', ...over } };
}

const isCounted = (tenant: IngestTenant) => tenant.eventsPerDay > 0 || tenant.eventsPerMonth > 0;

type Row = {
  readonly tenant_id: string;
  readonly taken: string | null;
  readonly near: boolean;
  readonly is_far: boolean;
};

/** More than all instances together can store in a second: so far from its end a quota is looked at once a second. */
const FAR = 5_000_000;
const DAY = "date_trunc('day', now(), 'UTC')";
const MONTH = "date_trunc('month', now(), 'UTC')";

// `known` holds the tenants whose configuration is still the one that was matched with: a subscription that was
// created, on any instance, before this statement began is never missed.
const KNOWN = `known AS MATERIALIZED (
    SELECT t.tenant_id FROM unnest($1::text[], $2::int8[]) AS k (tenant_id, version)
    JOIN tenants t ON t.tenant_id = k.tenant_id AND t.config_version = k.version AND t.state = 'active')`;
// The same less those that might go over a quota of events: they go one by one, see ingestNearLimit(). Commits that
// run beside each other do not see each other's events: the margin ($26) keeps room for all that can be under way.
const KNOWN_AND_FAR = `current AS MATERIALIZED (
    SELECT t.tenant_id, k.events, k.per_day, k.per_month
    FROM unnest($1::text[], $2::int8[], $21::int8[], $24::int8[], $25::int8[])
      AS k (tenant_id, version, events, per_day, per_month)
    JOIN tenants t ON t.tenant_id = k.tenant_id AND t.config_version = k.version AND t.state = 'active'),
  known AS MATERIALIZED (
    SELECT c.tenant_id, (c.per_day = 0 OR u.day + ${FAR} <= c.per_day)
      AND (c.per_month = 0 OR u.month + ${FAR} <= c.per_month) AS is_far
    FROM current c
    LEFT JOIN LATERAL (
      SELECT coalesce(sum(u.events) FILTER (WHERE u.hour >= ${DAY}), 0) AS day, coalesce(sum(u.events), 0) AS month
      FROM usage u WHERE u.tenant_id = c.tenant_id AND u.hour >= ${MONTH} AND (c.per_day > 0 OR c.per_month > 0)) u
      ON true
    WHERE (c.per_day = 0 OR u.day + c.events + $26 <= c.per_day)
      AND (c.per_month = 0 OR u.month + c.events + $26 <= c.per_month))`;
// `ordered`: the number of the parameter with the events' ordering keys, before that with the deliveries' lines.
const storePart = (ordered: number | undefined) => `INSERT INTO events
      (tenant_id, id, type, payload, content_type, source, subject, idempotency_key, metadata, deliver_after
      ${ordered === undefined ? '' : ', ordering_key'})
    SELECT e.tenant_id, e.id, e.type, e.payload, e.content_type, e.source, e.subject, e.key, e.metadata::jsonb,
      to_timestamp(e.after / 1000) ${ordered === undefined ? '' : ', e.ordering_key'}
    FROM unnest($3::text[], $4::uuid[], $5::text[], $6::bytea[], $7::text[], $8::text[], $9::text[], $10::text[],
      $11::text[], $12::float8[] ${ordered === undefined ? '' : `, $${ordered}::text[]`})
      AS e (tenant_id, id, type, payload, content_type, source, subject, key, metadata, after
        ${ordered === undefined ? '' : ', ordering_key'})`;
// One number of the sequence for the whole statement, and places behind it in the order of the batch.
const queuePart = (ordered: number | undefined) => `INSERT INTO deliveries
      (tenant_id, id, subscription_id, run_at, round_at, lease, is_leased, is_parked ${ordered === undefined ? '' : ', order_key, order_seq'})
    SELECT d.tenant_id, d.id, d.subscription_id,
      CASE WHEN d.owned THEN now() + $19::interval ELSE greatest(now(), to_timestamp(d.after / 1000)) END,
      CASE WHEN d.after IS NOT NULL THEN greatest(now(), to_timestamp(d.after / 1000)) END,
      CASE WHEN d.owned THEN $18::uuid END, d.owned,
      d.after IS NOT NULL AND NOT d.owned AND ${isParkedAt('to_timestamp(d.after / 1000)')}
      ${ordered === undefined ? '' : ", d.order_key, CASE WHEN d.order_key IS NOT NULL THEN (SELECT nextval('delivery_order')) + d.n END"}
    FROM unnest($13::text[], $14::uuid[], $15::uuid[], $16::bool[], $17::float8[]
      ${ordered === undefined ? '' : `, $${ordered + 1}::text[]`}) WITH ORDINALITY
      AS d (tenant_id, id, subscription_id, owned, after ${ordered === undefined ? '' : ', order_key'}, n)`;

// Usage is counted in a row that only this lane of this instance writes: nobody waits for it.
const COUNT = `INSERT INTO usage AS u (tenant_id, hour, slot, events, bytes, deliveries)`;
const ADD = `ON CONFLICT (tenant_id, hour, slot) DO UPDATE SET events = u.events + excluded.events,
      bytes = u.bytes + excluded.bytes, deliveries = u.deliveries + excluded.deliveries`;
const HOUR = "date_trunc('hour', now(), 'UTC')";

const unkeyedParts = (ordered: number | undefined) => `stored AS (
    ${storePart(ordered)} WHERE e.tenant_id IN (SELECT tenant_id FROM known)),
  queued AS (${queuePart(ordered)} WHERE d.tenant_id IN (SELECT tenant_id FROM known)),
  counted AS (${COUNT}
    SELECT c.tenant_id, ${HOUR}, $20::int4, c.events, c.bytes, c.deliveries
    FROM unnest($1::text[], $21::int8[], $22::int8[], $23::int8[]) AS c (tenant_id, events, bytes, deliveries)
    WHERE c.tenant_id IN (SELECT tenant_id FROM known) ${ADD})`;

// Keys are inserted in one order everywhere, so that two instances never wait for each other. An expired key is
// taken over. The masking of the last 3 bytes of a delivery's id gives its event's id (ADR 0003). What is counted is
// what was stored; the last term keeps parameters that only the other form needs.
const keyedParts = (first: number, ordered: number | undefined) => `wanted AS MATERIALIZED (
    SELECT k.* FROM unnest($${first}::text[], $${first + 1}::text[], $${first + 2}::uuid[], $${first + 3}::bytea[],
        $${first + 4}::int4[])
      AS k (tenant_id, key, event_id, fingerprint, delivery_count) WHERE k.tenant_id IN (SELECT tenant_id FROM known)),
  taken AS (
    INSERT INTO idempotency_keys AS i (tenant_id, key, event_id, fingerprint, delivery_count, expires_at)
    SELECT tenant_id, key, event_id, fingerprint, delivery_count, now() + interval '${IDEMPOTENCY_HOURS} hours' FROM wanted
    ON CONFLICT (tenant_id, key) DO UPDATE SET event_id = excluded.event_id, fingerprint = excluded.fingerprint,
      delivery_count = excluded.delivery_count, expires_at = excluded.expires_at WHERE i.expires_at <= now()
    RETURNING i.tenant_id, i.event_id),
  free AS MATERIALIZED (
    SELECT tenant_id, event_id FROM wanted EXCEPT SELECT tenant_id, event_id FROM taken),
  stored AS (${storePart(ordered)} WHERE e.tenant_id IN (SELECT tenant_id FROM known)
    AND (e.tenant_id, e.id) NOT IN (SELECT tenant_id, event_id FROM free)
    RETURNING tenant_id, octet_length(payload) AS bytes),
  queued AS (${queuePart(ordered)} WHERE d.tenant_id IN (SELECT tenant_id FROM known)
    AND (d.tenant_id, overlay(uuid_send(d.id) PLACING '\\x000000'::bytea FROM 14)) NOT IN
      (SELECT tenant_id, uuid_send(event_id) FROM free)
    RETURNING tenant_id),
  counted AS (${COUNT}
    SELECT s.tenant_id, ${HOUR}, $20::int4, count(*), sum(s.bytes),
      (SELECT count(*) FROM queued q WHERE q.tenant_id = s.tenant_id)
    FROM stored s
    WHERE ($21::int8[], $22::int8[], $23::int8[]) IS NOT NULL GROUP BY s.tenant_id ${ADD})`;

/** The statement, with or without quotas of events to look at, idempotency keys, and ordering keys and lines. */
function statement(limited: boolean, keyed: boolean, ordered: number | undefined): string {
  const known = limited ? KNOWN_AND_FAR : KNOWN;
  const parts = keyed ? keyedParts(limited ? 27 : 24, ordered) : unkeyedParts(ordered);
  const answer = `SELECT tenant_id, NULL AS taken, false AS near, ${limited ? 'is_far' : 'false AS is_far'} FROM known`;
  const near = limited
    ? ` UNION ALL SELECT tenant_id, NULL, true, false FROM (SELECT tenant_id FROM current EXCEPT SELECT tenant_id FROM known) n`
    : '';
  const taken = keyed ? ' UNION ALL SELECT tenant_id, event_id::text, false, false FROM taken' : '';
  return `WITH ${known}, ${parts} ${answer}${near}${taken}`;
}

function tenantColumns(batch: IngestBatch): BinaryParameter[] {
  const tenants = [...batch.tenants];
  return [textArray(tenants, ([tenantId]) => tenantId), int8Array(tenants, ([, t]) => t.version)];
}

/** Per tenant of the batch, in the order of tenantColumns(): events, bytes, deliveries. */
function countColumns(batch: IngestBatch): BinaryParameter[] {
  const counts = new Map([...batch.tenants.keys()].map((id) => [id, { events: 0, bytes: 0, deliveries: 0 }]));
  for (const e of batch.isUsage ? batch.events : []) {
    const count = counts.get(e.event.tenantId)!;
    count.events++;
    count.bytes += e.event.payload.length;
    count.deliveries += e.deliveries.length;
  }
  const list = [...counts.values()];
  return [
    int8Array(list, (c) => c.events),
    int8Array(list, (c) => c.bytes),
    int8Array(list, (c) => c.deliveries),
  ];
}

function limitColumns(batch: IngestBatch): (BinaryParameter | number)[] {
  const tenants = [...batch.tenants.values()];
  return [
    int8Array(tenants, (t) => t.eventsPerDay),
    int8Array(tenants, (t) => t.eventsPerMonth),
    batch.margin,
  ];
}

function eventColumns(events: readonly IngestEvent[]): BinaryParameter[] {
  const orNull = (text: string) => (text === '' ? null : text);
  return [
    textArray(events, (e) => e.event.tenantId),
    uuidArray(events, (e) => e.eventId),
    textArray(events, (e) => e.event.type),
    byteaArray(events, (e) => e.event.payload),
    textArray(events, ({ event: { contentType } }) =>
      contentType === 'application/json' ? null : contentType,
    ),
    textArray(events, (e) => orNull(e.event.source)),
    textArray(events, (e) => orNull(e.event.subject)),
    textArray(events, (e) => orNull(e.event.idempotencyKey)),
    textArray(events, (e) => metadataText(e.event.metadata)),
    float8Array(events, (e) => e.event.deliverAfterMs ?? null),
  ];
}

function metadataText(metadata: Readonly<Record<string, string>>): string | null {
  for (const _ in metadata) return JSON.stringify(metadata);
  return null;
}

function deliveryColumns(
  deliveries: readonly IngestDelivery[],
  events: readonly NewEvent[],
): BinaryParameter[] {
  return [
    textArray(deliveries, (_, i) => events[i]!.tenantId),
    uuidArray(deliveries, (d) => d.deliveryId),
    uuidArray(deliveries, (d) => d.subscriptionId),
    boolArray(deliveries, (d) => d.owned),
    float8Array(deliveries, (_, i) => events[i]!.deliverAfterMs ?? null),
  ];
}

function byKey(a: IngestEvent, b: IngestEvent): number {
  if (a.event.tenantId !== b.event.tenantId) return a.event.tenantId < b.event.tenantId ? -1 : 1;
  if (a.event.idempotencyKey === b.event.idempotencyKey) return 0;
  return a.event.idempotencyKey < b.event.idempotencyKey ? -1 : 1;
}

function keyColumns(keyed: readonly IngestEvent[]): BinaryParameter[] {
  return [
    textArray(keyed, (e) => e.event.tenantId),
    textArray(keyed, (e) => e.event.idempotencyKey),
    uuidArray(keyed, (e) => e.eventId),
    byteaArray(keyed, (e) => fingerprintOf(e.event)),
    int4Array(keyed, (e) => e.deliveries.length),
  ];
}

async function keyedResults(
  pool: Statements,
  batch: IngestBatch,
  keyed: readonly IngestEvent[],
  rows: readonly Row[],
): Promise<IngestResult[]> {
  const current = new Set(rows.filter((row) => row.taken === null).map((row) => row.tenant_id));
  const taken = new Set(rows.flatMap((row) => (row.taken === null ? [] : [idFromUuid('evt', row.taken)])));
  const lost = keyed.filter((e) => current.has(e.event.tenantId) && !taken.has(encodeId('evt', e.eventId)));
  const owners = await readOwners(pool, lost);
  return batch.events.map((e) => {
    if (!current.has(e.event.tenantId)) return { kind: 'stale' };
    return owners.get(e) ?? { kind: 'stored' };
  });
}

type Owner = { n: string; event_id: string; fingerprint: Buffer; delivery_count: number };

/** Who holds the keys that could not be taken. */
async function readOwners(
  pool: Statements,
  lost: readonly IngestEvent[],
): Promise<Map<IngestEvent, IngestResult>> {
  const owners = new Map<IngestEvent, IngestResult>(lost.map((e) => [e, { kind: 'retry' }]));
  if (lost.length === 0) return owners;
  const { rows } = await findOwners(pool, lost).catch(() => {
    // The batch is committed: only the events whose keys were taken may be tried again.
    return { rows: [] };
  });
  for (const row of rows) {
    const event = lost[Number(row.n) - 1]!;
    owners.set(event, {
      kind: 'duplicate',
      eventId: idFromUuid('evt', row.event_id) as EventId,
      deliveryCount: row.delivery_count,
      same: row.fingerprint.equals(fingerprintOf(event.event)),
    });
  }
  return owners;
}

function findOwners(
  pool: Statements,
  lost: readonly IngestEvent[],
): Promise<{ readonly rows: readonly Owner[] }> {
  return pool.query<Owner>({
    name: 'ingest-key-owners',
    text: `SELECT w.n, i.event_id, i.fingerprint, i.delivery_count
      FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (tenant_id, key, n)
      JOIN idempotency_keys i ON i.tenant_id = w.tenant_id AND i.key = w.key AND i.expires_at > now()`,
    values: [textArray(lost, (e) => e.event.tenantId), textArray(lost, (e) => e.event.idempotencyKey)],
  });
}
