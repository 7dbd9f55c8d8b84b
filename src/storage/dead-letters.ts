// Dead letters: deliveries that were given up. Tables: dead_letters, deliveries, closed_deliveries. Runs as
// dispatch_tenant. A dead letter that stops its line has a row in the queue that is due never: it goes when the dead
// letter is replayed or discarded.
import { z } from 'zod';
import { DEAD_LETTER_REASONS, type DeadLetterReason, type ErrorClass } from '../domain/delivery.ts';
import { DispatchError, notFound } from '../domain/errors.ts';
import { matchesPattern } from '../domain/event-type.ts';
import {
  type DeliveryId,
  type EventId,
  encodeId,
  eventIdOf,
  idFromUuid,
  type SubscriptionId,
  type TenantId,
  uuidOf,
} from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import { type Database, sql } from './database.ts';
import { type ScannedPage, scanPage } from './scan-page.ts';

/** A delivery that was given up. Times in ms since 1970. */
export type DeadLetter = {
  readonly tenantId: TenantId;
  readonly deliveryId: DeliveryId;
  readonly uuid: string;
  readonly eventId: EventId;
  readonly subscriptionId: SubscriptionId;
  readonly eventType: string;
  readonly reason: DeadLetterReason;
  readonly lastStatus: number;
  readonly lastErrorClass: ErrorClass;
  readonly lastErrorMessage: string;
  /** Undefined in lists. */
  readonly lastResponseBody: Buffer | undefined;
  readonly attemptCount: number;
  readonly deadAtMs: number;
  readonly archivedAtMs: number | undefined;
};

/** Which dead letters; fields that are set must all match. As it lies in replays.filter. */
export const deadLetterFilterSchema = z.object({
  subscriptionId: z.string().optional(),
  eventType: z.string().optional(),
  reason: z.enum(DEAD_LETTER_REASONS).optional(),
  startMs: z.number().optional(),
  endMs: z.number().optional(),
  /** -1: no response came. */
  lastStatus: z.number().optional(),
  lastErrorClass: z.string().optional(),
  /** Those that are archived instead of the others. */
  archived: z.boolean().optional(),
});
export type DeadLetterFilter = z.infer<typeof deadLetterFilterSchema>;

const deadLetterRow = z.object({
  id: z.string(),
  subscription_id: z.string(),
  event_type: z.string(),
  reason: z.enum(DEAD_LETTER_REASONS),
  last_status: z.number().nullable(),
  last_error_class: z.string(),
  last_error_message: z.string(),
  last_response_body: z.instanceof(Buffer).nullable(),
  attempt_count: z.number(),
  dead_at: z.number(),
  archived_at: z.number().nullable(),
});

const COLUMNS = sql.fragment`id, subscription_id, event_type, reason, last_status, last_error_class,
  last_error_message, attempt_count, dead_at, archived_at`;

function toDeadLetter(tenantId: TenantId, row: z.infer<typeof deadLetterRow>): DeadLetter {
  const bytes = Buffer.from(row.id.replaceAll('-', ''), 'hex');
  return {
    tenantId,
    deliveryId: encodeId('dlv', bytes) as DeliveryId,
    uuid: row.id,
    eventId: encodeId('evt', eventIdOf(bytes)) as EventId,
    subscriptionId: idFromUuid('sub', row.subscription_id) as SubscriptionId,
    eventType: row.event_type,
    reason: row.reason,
    lastStatus: row.last_status ?? 0,
    lastErrorClass: row.last_error_class as ErrorClass,
    lastErrorMessage: row.last_error_message,
    lastResponseBody: row.last_response_body ?? undefined,
    attemptCount: row.attempt_count,
    deadAtMs: row.dead_at,
    archivedAtMs: row.archived_at ?? undefined,
  };
}

/** Reads one with its response body. NOT_FOUND if it is not this tenant's. */
export async function getDeadLetter(
  db: Database,
  tenantId: TenantId,
  deliveryId: DeliveryId,
): Promise<DeadLetter> {
  const row = await db.inTenant(tenantId, (tx) =>
    tx.maybeOne(sql.type(deadLetterRow)`
      SELECT ${COLUMNS}, coalesce(last_response_body, '') AS last_response_body FROM dead_letters
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(deliveryId)}`),
  );
  if (row === null) throw notFound('dead letter', deliveryId);
  return toDeadLetter(tenantId, row);
}

/** A page, newest events first. */
export async function listDeadLetters(
  db: Database,
  tenantId: TenantId,
  page: Page,
  filter: DeadLetterFilter,
): Promise<ScannedPage<DeadLetter>> {
  const { subscriptionId } = filter;
  const ofSubscription =
    subscriptionId === undefined
      ? sql.fragment``
      : sql.fragment`AND subscription_id = ${uuidOf(subscriptionId)}`;
  const { subscriptionId: _inSql, archived, ...rest } = filter;
  const filtered = Object.values(rest).some((value) => value !== undefined);
  const shelf =
    archived === true ? sql.fragment`AND archived_at IS NOT NULL` : sql.fragment`AND archived_at IS NULL`;
  return db.inTenant(tenantId, (tx) =>
    scanPage(
      page,
      async (after, limit) => {
        const below = after === undefined ? sql.fragment`` : sql.fragment`AND id < ${after}`;
        const rows = await tx.any(sql.type(deadLetterRow)`
          SELECT ${COLUMNS}, NULL::bytea AS last_response_body FROM dead_letters
          WHERE tenant_id = ${tenantId} ${ofSubscription} ${shelf} ${below} ORDER BY id DESC LIMIT ${limit}`);
        return rows.map((row) => toDeadLetter(tenantId, row));
      },
      (letter) => letter.uuid,
      filtered ? (letter) => matchesFilter(filter, letter) : undefined,
    ),
  );
}

function matchesFilter(filter: DeadLetterFilter, letter: DeadLetter): boolean {
  return (
    (filter.eventType === undefined || matchesPattern(filter.eventType, letter.eventType)) &&
    (filter.reason === undefined || filter.reason === letter.reason) &&
    (filter.startMs === undefined || letter.deadAtMs >= filter.startMs) &&
    (filter.endMs === undefined || letter.deadAtMs < filter.endMs) &&
    (filter.lastStatus === undefined || Math.max(0, filter.lastStatus) === letter.lastStatus) &&
    (filter.lastErrorClass === undefined || filter.lastErrorClass === letter.lastErrorClass)
  );
}

/** The filter as SQL over `d`, a row of dead_letters. */
export function filterSql(filter: DeadLetterFilter) {
  const parts = [
    filter.archived === true ? sql.fragment`d.archived_at IS NOT NULL` : sql.fragment`d.archived_at IS NULL`,
  ];
  if (filter.lastStatus !== undefined) {
    const status = filter.lastStatus < 0 ? null : filter.lastStatus;
    parts.push(sql.fragment`d.last_status IS NOT DISTINCT FROM ${status}::int2`);
  }
  if (filter.lastErrorClass !== undefined)
    parts.push(sql.fragment`d.last_error_class = ${filter.lastErrorClass}`);
  if (filter.subscriptionId !== undefined)
    parts.push(sql.fragment`d.subscription_id = ${uuidOf(filter.subscriptionId)}`);
  if (filter.reason !== undefined) parts.push(sql.fragment`d.reason = ${filter.reason}`);
  if (filter.startMs !== undefined)
    parts.push(sql.fragment`d.dead_at >= to_timestamp(${filter.startMs / 1000})`);
  if (filter.endMs !== undefined) parts.push(sql.fragment`d.dead_at < to_timestamp(${filter.endMs / 1000})`);
  if (filter.eventType !== undefined) {
    parts.push(sql.fragment`d.event_type ~ ${patternRegex(filter.eventType)}`);
  }
  return sql.join(parts, sql.fragment` AND `);
}

/**
 * A pattern as a regular expression of Postgres; it holds only letters, digits, `_`, `-`, `.` and `*`. As everywhere,
 * wildcards do not match dispatch's own events.
 */
export function patternRegex(pattern: string): string {
  const segments = pattern.split('.').map((s) => (s === '**' ? '.+' : s === '*' ? '[^.]+' : s));
  const own = pattern.startsWith('*') ? '(?!dispatch\\.)' : '';
  return `^${own}${segments.join('\\.')}$`;
}

/**
 * From `moved`, deleted dead letters, to the queue: due at `dueAt`, an expression over it. The retry schedule begins anew:
 * retry_base is where the attempt count stood. One that stopped its line is there already, and goes on in its place.
 */
export const requeue = (dueAt: ReturnType<typeof sql.fragment>) => sql.fragment`INSERT INTO deliveries AS q
    (tenant_id, id, subscription_id, run_at, round_at, attempt_count, retry_base, order_key, order_seq)
  SELECT tenant_id, id, subscription_id, ${dueAt}, ${dueAt}, attempt_count, attempt_count, order_key, order_seq FROM moved
  ON CONFLICT (tenant_id, id) DO UPDATE SET run_at = excluded.run_at, round_at = excluded.round_at, lease = NULL,
    attempt_count = excluded.attempt_count, retry_base = excluded.retry_base`;

// attempt is a smallint: a delivery that was tried this often is not replayed any more.
export const REPLAYABLE = sql.fragment`d.attempt_count < 30000 AND EXISTS (SELECT FROM subscriptions s
  WHERE s.tenant_id = d.tenant_id AND s.id = d.subscription_id AND s.deleted_at IS NULL)`;

const movedRow = z.object({ subscription_id: z.string() });

/** Makes one a pending delivery again, due now. Returns its subscription. */
export async function replayDeadLetter(
  db: Database,
  tenantId: TenantId,
  deliveryId: DeliveryId,
): Promise<SubscriptionId> {
  return db.inTenant(tenantId, async (tx) => {
    const moved = await tx.maybeOneFirst(sql.type(movedRow)`
      WITH moved AS (
        DELETE FROM dead_letters d WHERE tenant_id = ${tenantId} AND id = ${uuidOf(deliveryId)} AND ${REPLAYABLE}
        RETURNING *), queued AS (${requeue(sql.fragment`now()`)})
      SELECT subscription_id FROM moved`);
    if (moved !== null) return idFromUuid('sub', moved) as SubscriptionId;
    const exists = await tx.exists(sql.typeAlias('any')`
      SELECT FROM dead_letters WHERE tenant_id = ${tenantId} AND id = ${uuidOf(deliveryId)}`);
    if (!exists) throw notFound('dead letter', deliveryId);
    throw new DispatchError(
      'FAILED_PRECONDITION',
      `the subscription of dead letter ${deliveryId} was deleted`,
      {
        reason: 'SUBSCRIPTION_DELETED',
      },
    );
  });
}

/** Most dead letters that one call discards. */
export const MAX_DISCARD = 1_000;

/** Ends dead letters for good: those listed, or up to 1,000 that match. Returns how many, to the audit log as well. */
export async function discardDeadLetters(
  db: Database,
  tenantId: TenantId,
  which: { readonly deliveryIds: readonly DeliveryId[] } | { readonly filter: DeadLetterFilter },
): Promise<number> {
  const condition =
    'filter' in which
      ? filterSql(which.filter)
      : sql.fragment`d.id = ANY(${sql.array(which.deliveryIds.map(uuidOf), 'uuid')})`;
  return db.inTenant(tenantId, async (tx) => {
    const { rowCount } = await tx.query(sql.typeAlias('void')`
      WITH gone AS (
        DELETE FROM dead_letters WHERE tenant_id = ${tenantId} AND id IN (
          SELECT id FROM dead_letters d WHERE d.tenant_id = ${tenantId} AND ${condition}
          ORDER BY id LIMIT ${MAX_DISCARD} FOR UPDATE)
        RETURNING tenant_id, id, subscription_id, attempt_count),
      opened AS (
        DELETE FROM deliveries q USING gone
        WHERE q.tenant_id = gone.tenant_id AND q.id = gone.id AND q.run_at = 'infinity')
      INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
      SELECT tenant_id, id, subscription_id, 'discarded', attempt_count FROM gone`);
    return rowCount;
  });
}
