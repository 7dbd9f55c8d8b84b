// Replay jobs: dead letters, or events of the history to one subscription, made pending deliveries step by step. Tables:
// replays, dead_letters, events, deliveries, attempts (read), subscriptions (read). Tenants' calls run as dispatch_tenant,
// the steps as dispatch_engine.
import { z } from 'zod';
import { DispatchError, notFound } from '../domain/errors.ts';
import {
  type EventId,
  idFromUuid,
  lowestUuidAt,
  type ReplayId,
  type SubscriptionId,
  type TenantId,
  uuidOf,
} from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import { type Database, sql, type TenantTransaction } from './database.ts';
import {
  type DeadLetterFilter,
  deadLetterFilterSchema,
  filterSql,
  patternRegex,
  REPLAYABLE,
  requeue,
} from './dead-letters.ts';

/** Which events of the history; fields that are set must all match. As it lies in replays.filter. */
export const eventFilterSchema = z.object({
  startMs: z.number().optional(),
  endMs: z.number().optional(),
  /** A pattern; without it and without ids, the patterns that the subscription had. */
  eventType: z.string().optional(),
  eventIds: z.array(z.string()).optional(),
  missing: z.boolean().optional(),
});
export type EventReplayFilter = z.infer<typeof eventFilterSchema>;

/** What a job replays. */
export type ReplayWhat =
  | { readonly kind: 'dead_letters'; readonly filter: DeadLetterFilter }
  | {
      readonly kind: 'events';
      readonly subscriptionId: SubscriptionId;
      readonly filter: EventReplayFilter;
    };

/** A replay job. Times in ms since 1970. */
export type Replay = {
  readonly tenantId: TenantId;
  readonly replayId: ReplayId;
  readonly what: ReplayWhat;
  readonly state: 'running' | 'finished' | 'cancelled';
  readonly replayedCount: number;
  /** Counted when it was asked for, no further than MAX_COUNTED. */
  readonly totalCount: number;
  /** Undefined: as fast as it goes. */
  readonly maxPerSecond: number | undefined;
  readonly createdAtMs: number;
  readonly finishedAtMs: number | undefined;
};

/** Dry runs and totals count no further. */
export const MAX_COUNTED = 1_000_000;

const replayRow = z.object({
  tenant_id: z.string(),
  id: z.string(),
  kind: z.enum(['dead_letters', 'events']),
  subscription_id: z.string().nullable(),
  filter: z.unknown(),
  state: z.enum(['running', 'finished', 'cancelled']),
  replayed_count: z.number(),
  total_count: z.number(),
  max_per_second: z.number().nullable(),
  created_at: z.number(),
  finished_at: z.number().nullable(),
});
const COLUMNS = sql.fragment`tenant_id, id, kind, subscription_id, filter, state, replayed_count, total_count,
  max_per_second, created_at, finished_at`;

function toWhat(row: Pick<z.infer<typeof replayRow>, 'kind' | 'subscription_id' | 'filter'>): ReplayWhat {
  if (row.kind === 'dead_letters')
    return { kind: 'dead_letters', filter: deadLetterFilterSchema.parse(row.filter) };
  const subscriptionId = idFromUuid('sub', row.subscription_id ?? '') as SubscriptionId;
  return { kind: 'events', subscriptionId, filter: eventFilterSchema.parse(row.filter) };
}

function toReplay(row: z.infer<typeof replayRow>): Replay {
  return {
    tenantId: row.tenant_id as TenantId,
    replayId: idFromUuid('rpl', row.id) as ReplayId,
    what: toWhat(row),
    state: row.state,
    replayedCount: row.replayed_count,
    totalCount: row.total_count,
    maxPerSecond: row.max_per_second ?? undefined,
    createdAtMs: row.created_at,
    finishedAtMs: row.finished_at ?? undefined,
  };
}

/** The conditions on `e`, a row of events, by which its key says whether a filter may mean it. */
function rangeSql(filter: EventReplayFilter) {
  const from = lowestUuidAt(filter.startMs ?? 0);
  const to = filter.endMs === undefined ? 'ffffffff-ffff-ffff-ffff-ffffffffffff' : lowestUuidAt(filter.endMs);
  const parts = [sql.fragment`e.id >= ${from} AND e.id < ${to}`];
  if (filter.eventIds !== undefined) {
    const ids = filter.eventIds.map((id) => uuidOf(id as EventId));
    parts.push(sql.fragment`e.id = ANY(${sql.array(ids, 'uuid')})`);
  }
  return sql.join(parts, sql.fragment` AND `);
}

/** The other conditions of a filter; `patterns` are what the type must match one of. */
function fitsSql(subscriptionId: SubscriptionId, filter: EventReplayFilter, patterns: readonly string[]) {
  const parts = [sql.fragment`true`];
  if (patterns.length > 0) {
    parts.push(sql.fragment`e.type ~ ANY(${sql.array(patterns.map(patternRegex), 'text')})`);
  }
  if (filter.missing === true) {
    // The deliveries of an event lie right behind it (ADR 0003).
    const ofEvent = (column: 'id' | 'delivery_id') => {
      const id = sql.identifier(['x', column]);
      return sql.fragment`x.tenant_id = e.tenant_id AND ${id} > e.id
        AND ${id} <= (left(e.id::text, 30) || 'ffffff')::uuid AND x.subscription_id = ${uuidOf(subscriptionId)}`;
    };
    parts.push(sql.fragment`NOT EXISTS (SELECT FROM deliveries x WHERE ${ofEvent('id')})
      AND NOT EXISTS (SELECT FROM dead_letters x WHERE ${ofEvent('id')})
      AND NOT EXISTS (SELECT FROM attempts x WHERE ${ofEvent('delivery_id')} AND x.outcome = 'succeeded')`);
  }
  return sql.join(parts, sql.fragment` AND `);
}

/** The patterns that the type of an event must match one of: none when ids say which. */
const patternsOf = (filter: EventReplayFilter, ofSubscription: readonly string[]): readonly string[] =>
  filter.eventType !== undefined ? [filter.eventType] : filter.eventIds !== undefined ? [] : ofSubscription;

const targetRow = z.object({
  event_types: z.array(z.string()),
  ordering: z.enum(['none', 'subscription', 'key']),
});

async function readTarget(
  tx: Pick<TenantTransaction, 'maybeOne'>,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
): Promise<z.infer<typeof targetRow> | null> {
  return tx.maybeOne(sql.type(targetRow)`
    SELECT event_types, ordering FROM subscriptions
    WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)} AND deleted_at IS NULL`);
}

async function count(tx: TenantTransaction, tenantId: TenantId, what: ReplayWhat): Promise<number> {
  if (what.kind === 'dead_letters') {
    return tx.oneFirst(sql.typeAlias('count')`
      SELECT count(*) AS count FROM (SELECT FROM dead_letters d
        WHERE d.tenant_id = ${tenantId} AND ${filterSql(what.filter)} AND ${REPLAYABLE} LIMIT ${MAX_COUNTED}) c`);
  }
  const { subscriptionId, filter } = what;
  const target = await readTarget(tx, tenantId, subscriptionId);
  if (target === null) throw notFound('subscription', subscriptionId);
  const fits = fitsSql(subscriptionId, filter, patternsOf(filter, target.event_types));
  return tx.oneFirst(sql.typeAlias('count')`
    SELECT count(*) AS count FROM (SELECT FROM events e
      WHERE e.tenant_id = ${tenantId} AND ${rangeSql(filter)} AND ${fits} LIMIT ${MAX_COUNTED}) c`);
}

/** How many a job would replay, up to MAX_COUNTED. Changes nothing. NOT_FOUND for an unknown subscription. */
export async function countReplay(db: Database, tenantId: TenantId, what: ReplayWhat): Promise<number> {
  return db.inTenant(tenantId, (tx) => count(tx, tenantId, what));
}

/** Most jobs of one tenant that are not finished. */
export const MAX_RUNNING_REPLAYS = 10;

/**
 * Records a job; maintenance carries it out. NOT_FOUND for an unknown tenant or subscription, RESOURCE_EXHAUSTED at the
 * limit.
 */
export async function createReplay(
  db: Database,
  tenantId: TenantId,
  replayId: ReplayId,
  what: ReplayWhat,
  maxPerSecond: number | undefined,
): Promise<Replay> {
  return db.inTenant(tenantId, async (tx) => {
    const running = await tx.oneFirst(sql.typeAlias('count')`
      SELECT count(*) AS count FROM replays WHERE tenant_id = ${tenantId} AND state = 'running'`);
    if (running >= MAX_RUNNING_REPLAYS) {
      const message = `${running} replays of tenant ${tenantId} are running, which is the most; wait for one to finish`;
      throw new DispatchError('RESOURCE_EXHAUSTED', message, {
        reason: 'TOO_MANY_REPLAYS',
        retryAfterMs: 10_000,
      });
    }
    const total = await count(tx, tenantId, what);
    const subscription = what.kind === 'events' ? uuidOf(what.subscriptionId) : null;
    const row = await tx.maybeOne(sql.type(replayRow)`
      INSERT INTO replays (tenant_id, id, kind, subscription_id, filter, state, max_per_second, total_count)
      SELECT tenant_id, ${uuidOf(replayId)}::uuid, ${what.kind}, ${subscription}::uuid, ${sql.jsonb(what.filter)},
        'running', ${maxPerSecond ?? null}::float8, ${total}
      FROM tenants WHERE tenant_id = ${tenantId} AND state <> 'deleting' RETURNING ${COLUMNS}`);
    if (row === null) throw notFound('tenant', tenantId);
    return toReplay(row);
  });
}

/** NOT_FOUND if it is not this tenant's. */
export async function getReplay(db: Database, tenantId: TenantId, replayId: ReplayId): Promise<Replay> {
  return db.inTenant(tenantId, (tx) => readReplay(tx, tenantId, replayId));
}

async function readReplay(tx: TenantTransaction, tenantId: TenantId, replayId: ReplayId): Promise<Replay> {
  const row = await tx.maybeOne(sql.type(replayRow)`
    SELECT ${COLUMNS} FROM replays WHERE tenant_id = ${tenantId} AND id = ${uuidOf(replayId)}`);
  if (row === null) throw notFound('replay', replayId);
  return toReplay(row);
}

/** One more than a page, newest first. */
export async function listReplays(db: Database, tenantId: TenantId, page: Page): Promise<Replay[]> {
  const after = page.after === undefined ? sql.fragment`` : sql.fragment`AND id < ${page.after}`;
  const rows = await db.inTenant(tenantId, (tx) =>
    tx.any(sql.type(replayRow)`
      SELECT ${COLUMNS} FROM replays WHERE tenant_id = ${tenantId} ${after} ORDER BY id DESC LIMIT ${page.size + 1}`),
  );
  return rows.map(toReplay);
}

/** Stops a job; one that is over stays as it is. Waits for the step that is being made. */
export async function cancelReplay(db: Database, tenantId: TenantId, replayId: ReplayId): Promise<Replay> {
  return db.inTenant(tenantId, async (tx) => {
    await tx.query(sql.typeAlias('void')`
      UPDATE replays SET state = 'cancelled', finished_at = now()
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(replayId)} AND state = 'running'`);
    return readReplay(tx, tenantId, replayId);
  });
}

/** A job that is not finished, and how long its rate has it wait for its next step. */
export type RunningReplay = Pick<Replay, 'tenantId' | 'replayId'> & { readonly waitMs: number };

const runningRow = z.object({ tenant_id: z.string(), id: z.string(), wait_ms: z.number() });

/** Up to 100 jobs that are not finished, those first that may go on first. */
export async function runningReplays(db: Pick<Database, 'many'>): Promise<RunningReplay[]> {
  const rows = await db.many.any(sql.type(runningRow)`SELECT tenant_id, id,
      greatest(0, coalesce(extract(epoch FROM next_at - now())::float8 * 1000, 0) - ${AHEAD_MS}) AS wait_ms
    FROM replays WHERE state = 'running' ORDER BY next_at NULLS FIRST, created_at LIMIT 100`);
  return rows.map((row) => ({
    tenantId: row.tenant_id as TenantId,
    replayId: idFromUuid('rpl', row.id) as ReplayId,
    waitMs: row.wait_ms,
  }));
}

/** What one step looks at, and what it makes pending at most. */
const STEP = 1_000;
/** A job with a rate is this far ahead of it at most: what it makes pending is due in its turn. */
const AHEAD_MS = 1_000;

/** What one step did. */
export type ReplayStep = {
  readonly movedCount: number;
  readonly isOver: boolean;
  /** The job as it is now, if this step was its last. */
  readonly finished: Replay | undefined;
};

const jobRow = replayRow.extend({ reached: z.string().nullable() });
type Job = z.infer<typeof jobRow>;
const stepRow = z.object({
  seen: z.number(),
  moved: z.number(),
  last_moved: z.string().nullable(),
  last_seen: z.string().nullable(),
});

/**
 * Carries a job one step on: looks at the next 1,000 and makes those that match pending, with a rate as many as are due
 * in the next second. What was moved, the count, the place reached and when the next step begins are committed
 * together, so a job that was cut short goes on where it stopped, replays nothing twice and keeps its rate.
 */
export async function stepReplay(
  db: Pick<Database, 'many'>,
  { tenantId, replayId }: Pick<Replay, 'tenantId' | 'replayId'>,
): Promise<ReplayStep> {
  return db.many.transaction(async (tx) => {
    const job = await tx.maybeOne(sql.type(jobRow)`
      SELECT ${COLUMNS}, reached FROM replays
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(replayId)} AND state = 'running' FOR UPDATE`);
    if (job === null) return { movedCount: 0, isOver: true, finished: undefined };
    const rate = job.max_per_second;
    const most = rate === null ? STEP : Math.min(STEP, Math.max(1, Math.round((rate * AHEAD_MS) / 1000)));
    const what = toWhat(job);
    const step =
      what.kind === 'dead_letters'
        ? await deadLetterStep(tx, job, what, most)
        : await eventStep(tx, job, what, most);
    // A step that made as many pending as it may has not looked at all that it saw.
    const isFull = step !== undefined && step.moved >= most;
    const isOver = step === undefined || (step.seen < STEP && !isFull);
    const reached = step === undefined ? null : isFull ? step.last_moved : step.last_seen;
    const moved = step?.moved ?? 0;
    const state = step === undefined ? 'cancelled' : isOver ? 'finished' : 'running';
    const row = await tx.one(sql.type(replayRow)`
      UPDATE replays SET replayed_count = replayed_count + ${moved}, reached = coalesce(${reached}::uuid, reached),
        state = ${state}, finished_at = CASE WHEN ${isOver} THEN now() END,
        next_at = ${rate === null ? sql.fragment`NULL` : sql.fragment`greatest(now(), next_at) + ${moved / rate}::float8 * interval '1 s'`}
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(replayId)} RETURNING ${COLUMNS}`);
    return { movedCount: moved, isOver, finished: isOver ? toReplay(row) : undefined };
  });
}

/** When the n-th of a step is due. */
const dueAt = (job: Job) =>
  job.max_per_second === null
    ? sql.fragment`now()`
    : sql.fragment`greatest(now(), (SELECT next_at FROM replays r WHERE r.tenant_id = ${job.tenant_id} AND r.id = ${job.id}))
        + (n - 1) * ${1 / job.max_per_second}::float8 * interval '1 s'`;

function deadLetterStep(
  tx: Pick<TenantTransaction, 'one'>,
  job: Job,
  { filter }: Extract<ReplayWhat, { kind: 'dead_letters' }>,
  most: number,
) {
  const below = job.reached ?? 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  return tx.one(sql.type(stepRow)`WITH seen AS MATERIALIZED (
      SELECT d.tenant_id, d.id, d.dead_at <= to_timestamp(${job.created_at / 1000}) + interval '1 ms'
        AND ${filterSql(filter)} AND ${REPLAYABLE} AS fits
      FROM dead_letters d
      WHERE d.tenant_id = ${job.tenant_id} AND d.id < ${below} ORDER BY d.id DESC LIMIT ${STEP}),
    todo AS MATERIALIZED (
      SELECT tenant_id, id, row_number() OVER (ORDER BY id DESC) AS n FROM seen WHERE fits ORDER BY id DESC LIMIT ${most}),
    moved AS (
      DELETE FROM dead_letters d USING todo WHERE d.tenant_id = todo.tenant_id AND d.id = todo.id RETURNING d.*, todo.n),
    queued AS (${requeue(dueAt(job))})
    SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM todo) AS moved,
      (SELECT id FROM todo ORDER BY id LIMIT 1) AS last_moved, (SELECT id FROM seen ORDER BY id LIMIT 1) AS last_seen`);
}

/** Undefined: the subscription is gone. */
async function eventStep(
  tx: Pick<TenantTransaction, 'one' | 'maybeOne'>,
  job: Job,
  { subscriptionId, filter }: Extract<ReplayWhat, { kind: 'events' }>,
  most: number,
): Promise<z.infer<typeof stepRow> | undefined> {
  const target = await readTarget(tx, job.tenant_id as TenantId, subscriptionId);
  if (target === null) return undefined;
  const after = job.reached ?? '00000000-0000-0000-0000-000000000000';
  // What comes while the job runs is delivered as ever.
  const bounded = { ...filter, endMs: Math.min(filter.endMs ?? job.created_at, job.created_at) };
  const line =
    target.ordering === 'none'
      ? sql.fragment`NULL::text`
      : target.ordering === 'subscription'
        ? sql.fragment`'*'`
        : sql.fragment`coalesce(ordering_key, '-' || id::text)`;
  const patterns = patternsOf(filter, target.event_types);
  return tx.one(sql.type(stepRow)`WITH seen AS MATERIALIZED (
      SELECT e.id, e.ordering_key, ${fitsSql(subscriptionId, filter, patterns)} AS fits
      FROM events e
      WHERE e.tenant_id = ${job.tenant_id} AND e.id > ${after} AND ${rangeSql(bounded)}
      ORDER BY e.id LIMIT ${STEP}),
    todo AS MATERIALIZED (
      SELECT id, ordering_key, row_number() OVER (ORDER BY id) AS n FROM seen WHERE fits ORDER BY id LIMIT ${most}),
    queued AS (
      INSERT INTO deliveries (tenant_id, id, subscription_id, run_at, round_at, order_key, order_seq)
      SELECT ${job.tenant_id}, (left(id::text, 30) || lpad(to_hex(nextval('replay_ordinals')), 6, '0'))::uuid,
        ${uuidOf(subscriptionId)}::uuid, ${dueAt(job)}, ${dueAt(job)}, ${line},
        CASE WHEN ${target.ordering !== 'none'} THEN (SELECT nextval('delivery_order')) + n END
      FROM todo)
    SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM todo) AS moved,
      (SELECT id FROM todo ORDER BY id DESC LIMIT 1) AS last_moved,
      (SELECT id FROM seen ORDER BY id DESC LIMIT 1) AS last_seen`);
}
