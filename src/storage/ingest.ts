// The statement that stores events: many tenants, one round trip, one fsynced transaction (promise P1).
// Runs as dispatch_engine. Tables: tenants (read), idempotency_keys, events, deliveries.
import type { Pool } from 'pg';
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
};

export type IngestBatch = {
  /** The tenants of the batch and the configuration version that matching was done with. */
  readonly tenants: ReadonlyMap<TenantId, number>;
  readonly events: readonly IngestEvent[];
  /** 16 bytes; written to owned deliveries. */
  readonly lease: Buffer;
  readonly leaseMs: number;
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
  | { readonly kind: 'retry' };

/**
 * Stores a batch. Results come in the order of the events. Within a batch no idempotency key may occur twice.
 * Throws only if the whole batch failed; then nothing was stored, or, if the connection broke at COMMIT, all of it.
 */
export async function ingest(pool: Pool, batch: IngestBatch): Promise<IngestResult[]> {
  const keyed = batch.events.filter((e) => e.event.idempotencyKey !== '').sort(byKey);
  const deliveries = batch.events.flatMap((e) => e.deliveries.map((d) => ({ ...d, of: e })));
  const values = [
    textArray([...batch.tenants.keys()]),
    int8Array([...batch.tenants.values()]),
    ...eventColumns(batch.events),
    ...deliveryColumns(deliveries),
    batch.lease,
    `${batch.leaseMs} ms`,
  ];
  if (keyed.length === 0) {
    const { rows } = await pool.query<Row>({ name: 'ingest', text: INGEST, values });
    const current = new Set(rows.map((row) => row.tenant_id));
    return batch.events.map((e) => ({ kind: current.has(e.event.tenantId) ? 'stored' : 'stale' }));
  }
  const all = [...values, ...keyColumns(keyed)];
  const { rows } = await pool.query<Row>({ name: 'ingest-keyed', text: INGEST_KEYED, values: all });
  return keyedResults(pool, batch, keyed, rows);
}

type Row = { readonly tenant_id: string; readonly taken: string | null };

// `known` holds the tenants whose configuration is still the one that was matched with: a subscription that was
// created, on any instance, before this statement began is never missed.
const KNOWN = `known AS MATERIALIZED (
    SELECT t.tenant_id FROM unnest($1::text[], $2::int8[]) AS k (tenant_id, version)
    JOIN tenants t ON t.tenant_id = k.tenant_id AND t.config_version = k.version AND t.state = 'active')`;
const EVENT = `unnest($3::text[], $4::uuid[], $5::text[], $6::bytea[], $7::text[], $8::text[], $9::text[], $10::text[],
      $11::text[], $12::float8[]) AS e (tenant_id, id, type, payload, content_type, source, subject, key, metadata, after)`;
const STORE = `INSERT INTO events
      (tenant_id, id, type, payload, content_type, source, subject, idempotency_key, metadata, deliver_after)
    SELECT e.tenant_id, e.id, e.type, e.payload, e.content_type, e.source, e.subject, e.key, e.metadata::jsonb,
      to_timestamp(e.after / 1000)
    FROM ${EVENT}`;
const QUEUE = `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at, round_at, lease)
    SELECT d.tenant_id, d.id, d.subscription_id,
      CASE WHEN d.owned THEN now() + $19::interval ELSE greatest(now(), to_timestamp(d.after / 1000)) END,
      CASE WHEN d.after IS NOT NULL THEN greatest(now(), to_timestamp(d.after / 1000)) END,
      CASE WHEN d.owned THEN $18::uuid END
    FROM unnest($13::text[], $14::uuid[], $15::uuid[], $16::bool[], $17::float8[])
      AS d (tenant_id, id, subscription_id, owned, after)`;

const INGEST = `WITH ${KNOWN},
  stored AS (${STORE} WHERE e.tenant_id IN (SELECT tenant_id FROM known)),
  queued AS (${QUEUE} WHERE d.tenant_id IN (SELECT tenant_id FROM known))
  SELECT tenant_id, NULL AS taken FROM known`;

// Keys are inserted in one order everywhere, so that two instances never wait for each other. An expired key is
// taken over. The masking of the last 3 bytes of a delivery's id gives its event's id (ADR 0003).
const INGEST_KEYED = `WITH ${KNOWN},
  wanted AS MATERIALIZED (
    SELECT k.* FROM unnest($20::text[], $21::text[], $22::uuid[], $23::bytea[], $24::int4[])
      AS k (tenant_id, key, event_id, fingerprint, delivery_count) WHERE k.tenant_id IN (SELECT tenant_id FROM known)),
  taken AS (
    INSERT INTO idempotency_keys AS i (tenant_id, key, event_id, fingerprint, delivery_count, expires_at)
    SELECT tenant_id, key, event_id, fingerprint, delivery_count, now() + interval '${IDEMPOTENCY_HOURS} hours' FROM wanted
    ON CONFLICT (tenant_id, key) DO UPDATE SET event_id = excluded.event_id, fingerprint = excluded.fingerprint,
      delivery_count = excluded.delivery_count, expires_at = excluded.expires_at WHERE i.expires_at <= now()
    RETURNING i.tenant_id, i.event_id),
  free AS MATERIALIZED (
    SELECT tenant_id, event_id FROM wanted EXCEPT SELECT tenant_id, event_id FROM taken),
  stored AS (${STORE} WHERE e.tenant_id IN (SELECT tenant_id FROM known)
    AND (e.tenant_id, e.id) NOT IN (SELECT tenant_id, event_id FROM free)),
  queued AS (${QUEUE} WHERE d.tenant_id IN (SELECT tenant_id FROM known)
    AND (d.tenant_id, overlay(uuid_send(d.id) PLACING '\\x000000'::bytea FROM 14)) NOT IN
      (SELECT tenant_id, uuid_send(event_id) FROM free))
  SELECT tenant_id, NULL AS taken FROM known UNION ALL SELECT tenant_id, event_id::text FROM taken`;

function eventColumns(events: readonly IngestEvent[]): Buffer[] {
  const column = <T>(pick: (e: NewEvent) => T) => events.map((e) => pick(e.event));
  const orNull = (text: string) => (text === '' ? null : text);
  return [
    textArray(column((e) => e.tenantId)),
    uuidArray(events.map((e) => e.eventId)),
    textArray(column((e) => e.type)),
    byteaArray(column((e) => e.payload)),
    textArray(column((e) => (e.contentType === 'application/json' ? null : e.contentType))),
    textArray(column((e) => orNull(e.source))),
    textArray(column((e) => orNull(e.subject))),
    textArray(column((e) => orNull(e.idempotencyKey))),
    textArray(column((e) => metadataText(e.metadata))),
    float8Array(column((e) => e.deliverAfterMs ?? null)),
  ];
}

function metadataText(metadata: Readonly<Record<string, string>>): string | null {
  for (const _ in metadata) return JSON.stringify(metadata);
  return null;
}

function deliveryColumns(deliveries: readonly (IngestDelivery & { readonly of: IngestEvent })[]): Buffer[] {
  return [
    textArray(deliveries.map((d) => d.of.event.tenantId)),
    uuidArray(deliveries.map((d) => d.deliveryId)),
    uuidArray(deliveries.map((d) => d.subscriptionId)),
    boolArray(deliveries.map((d) => d.owned)),
    float8Array(deliveries.map((d) => d.of.event.deliverAfterMs ?? null)),
  ];
}

function byKey(a: IngestEvent, b: IngestEvent): number {
  if (a.event.tenantId !== b.event.tenantId) return a.event.tenantId < b.event.tenantId ? -1 : 1;
  if (a.event.idempotencyKey === b.event.idempotencyKey) return 0;
  return a.event.idempotencyKey < b.event.idempotencyKey ? -1 : 1;
}

function keyColumns(keyed: readonly IngestEvent[]): Buffer[] {
  return [
    textArray(keyed.map((e) => e.event.tenantId)),
    textArray(keyed.map((e) => e.event.idempotencyKey)),
    uuidArray(keyed.map((e) => e.eventId)),
    byteaArray(keyed.map((e) => fingerprintOf(e.event))),
    int4Array(keyed.map((e) => e.deliveries.length)),
  ];
}

async function keyedResults(
  pool: Pool,
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
async function readOwners(pool: Pool, lost: readonly IngestEvent[]): Promise<Map<IngestEvent, IngestResult>> {
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

function findOwners(pool: Pool, lost: readonly IngestEvent[]): Promise<{ readonly rows: readonly Owner[] }> {
  return pool.query<Owner>({
    name: 'ingest-key-owners',
    text: `SELECT w.n, i.event_id, i.fingerprint, i.delivery_count
      FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (tenant_id, key, n)
      JOIN idempotency_keys i ON i.tenant_id = w.tenant_id AND i.key = w.key AND i.expires_at > now()`,
    values: [
      textArray(lost.map((e) => e.event.tenantId)),
      textArray(lost.map((e) => e.event.idempotencyKey)),
    ],
  });
}
