// How endpoints are doing over days: since when a subscription has had no success, and what is done about it. Tables:
// subscription_health, subscription_probes, subscriptions and tenants (read). Runs as dispatch_engine. A subscription whose
// attempts succeed has no row, so that health costs nothing where there is any.
import { z } from 'zod';
import { idFromUuid, type SubscriptionId, type TenantId, uuidOf } from '../domain/ids.ts';
import type { TenantPolicy } from '../domain/policy.ts';
import type { QueueKey } from './claims.ts';
import { type Database, sql } from './database.ts';

/** Attempts that failed since the last success, and how long ago the first of them was. */
export type Failing = QueueKey & { readonly failureCount: number; readonly sinceMsAgo: number };

type Many = Pick<Database, 'many'>;

const ids = (queues: readonly QueueKey[]) =>
  sql.array(
    queues.map((q) => uuidOf(q.subscriptionId)),
    'uuid',
  );
const tenants = (queues: readonly QueueKey[]) =>
  sql.array(
    queues.map((q) => q.tenantId),
    'text',
  );

/** Writes what a worker saw in the last seconds: the successes first, since what failed came after them. */
export async function writeHealth(
  db: Many,
  succeeded: readonly QueueKey[],
  failing: readonly Failing[],
): Promise<void> {
  if (succeeded.length > 0) {
    await db.many.query(sql.typeAlias('void')`
      DELETE FROM subscription_health h
      USING (SELECT unnest(${tenants(succeeded)}) AS tenant_id, unnest(${ids(succeeded)}) AS id) s
      WHERE h.tenant_id = s.tenant_id AND h.subscription_id = s.id`);
  }
  if (failing.length === 0) return;
  const counts = sql.array(
    failing.map((f) => f.failureCount),
    'int8',
  );
  const ago = sql.array(
    failing.map((f) => f.sinceMsAgo),
    'float8',
  );
  // In one order everywhere, so that two workers never wait for each other.
  await db.many.query(sql.typeAlias('void')`
    INSERT INTO subscription_health AS h (tenant_id, subscription_id, failing_since, failure_count)
    SELECT f.tenant_id, f.id, now() - f.ago * interval '1 ms', f.count
    FROM unnest(${tenants(failing)}, ${ids(failing)}, ${counts}, ${ago}) AS f (tenant_id, id, count, ago)
    JOIN subscriptions s ON s.tenant_id = f.tenant_id AND s.id = f.id AND s.deleted_at IS NULL AND s.state = 'active'
    ORDER BY f.tenant_id, f.id
    ON CONFLICT (tenant_id, subscription_id) DO UPDATE SET failure_count = h.failure_count + excluded.failure_count`);
}

/** What has to be done about a subscription's health. */
export type HealthTask = QueueKey & {
  readonly task: 'disable' | 'probe';
  /** Of one to disable. */
  readonly failureCount: number;
  readonly failingSinceMs: number;
};

const taskRow = z.object({
  tenant_id: z.string(),
  subscription_id: z.string(),
  task: z.enum(['disable', 'probe']),
  failure_count: z.number(),
  failing_since: z.number(),
});

const own = (field: string, value: number) =>
  sql.fragment`coalesce((t.policy->>${field})::float8, ${value}::float8)`;

/** Subscriptions to disable, and disabled ones to probe: up to 100 of the one and 20 of the other. */
export async function healthTasks(db: Many, defaults: TenantPolicy): Promise<HealthTask[]> {
  const after = own('autoDisableAfterMs', defaults.autoDisableAfterMs);
  const failures = own('autoDisableFailures', defaults.autoDisableFailures);
  const interval = own('probeIntervalMs', defaults.probeIntervalMs);
  const rows = await db.many.any(sql.type(taskRow)`
    (SELECT h.tenant_id, h.subscription_id, 'disable' AS task, h.failure_count, h.failing_since
      FROM subscription_health h JOIN tenants t ON t.tenant_id = h.tenant_id
      JOIN subscriptions s ON s.tenant_id = h.tenant_id AND s.id = h.subscription_id
      WHERE s.state = 'active' AND s.deleted_at IS NULL AND ${after} > 0 AND h.failure_count >= ${failures}
        AND h.failing_since < now() - ${after} * interval '1 ms' LIMIT 100)
    UNION ALL
    (SELECT s.tenant_id, s.id, 'probe', 0, now()
      FROM tenants t JOIN subscriptions s ON s.tenant_id = t.tenant_id
      LEFT JOIN subscription_probes p ON p.tenant_id = s.tenant_id AND p.subscription_id = s.id
      WHERE ${interval} > 0 AND t.state = 'active' AND s.state = 'disabled' AND s.is_probed AND s.deleted_at IS NULL
        AND coalesce(p.next_at, s.updated_at + ${interval} * interval '1 ms') <= now() LIMIT 20)`);
  return rows.map((row) => ({
    tenantId: row.tenant_id as TenantId,
    subscriptionId: idFromUuid('sub', row.subscription_id) as SubscriptionId,
    task: row.task,
    failureCount: row.failure_count,
    failingSinceMs: row.failing_since,
  }));
}

/** Notes that a subscription is being probed: the next probe is an interval away, whatever comes of this one. */
export async function noteProbe(
  db: Many,
  { tenantId, subscriptionId }: QueueKey,
  defaults: TenantPolicy,
): Promise<void> {
  await db.many.query(sql.typeAlias('void')`
    INSERT INTO subscription_probes (tenant_id, subscription_id, next_at)
    SELECT t.tenant_id, ${uuidOf(subscriptionId)}::uuid,
      now() + ${own('probeIntervalMs', defaults.probeIntervalMs)} * interval '1 ms'
    FROM tenants t WHERE t.tenant_id = ${tenantId}
    ON CONFLICT (tenant_id, subscription_id) DO UPDATE SET next_at = excluded.next_at`);
}

/** A quota that a tenant has used the given part of, in percent, and was not told of yet in this period. */
export type QuotaAlert = {
  readonly tenantId: TenantId;
  readonly quota: 'events_per_day' | 'events_per_month';
  readonly period: string;
  readonly threshold: number;
  readonly limit: number;
  readonly used: number;
};

const alertRow = z.object({
  tenant_id: z.string(),
  quota: z.enum(['events_per_day', 'events_per_month']),
  period: z.string(),
  threshold: z.number(),
  quota_limit: z.number(),
  used: z.number(),
});

/**
 * Finds tenants that have used 80 or 100 % of a quota of events and notes that they are told: each threshold once in a
 * period. `limits`: the configured defaults.
 */
export async function takeQuotaAlerts(
  db: Many,
  limits: { readonly eventsPerDay: number; readonly eventsPerMonth: number },
): Promise<QuotaAlert[]> {
  const limit = (field: string, value: number) =>
    sql.fragment`coalesce((t.quota->>${field})::float8, ${value}::float8)`;
  const rows = await db.many.any(sql.type(alertRow)`
    WITH used AS (
      SELECT t.tenant_id, q.quota, q.period, q.quota_limit,
        (SELECT coalesce(sum(u.events), 0) FROM usage u WHERE u.tenant_id = t.tenant_id AND u.hour >= q.since) AS used
      FROM tenants t CROSS JOIN LATERAL (VALUES
        ('events_per_day', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD'), date_trunc('day', now(), 'UTC'),
          ${limit('eventsPerDay', limits.eventsPerDay)}),
        ('events_per_month', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM'), date_trunc('month', now(), 'UTC'),
          ${limit('eventsPerMonth', limits.eventsPerMonth)})
      ) AS q (quota, period, since, quota_limit) WHERE q.quota_limit > 0),
    alerted AS (
      INSERT INTO quota_alerts (tenant_id, quota, period, threshold)
      SELECT tenant_id, quota, period, threshold FROM used CROSS JOIN (VALUES (80), (100)) AS x (threshold)
      WHERE used * 100 >= quota_limit * threshold
      ON CONFLICT DO NOTHING RETURNING tenant_id, quota, period, threshold)
    SELECT a.*, u.quota_limit, u.used::float8 FROM alerted a
    JOIN used u ON u.tenant_id = a.tenant_id AND u.quota = a.quota`);
  return rows.map(({ tenant_id, quota_limit, ...row }) => ({
    ...row,
    tenantId: tenant_id as TenantId,
    limit: quota_limit,
  }));
}

/** Forgets what tenants were told of in periods that are over. */
export async function pruneQuotaAlerts(db: Many): Promise<number> {
  const result = await db.many.query(sql.typeAlias('void')`
    DELETE FROM quota_alerts WHERE alerted_at < now() - interval '40 days'`);
  return result.rowCount;
}

const expiryRow = z.object({
  tenant_id: z.string(),
  days: z.number(),
  expiry: z.enum(['archive', 'discard']),
});

/**
 * Archives or discards a chunk of the dead letters that are older than their tenants' policies let them be. Returns how
 * many.
 */
export async function expireDeadLetters(db: Many, defaults: TenantPolicy): Promise<number> {
  const rows = await db.many.any(sql.type(expiryRow)`SELECT * FROM (
      SELECT t.tenant_id, ${own('deadLetterDays', defaults.deadLetterDays)} AS days,
        coalesce(t.policy->>'deadLetterExpiry', ${defaults.deadLetterExpiry}) AS expiry
      FROM tenants t WHERE t.state <> 'deleting') p WHERE days > 0 AND expiry <> 'none'`);
  let count = 0;
  for (const { tenant_id, days, expiry } of rows) {
    // Nothing died before its event was there: the key bounds what is looked at.
    const expired = sql.fragment`SELECT d.tenant_id, d.id FROM dead_letters d
      WHERE d.tenant_id = ${tenant_id} AND d.dead_at < now() - ${days} * interval '1 day' AND d.archived_at IS NULL
        AND d.id < (lpad(to_hex(((extract(epoch FROM now()) - ${days} * 86400) * 1000)::int8), 12, '0')
          || repeat('0', 20))::uuid
      LIMIT 5000`;
    const result =
      expiry === 'archive'
        ? await db.many.query(sql.typeAlias('void')`
            UPDATE dead_letters d SET archived_at = now() FROM (${expired}) e
            WHERE d.tenant_id = e.tenant_id AND d.id = e.id`)
        : await db.many.query(sql.typeAlias('void')`
            WITH gone AS (
              DELETE FROM dead_letters d USING (${expired}) e WHERE d.tenant_id = e.tenant_id AND d.id = e.id
              RETURNING d.tenant_id, d.id, d.subscription_id, d.attempt_count),
            opened AS (
              DELETE FROM deliveries q USING gone
              WHERE q.tenant_id = gone.tenant_id AND q.id = gone.id AND q.run_at = 'infinity')
            INSERT INTO closed_deliveries (tenant_id, id, subscription_id, state, attempt_count)
            SELECT tenant_id, id, subscription_id, 'discarded', attempt_count FROM gone`);
    count += result.rowCount;
  }
  return count;
}
