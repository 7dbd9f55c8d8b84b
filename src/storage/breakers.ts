// The transitions of circuit breakers: what the API shows, and how all workers learn of them. Table: breakers. Counting
// is the limits' business; this is written when a breaker opens or closes, and at no other time.
import { z } from 'zod';
import type { BreakerReason } from '../domain/breaker.ts';
import { type SubscriptionId, type TenantId, uuidOf } from '../domain/ids.ts';
import type { BreakerRecord } from '../domain/subscription.ts';
import { type Database, sql } from './database.ts';

/** A breaker as JSON, in a SELECT of `subscriptions s`; null for one that never opened. */
export const BREAKER_JSON = sql.fragment`(SELECT jsonb_build_object('phase', b.phase, 'reason', b.reason,
    'openCount', b.open_count, 'changedAtMs', extract(epoch FROM b.changed_at) * 1000,
    'untilMs', extract(epoch FROM b.until) * 1000, 'agoMs', extract(epoch FROM now() - b.changed_at) * 1000,
    'openForMs', extract(epoch FROM b.until - now()) * 1000)
  FROM breakers b WHERE b.tenant_id = s.tenant_id AND b.subscription_id = s.id)`;

export const breakerSchema = z.object({
  phase: z.enum(['open', 'closed']),
  reason: z.enum(['consecutive_failures', 'failure_rate', 'probe_failed', '']),
  openCount: z.number(),
  changedAtMs: z.number(),
  untilMs: z.number().nullable(),
  /** By the database's clock: ms since it changed, and until a probe may go out. */
  agoMs: z.number(),
  openForMs: z.number().nullable(),
});

export function toBreaker(row: z.infer<typeof breakerSchema>): BreakerRecord {
  const { phase, reason, openCount, changedAtMs, untilMs } = row;
  const until = untilMs === null ? undefined : Math.round(untilMs);
  return { phase, reason, openCount, changedAtMs: Math.round(changedAtMs), untilMs: until };
}

/** Writes a transition. Nothing if the subscription is gone. */
export async function writeBreaker(
  db: Pick<Database, 'many'>,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  breaker: {
    readonly phase: 'open' | 'closed';
    readonly reason: BreakerReason;
    readonly openCount: number;
    readonly openForMs: number;
  },
): Promise<void> {
  const until =
    breaker.phase === 'open'
      ? sql.fragment`now() + ${breaker.openForMs} * interval '1 ms'`
      : sql.fragment`NULL::timestamptz`;
  await db.many.query(sql.typeAlias('void')`
    INSERT INTO breakers (tenant_id, subscription_id, phase, reason, open_count, until)
    SELECT s.tenant_id, s.id, ${breaker.phase}, ${breaker.reason}, ${breaker.openCount}, ${until}
    FROM subscriptions s
    WHERE s.tenant_id = ${tenantId} AND s.id = ${uuidOf(subscriptionId)} AND s.deleted_at IS NULL
    ON CONFLICT (tenant_id, subscription_id) DO UPDATE SET phase = excluded.phase, reason = excluded.reason,
      open_count = excluded.open_count, changed_at = now(), until = excluded.until`);
}
