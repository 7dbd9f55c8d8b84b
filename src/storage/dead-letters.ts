// Dead letters and the jobs that replay them. Tables: dead_letters, replays, deliveries, closed_deliveries. Tenants'
// calls run as dispatch_tenant; the job's steps as dispatch_engine.
import { z } from 'zod';
import type { DeadLetterReason, ErrorClass } from '../domain/delivery.ts';
import { DispatchError, notFound } from '../domain/errors.ts';
import { matchesPattern } from '../domain/event-type.ts';
import {
  type DeliveryId,
  type EventId,
  encodeId,
  eventIdOf,
  idFromUuid,
  type ReplayId,
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
};

/** Which dead letters; fields that are set must all match. As it lies in replays.filter. */
export const deadLetterFilterSchema = z.object({
  subscriptionId: z.string().optional(),
  eventType: z.string().optional(),
  reason: z.enum(['attempts_exhausted', 'max_age_exceeded', 'event_expired']).optional(),
  startMs: z.number().optional(),
  endMs: z.number().optional(),
});
export type DeadLetterFilter = z.infer<typeof deadLetterFilterSchema>;

const deadLetterRow = z.object({
  id: z.string(),
  subscription_id: z.string(),
  event_type: z.string(),
  reason: z.enum(['attempts_exhausted', 'max_age_exceeded', 'event_expired']),
  last_status: z.number().nullable(),
  last_error_class: z.string(),
  last_error_message: z.string(),
  last_response_body: z.instanceof(Buffer).nullable(),
  attempt_count: z.number(),
  dead_at: z.number(),
});

const COLUMNS = sql.fragment`id, subscription_id, event_type, reason, last_status, last_error_class,
  last_error_message, attempt_count, dead_at`;

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
  const { subscriptionId: _inSql, ...rest } = filter;
  const filtered = Object.values(rest).some((value) => value !== undefined);
  return db.inTenant(tenantId, (tx) =>
    scanPage(
      page,
      async (after, limit) => {
        const below = after === undefined ? sql.fragment`` : sql.fragment`AND id < ${after}`;
        const rows = await tx.any(sql.type(deadLetterRow)`
          SELECT ${COLUMNS}, NULL::bytea AS last_response_body FROM dead_letters
          WHERE tenant_id = ${tenantId} ${ofSubscription} ${below} ORDER BY id DESC LIMIT ${limit}`);
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
    (filter.endMs === undefined || letter.deadAtMs < filter.endMs)
  );
}

/** The filter as SQL over `d`, a row of dead_letters. Patterns hold only letters, digits, `_`, `-`, `.` and `*`. */
function filterSql(filter: DeadLetterFilter) {
  const parts = [sql.fragment`true`];
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

function patternRegex(pattern: string): string {
  const segments = pattern.split('.').map((s) => (s === '**' ? '.+' : s === '*' ? '[^.]+' : s));
  return `^${segments.join('\\.')}$`;
}

// The retry schedule begins anew: retry_base is where the attempt count stood.
const REQUEUE = sql.fragment`INSERT INTO deliveries
    (tenant_id, id, subscription_id, run_at, round_at, attempt_count, retry_base)
  SELECT tenant_id, id, subscription_id, now(), now(), attempt_count, attempt_count FROM moved`;

// attempt is a smallint: a delivery that was tried this often is not replayed any more.
const REPLAYABLE = sql.fragment`d.attempt_count < 30000 AND EXISTS (SELECT FROM subscriptions s
  WHERE s.tenant_id = d.tenant_id AND s.id = d.subscription_id AND s.deleted_at IS NULL)`;

/** Makes one a pending delivery again, due now. Returns its subscription. */
export async function replayDeadLetter(
  db: Database,
  tenantId: TenantId,
  deliveryId: DeliveryId,
): Promise<SubscriptionId> {
  return db.inTenant(tenantId, async (tx) => {
    const moved = await tx.maybeOneFirst(sql.type(z.object({ subscription_id: z.string() }))`
      WITH moved AS (
        DELETE FROM dead_letters d WHERE tenant_id = ${tenantId} AND id = ${uuidOf(deliveryId)} AND ${REPLAYABLE}
        RETURNING *), queued AS (${REQUEUE})
      SELECT subscription_id FROM moved`);
    if (moved !== null) return idFromUuid('sub', moved) as SubscriptionId;
    const exists = await tx.exists(sql.type(z.object({}))`
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

/** Ends dead letters for good: those listed, or up to 1,000 that match. Returns how many. */
export async function discardDeadLetters(
  db: Database,
  tenantId: TenantId,
  which: { readonly deliveryIds: readonly DeliveryId[] } | { readonly filter: DeadLetterFilter },
): Promise<number> {
  const condition =
    'filter' in which
      ? filterSql(which.filter)
      : sql.fragment`d.id = ANY(${sql.array(which.deliveryIds.map(uuidOf), 'uuid')})`;
  const result = await db.inTenant(tenantId, (tx) =>
    tx.query(sql.typeAlias('void')`
      WITH gone AS (
        DELETE FROM dead_letters WHERE tenant_id = ${tenantId} AND id IN (
          SELECT id FROM dead_letters d WHERE d.tenant_id = ${tenantId} AND ${condition}
          ORDER BY id LIMIT ${MAX_DISCARD} FOR UPDATE)
        RETURNING tenant_id, id, subscription_id, attempt_count)
      INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
      SELECT tenant_id, id, subscription_id, 'discarded', attempt_count FROM gone`),
  );
  return result.rowCount;
}

/** A replay job. Times in ms since 1970. */
export type Replay = {
  readonly tenantId: TenantId;
  readonly replayId: ReplayId;
  readonly filter: DeadLetterFilter;
  readonly state: 'running' | 'finished';
  readonly replayedCount: number;
  readonly createdAtMs: number;
  readonly finishedAtMs: number | undefined;
};

const replayRow = z.object({
  tenant_id: z.string(),
  id: z.string(),
  filter: deadLetterFilterSchema,
  state: z.enum(['running', 'finished']),
  replayed_count: z.number(),
  created_at: z.number(),
  finished_at: z.number().nullable(),
});
const REPLAY_COLUMNS = sql.fragment`tenant_id, id, filter, state, replayed_count, created_at, finished_at`;

function toReplay(row: z.infer<typeof replayRow>): Replay {
  return {
    tenantId: row.tenant_id as TenantId,
    replayId: idFromUuid('rpl', row.id) as ReplayId,
    filter: row.filter,
    state: row.state,
    replayedCount: row.replayed_count,
    createdAtMs: row.created_at,
    finishedAtMs: row.finished_at ?? undefined,
  };
}

/** Most jobs of one tenant that are not finished. */
export const MAX_RUNNING_REPLAYS = 10;

/** Records a job; maintenance carries it out. NOT_FOUND for an unknown tenant, RESOURCE_EXHAUSTED at the limit. */
export async function createReplay(
  db: Database,
  tenantId: TenantId,
  replayId: ReplayId,
  filter: DeadLetterFilter,
): Promise<Replay> {
  return db.inTenant(tenantId, async (tx) => {
    const running = await tx.oneFirst(sql.type(z.object({ count: z.number() }))`
      SELECT count(*) AS count FROM replays WHERE tenant_id = ${tenantId} AND state = 'running'`);
    if (running >= MAX_RUNNING_REPLAYS) {
      const message = `${running} replays of tenant ${tenantId} are running, which is the most; wait for one to finish`;
      throw new DispatchError('RESOURCE_EXHAUSTED', message, {
        reason: 'TOO_MANY_REPLAYS',
        retryAfterMs: 10_000,
      });
    }
    const row = await tx.maybeOne(sql.type(replayRow)`
      INSERT INTO replays (tenant_id, id, filter, state)
      SELECT tenant_id, ${uuidOf(replayId)}::uuid, ${sql.jsonb(filter)}, 'running'
      FROM tenants WHERE tenant_id = ${tenantId} AND state <> 'deleting' RETURNING ${REPLAY_COLUMNS}`);
    if (row === null) throw notFound('tenant', tenantId);
    return toReplay(row);
  });
}

/** NOT_FOUND if it is not this tenant's. */
export async function getReplay(db: Database, tenantId: TenantId, replayId: ReplayId): Promise<Replay> {
  const row = await db.inTenant(tenantId, (tx) =>
    tx.maybeOne(sql.type(replayRow)`
      SELECT ${REPLAY_COLUMNS} FROM replays WHERE tenant_id = ${tenantId} AND id = ${uuidOf(replayId)}`),
  );
  if (row === null) throw notFound('replay', replayId);
  return toReplay(row);
}

/** Up to 100 jobs that are not finished, oldest first. */
export async function runningReplays(db: Pick<Database, 'many'>): Promise<Replay[]> {
  const rows = await db.many.any(sql.type(replayRow)`
    SELECT ${REPLAY_COLUMNS} FROM replays WHERE state = 'running' ORDER BY created_at LIMIT 100`);
  return rows.map(toReplay);
}

const STEP = 1_000;

/**
 * Carries a job one step on: looks at the next 1,000 dead letters, from new to old, and requeues those that match.
 * What was moved, the count and the place reached are committed together, so a job that was cut short goes on where
 * it stopped and replays nothing twice. Returns how many were requeued and whether the job is finished.
 */
export async function stepReplay(
  db: Pick<Database, 'many'>,
  replay: Pick<Replay, 'tenantId' | 'replayId'>,
): Promise<{ readonly movedCount: number; readonly finished: boolean }> {
  return db.many.transaction(async (tx) => {
    const job = await tx.maybeOne(sql.type(
      z.object({ filter: deadLetterFilterSchema, reached: z.string().nullable(), created_at: z.number() }),
    )`SELECT filter, reached, created_at FROM replays
      WHERE tenant_id = ${replay.tenantId} AND id = ${uuidOf(replay.replayId)} AND state = 'running' FOR UPDATE`);
    if (job === null) return { movedCount: 0, finished: true };
    const below = job.reached ?? 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    const step = await tx.one(sql.type(
      z.object({ seen: z.number(), moved: z.number(), reached: z.string().nullable() }),
    )`WITH seen AS MATERIALIZED (
        SELECT d.tenant_id, d.id FROM dead_letters d
        WHERE d.tenant_id = ${replay.tenantId} AND d.id < ${below} ORDER BY d.id DESC LIMIT ${STEP}),
      moved AS (
        DELETE FROM dead_letters d USING seen WHERE d.tenant_id = seen.tenant_id AND d.id = seen.id
          AND d.dead_at <= to_timestamp(${job.created_at / 1000}) + interval '1 ms'
          AND ${filterSql(job.filter)} AND ${REPLAYABLE}
        RETURNING d.*),
      queued AS (${REQUEUE})
      SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM moved) AS moved,
        (SELECT id FROM seen ORDER BY id LIMIT 1) AS reached`);
    const finished = step.seen < STEP;
    await tx.query(sql.typeAlias('void')`
      UPDATE replays SET replayed_count = replayed_count + ${step.moved},
        reached = coalesce(${step.reached}::uuid, reached), state = ${finished ? 'finished' : 'running'},
        finished_at = CASE WHEN ${finished} THEN now() END
      WHERE tenant_id = ${replay.tenantId} AND id = ${uuidOf(replay.replayId)}`);
    return { movedCount: step.moved, finished };
  });
}
