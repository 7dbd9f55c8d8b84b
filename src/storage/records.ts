// Writes of finished and rescheduled deliveries, in batches over many tenants, as dispatch_engine. Every row is
// fenced by its lease token: a row that is not there under that token any more was taken over by another worker,
// and nothing of it is written.
import type { Pool } from 'pg';
import type { DeadLetterReason, ErrorClass } from '../domain/delivery.ts';
import type { TenantId } from '../domain/ids.ts';
import { byteaArray, float8Array, int2Array, int4Array, textArray, uuidArray } from './binary-arrays.ts';

/** Which row, under which lease. */
type Fenced = { readonly tenantId: TenantId; readonly idBytes: Buffer; readonly lease: Buffer };

/** One HTTP try, as it is recorded. */
export type AttemptRecord = {
  readonly attempt: number;
  /** Undefined when no response came. */
  readonly status: number | undefined;
  readonly startedAtMs: number;
  readonly durationUs: number;
  /** At most 64 KiB; empty is stored as null. */
  readonly responseBody: Buffer;
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
      }
    /** Give back, uncharged, due after a delay. */
    | { readonly kind: 'release'; readonly delayMs: number }
    /** Its subscription is gone. */
    | { readonly kind: 'cancelled' }
  );

/** Writes one batch. Returns how many rows were still under their lease. Any mix of kinds; one statement a kind. */
export async function writeRecords(pool: Pool, records: readonly DeliveryRecord[]): Promise<number> {
  const of = <K extends DeliveryRecord['kind']>(kind: K) =>
    records.filter((r): r is Extract<DeliveryRecord, { kind: K }> => r.kind === kind);
  const counts = await Promise.all([
    writeSucceeded(pool, of('succeeded')),
    writeRetries(pool, of('retry')),
    writeDead(pool, of('dead')),
    writeReleases(pool, of('release')),
    writeCancelled(pool, of('cancelled')),
  ]);
  return counts.reduce((sum, count) => sum + count, 0);
}

const fence = (records: readonly Fenced[]) => [
  textArray(records.map((r) => r.tenantId)),
  uuidArray(records.map((r) => r.idBytes)),
  uuidArray(records.map((r) => r.lease)),
];

const attemptColumns = (attempts: readonly (AttemptRecord | undefined)[]) => [
  int2Array(attempts.map((a) => a?.attempt ?? null)),
  int2Array(attempts.map((a) => a?.status ?? null)),
  float8Array(attempts.map((a) => a?.startedAtMs ?? null)),
  int4Array(attempts.map((a) => (a === undefined ? null : Math.min(a.durationUs, 0x7fffffff)))),
  byteaArray(attempts.map((a) => (a === undefined || a.responseBody.length === 0 ? null : a.responseBody))),
];

const failureColumns = (failures: readonly Failure[]) => [
  textArray(failures.map((f) => f.errorClass)),
  textArray(failures.map((f) => f.message)),
];

const FENCE = 'unnest($1::text[]) AS tenant_id, unnest($2::uuid[]) AS id, unnest($3::uuid[]) AS lease';
const ATTEMPT = `${FENCE}, unnest($4::int2[]) AS attempt, unnest($5::int2[]) AS status, unnest($6::float8[]) AS started,
  unnest($7::int4[]) AS duration_us, unnest($8::bytea[]) AS response_body`;
const FAILURE = 'unnest($9::text[]) AS error_class, unnest($10::text[]) AS error_message';
const MINE = 'd.tenant_id = r.tenant_id AND d.id = r.id AND d.lease = r.lease';
const INSERT_ATTEMPT = `INSERT INTO attempts (tenant_id, delivery_id, attempt, subscription_id, outcome, status,
  error_class, error_message, started_at, duration_us, next_attempt_at, response_body)`;

async function writeSucceeded(
  pool: Pool,
  records: readonly Extract<DeliveryRecord, { kind: 'succeeded' }>[],
): Promise<number> {
  if (records.length === 0) return 0;
  const result = await pool.query({
    name: 'record-succeeded',
    text: `WITH done AS (
        DELETE FROM deliveries d USING (SELECT ${ATTEMPT}) r WHERE ${MINE} RETURNING r.*, d.subscription_id)
      ${INSERT_ATTEMPT}
      SELECT tenant_id, id, attempt, subscription_id, 'succeeded', status, NULL, NULL, to_timestamp(started / 1000),
        duration_us, NULL, response_body FROM done`,
    values: [...fence(records), ...attemptColumns(records.map((r) => r.attempt))],
  });
  return result.rowCount ?? 0;
}

async function writeRetries(
  pool: Pool,
  records: readonly Extract<DeliveryRecord, { kind: 'retry' }>[],
): Promise<number> {
  if (records.length === 0) return 0;
  const result = await pool.query({
    name: 'record-retry',
    text: `WITH done AS (
        UPDATE deliveries d SET run_at = now() + r.delay_ms * interval '1 ms', lease = NULL, attempt_count = r.attempt
        FROM (SELECT ${ATTEMPT}, ${FAILURE}, unnest($11::float8[]) AS delay_ms) r WHERE ${MINE}
        RETURNING r.*, d.subscription_id, d.run_at)
      ${INSERT_ATTEMPT}
      SELECT tenant_id, id, attempt, subscription_id, 'retry_scheduled', status, error_class, error_message,
        to_timestamp(started / 1000), duration_us, run_at, response_body FROM done`,
    values: [
      ...fence(records),
      ...attemptColumns(records.map((r) => r.attempt)),
      ...failureColumns(records.map((r) => r.failure)),
      float8Array(records.map((r) => r.delayMs)),
    ],
  });
  return result.rowCount ?? 0;
}

async function writeDead(
  pool: Pool,
  records: readonly Extract<DeliveryRecord, { kind: 'dead' }>[],
): Promise<number> {
  if (records.length === 0) return 0;
  const result = await pool.query({
    name: 'record-dead',
    text: `WITH done AS (
        DELETE FROM deliveries d USING (SELECT ${ATTEMPT}, ${FAILURE}, unnest($11::text[]) AS reason,
          unnest($12::text[]) AS event_type, unnest($13::int2[]) AS attempt_count) r
        WHERE ${MINE} RETURNING r.*, d.subscription_id),
      attempted AS (${INSERT_ATTEMPT}
        SELECT tenant_id, id, attempt, subscription_id, 'dead_lettered', status, error_class, error_message,
          to_timestamp(started / 1000), duration_us, NULL, response_body FROM done WHERE attempt IS NOT NULL)
      INSERT INTO dead_letters (tenant_id, id, subscription_id, event_type, reason, last_status, last_error_class,
        last_error_message, last_response_body, attempt_count)
      SELECT tenant_id, id, subscription_id, event_type, reason, status, error_class, error_message, response_body,
        attempt_count FROM done`,
    values: [
      ...fence(records),
      ...attemptColumns(records.map((r) => r.attempt)),
      ...failureColumns(records.map((r) => r.failure)),
      textArray(records.map((r) => r.reason)),
      textArray(records.map((r) => r.eventType)),
      int2Array(records.map((r) => r.attemptCount)),
    ],
  });
  return result.rowCount ?? 0;
}

async function writeReleases(
  pool: Pool,
  records: readonly Extract<DeliveryRecord, { kind: 'release' }>[],
): Promise<number> {
  if (records.length === 0) return 0;
  const result = await pool.query({
    name: 'record-release',
    text: `UPDATE deliveries d SET run_at = now() + r.delay_ms * interval '1 ms', lease = NULL
      FROM (SELECT ${FENCE}, unnest($4::float8[]) AS delay_ms) r WHERE ${MINE}`,
    values: [...fence(records), float8Array(records.map((r) => r.delayMs))],
  });
  return result.rowCount ?? 0;
}

async function writeCancelled(
  pool: Pool,
  records: readonly Extract<DeliveryRecord, { kind: 'cancelled' }>[],
): Promise<number> {
  if (records.length === 0) return 0;
  const result = await pool.query({
    name: 'record-cancelled',
    text: `WITH done AS (DELETE FROM deliveries d USING (SELECT ${FENCE}) r WHERE ${MINE} RETURNING d.*)
      INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
      SELECT tenant_id, id, subscription_id, 'cancelled', attempt_count FROM done`,
    values: fence(records),
  });
  return result.rowCount ?? 0;
}
