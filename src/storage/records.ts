// Writes of finished and rescheduled deliveries, in batches over many tenants, as dispatch_engine. Every row is
// fenced by its lease token: a row that is not there under that token any more was taken over by another worker,
// and nothing of it is written. domain/lease.ts has the rules without SQL: isUnder, ended.
import type { QueryResult } from 'pg';
import type { AttemptTiming, DeadLetterReason, ErrorClass } from '../domain/delivery.ts';
import type { TenantId } from '../domain/ids.ts';
import { byteaArray, float8Array, int2Array, int4Array, textArray, uuidArray } from './binary-arrays.ts';
import type { Statements } from './hot-pool.ts';
import { isParkedAt } from './parking.ts';

/** Which row, under which lease. */
type Fenced = { readonly tenantId: TenantId; readonly idBytes: Buffer; readonly lease: Buffer };

/** One HTTP try, as it is recorded. */
export type AttemptRecord = {
  readonly attempt: number;
  /** Undefined when no response came. */
  readonly status: number | undefined;
  readonly startedAtMs: number;
  readonly durationUs: number;
  readonly timing: AttemptTiming;
  /** At most 64 KiB; empty is stored as null. */
  readonly responseBody: Buffer;
  /** At most 4 KiB; undefined when no response came. */
  readonly responseHeaders: Readonly<Record<string, string>> | undefined;
  /** Deliveries in the same request; 0: no batch. */
  readonly batchSize: number;
};

type Failure = { readonly errorClass: ErrorClass; readonly message: string };

/** What to write about a delivery. */
export type DeliveryRecord = Fenced &
  (
    | { readonly kind: 'succeeded'; readonly attempt: AttemptRecord }
    | {
        readonly kind: 'retry';
        readonly attempt: AttemptRecord;
        readonly failure: Failure;
        readonly delayMs: number;
      }
    | {
        readonly kind: 'dead';
        readonly reason: DeadLetterReason;
        /** Undefined when it was given up without a try. */
        readonly attempt: AttemptRecord | undefined;
        readonly failure: Failure;
        readonly eventType: string;
        readonly attemptCount: number;
        /** Its line stops: the row stays in the queue, due never, until the dead letter is replayed or discarded. */
        readonly stopsLine: boolean;
      }
    /** Give back, uncharged, due after a delay. */
    | { readonly kind: 'release'; readonly delayMs: number }
    /** Its subscription is gone. */
    | { readonly kind: 'cancelled' }
  );

/**
 * How a batch is committed. `durable`: it waits for the disk. `confirmed`: the same, and which rows were written is told. `soon`:
 * what succeeded and what is tried again is visible at once and is on the disk with the next commit that waits for it, at most
 * 0.6 s later (three times wal_writer_delay); a crash of PostgreSQL before that forgets it (ADR 0025).
 */
export type Commit = 'soon' | 'durable' | 'confirmed';

/** How many rows of a batch were still under their lease, and, if that was asked for, which: their ids as uuids. */
export type Written = { readonly count: number; readonly ids: ReadonlySet<string> };

type Row = { readonly id: string };

/** Writes one batch. Any mix of kinds; one statement a kind. */
export async function writeRecords(
  pool: Statements,
  records: readonly DeliveryRecord[],
  commit: Commit,
): Promise<Written> {
  const of = <K extends DeliveryRecord['kind']>(kind: K) =>
    records.filter((r): r is Extract<DeliveryRecord, { kind: K }> => r.kind === kind);
  const dead = of('dead');
  const results = await Promise.all([
    writeSucceeded(pool, of('succeeded'), commit),
    writeRetries(pool, of('retry'), commit),
    writeDead(
      pool,
      dead.filter((r) => !r.stopsLine),
      false,
      commit,
    ),
    writeDead(
      pool,
      dead.filter((r) => r.stopsLine),
      true,
      commit,
    ),
    writeReleases(pool, of('release')),
    writeCancelled(pool, of('cancelled')),
  ]);
  const count = results.reduce((sum, result) => sum + (result?.rowCount ?? 0), 0);
  const ids =
    commit === 'confirmed' ? results.flatMap((result) => result?.rows.map((row: Row) => row.id) ?? []) : [];
  return { count, ids: new Set(ids) };
}

/** `RETURNING` the ids, where they are to be told; a statement that tells them has a name of its own. */
const told = (name: string, text: string, column: string, commit: Commit) =>
  commit === 'confirmed'
    ? { name: `${name}-told`, text: `${text} RETURNING ${column} AS id` }
    : { name, text };

/** The same for a statement that ends with what it reads from, and may be committed `soon`: for its own transaction. */
const toldOrSoon = (name: string, text: string, column: string, commit: Commit) =>
  commit === 'soon'
    ? { name: `${name}-soon`, text: `${text} CROSS JOIN set_config('synchronous_commit', 'off', true)` }
    : told(name, text, column, commit);

const fence = (records: readonly Fenced[]) => [
  textArray(records, (r) => r.tenantId),
  uuidArray(records, (r) => r.idBytes),
  uuidArray(records, (r) => r.lease),
];

const attemptColumns = (attempts: readonly (AttemptRecord | undefined)[]) => [
  int2Array(attempts, (a) => a?.attempt ?? null),
  int2Array(attempts, (a) => a?.status ?? null),
  float8Array(attempts, (a) => a?.startedAtMs ?? null),
  int4Array(attempts, (a) => bounded(a?.durationUs)),
  byteaArray(attempts, (a) => (a === undefined || a.responseBody.length === 0 ? null : a.responseBody)),
  int4Array(attempts, (a) => bounded(a?.timing.dnsUs)),
  int4Array(attempts, (a) => bounded(a?.timing.connectUs)),
  int4Array(attempts, (a) => bounded(a?.timing.tlsUs)),
  int4Array(attempts, (a) => bounded(a?.timing.firstByteUs)),
  textArray(attempts, (a) => (a?.responseHeaders === undefined ? null : JSON.stringify(a.responseHeaders))),
  int2Array(attempts, (a) => (a === undefined || a.batchSize === 0 ? null : a.batchSize)),
];

/** µs that an int4 holds: 35 minutes, which a process can be stopped for. */
const bounded = (us: number | undefined) => (us === undefined ? null : Math.min(us, 0x7fffffff));

const failureColumns = (failures: readonly Failure[]) => [
  textArray(failures, (f) => f.errorClass),
  textArray(failures, (f) => f.message),
];

const FENCE = 'unnest($1::text[]) AS tenant_id, unnest($2::uuid[]) AS id, unnest($3::uuid[]) AS lease';
const ATTEMPT = `${FENCE}, unnest($4::int2[]) AS attempt, unnest($5::int2[]) AS status, unnest($6::float8[]) AS started,
  unnest($7::int4[]) AS duration_us, unnest($8::bytea[]) AS response_body, unnest($9::int4[]) AS dns_us,
  unnest($10::int4[]) AS connect_us, unnest($11::int4[]) AS tls_us, unnest($12::int4[]) AS first_byte_us,
  unnest($13::text[]) AS response_headers, unnest($14::int2[]) AS batch_size`;
const FAILURE = 'unnest($15::text[]) AS error_class, unnest($16::text[]) AS error_message';
const LATER = "now() + r.delay_ms * interval '1 ms'";
const MINE = 'd.tenant_id = r.tenant_id AND d.id = r.id AND d.lease = r.lease';
const INSERT_ATTEMPT = `INSERT INTO attempts (tenant_id, delivery_id, attempt, subscription_id, outcome, status,
  error_class, error_message, started_at, duration_us, next_attempt_at, response_body, dns_us, connect_us, tls_us,
  first_byte_us, response_headers, batch_size)`;
const MORE = 'dns_us, connect_us, tls_us, first_byte_us, response_headers, batch_size';

async function writeSucceeded(
  pool: Statements,
  records: readonly Extract<DeliveryRecord, { kind: 'succeeded' }>[],
  commit: Commit,
): Promise<QueryResult<Row> | undefined> {
  if (records.length === 0) return undefined;
  const text = `WITH done AS (
        DELETE FROM deliveries d USING (SELECT ${ATTEMPT}) r WHERE ${MINE} RETURNING r.*, d.subscription_id)
      ${INSERT_ATTEMPT}
      SELECT tenant_id, id, attempt, subscription_id, 'succeeded', status, NULL, NULL, to_timestamp(started / 1000),
        duration_us, NULL, response_body, ${MORE} FROM done`;
  return pool.query<Row>({
    ...toldOrSoon('record-succeeded', text, 'delivery_id', commit),
    values: [...fence(records), ...attemptColumns(records.map((r) => r.attempt))],
  });
}

async function writeRetries(
  pool: Statements,
  records: readonly Extract<DeliveryRecord, { kind: 'retry' }>[],
  commit: Commit,
): Promise<QueryResult<Row> | undefined> {
  if (records.length === 0) return undefined;
  const text = `WITH done AS (
        UPDATE deliveries d SET run_at = ${LATER}, is_parked = ${isParkedAt(LATER)}, is_leased = false, lease = NULL, attempt_count = r.attempt
        FROM (SELECT ${ATTEMPT}, ${FAILURE}, unnest($17::float8[]) AS delay_ms) r WHERE ${MINE}
        RETURNING r.*, d.subscription_id, d.run_at)
      ${INSERT_ATTEMPT}
      SELECT tenant_id, id, attempt, subscription_id, 'retry_scheduled', status, error_class, error_message,
        to_timestamp(started / 1000), duration_us, run_at, response_body, ${MORE} FROM done`;
  return pool.query<Row>({
    ...toldOrSoon('record-retry', text, 'delivery_id', commit),
    values: [
      ...fence(records),
      ...attemptColumns(records.map((r) => r.attempt)),
      ...failureColumns(records.map((r) => r.failure)),
      float8Array(records, (r) => r.delayMs),
    ],
  });
}

async function writeDead(
  pool: Statements,
  records: readonly Extract<DeliveryRecord, { kind: 'dead' }>[],
  stopsLine: boolean,
  commit: Commit,
): Promise<QueryResult<Row> | undefined> {
  if (records.length === 0) return undefined;
  const given = `(SELECT ${ATTEMPT}, ${FAILURE}, unnest($17::text[]) AS reason, unnest($18::text[]) AS event_type,
          unnest($19::int2[]) AS attempt_count) r`;
  const end = stopsLine
    ? `UPDATE deliveries d SET run_at = 'infinity', is_leased = false, lease = NULL, attempt_count = r.attempt_count FROM ${given}`
    : `DELETE FROM deliveries d USING ${given}`;
  const text = `WITH done AS (
        ${end}
        WHERE ${MINE} RETURNING r.*, d.subscription_id, d.order_key, d.order_seq),
      attempted AS (${INSERT_ATTEMPT}
        SELECT tenant_id, id, attempt, subscription_id, 'dead_lettered', status, error_class, error_message,
          to_timestamp(started / 1000), duration_us, NULL, response_body, ${MORE} FROM done WHERE attempt IS NOT NULL)
      INSERT INTO dead_letters (tenant_id, id, subscription_id, event_type, reason, last_status, last_error_class,
        last_error_message, last_response_body, attempt_count, order_key, order_seq)
      SELECT tenant_id, id, subscription_id, event_type, reason, status, error_class, error_message, response_body,
        attempt_count, order_key, order_seq FROM done`;
  return pool.query<Row>({
    ...told(`record-dead${stopsLine ? '-stop' : ''}`, text, 'id', commit),
    values: [
      ...fence(records),
      ...attemptColumns(records.map((r) => r.attempt)),
      ...failureColumns(records.map((r) => r.failure)),
      textArray(records, (r) => r.reason),
      textArray(records, (r) => r.eventType),
      int2Array(records, (r) => r.attemptCount),
    ],
  });
}

async function writeReleases(
  pool: Statements,
  records: readonly Extract<DeliveryRecord, { kind: 'release' }>[],
): Promise<QueryResult<Row> | undefined> {
  if (records.length === 0) return undefined;
  return pool.query<Row>({
    name: 'record-release',
    text: `UPDATE deliveries d SET run_at = ${LATER}, is_parked = ${isParkedAt(LATER)}, is_leased = false, lease = NULL
      FROM (SELECT ${FENCE}, unnest($4::float8[]) AS delay_ms) r WHERE ${MINE}`,
    values: [...fence(records), float8Array(records, (r) => r.delayMs)],
  });
}

async function writeCancelled(
  pool: Statements,
  records: readonly Extract<DeliveryRecord, { kind: 'cancelled' }>[],
): Promise<QueryResult<Row> | undefined> {
  if (records.length === 0) return undefined;
  return pool.query<Row>({
    name: 'record-cancelled',
    text: `WITH done AS (DELETE FROM deliveries d USING (SELECT ${FENCE}) r WHERE ${MINE} RETURNING d.*)
      INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
      SELECT tenant_id, id, subscription_id, 'cancelled', attempt_count FROM done`,
    values: fence(records),
  });
}
