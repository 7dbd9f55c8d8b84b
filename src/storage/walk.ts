// The walk over all queues: what finds the work that no hint told of, but for what was leased (leases.ts). Runs as dispatch_engine.
import { idFromUuid, type SubscriptionId, type TenantId } from '../domain/ids.ts';
import type { QueueKey } from './claims.ts';
import type { Statements } from './hot-pool.ts';
import { IN_DUE } from './parking.ts';
import { hashLeaf } from './partitions.ts';

/** A queue that holds something, and when its first delivery is due: ms since 1970, and from now (≤ 0: due). */
export type QueueHead = QueueKey & { readonly dueAtMs: number; readonly dueInMs: number };

/** Where a walk stands: behind a queue of a leaf. */
export type WalkPosition = {
  readonly leaf: number;
  readonly tenantId: string;
  readonly subscriptionUuid: string;
};

/** Some heads, and where the walk goes on; undefined: there are no more. */
export type WalkPage = { readonly heads: readonly QueueHead[]; readonly next: WalkPosition | undefined };

/** The heads of up to `limit` queues from a position, or from the first. */
export type Walk = (from: WalkPosition | undefined, limit: number) => Promise<WalkPage>;

const START: WalkPosition = {
  leaf: 0,
  tenantId: '',
  subscriptionUuid: '00000000-0000-0000-0000-000000000000',
};

/**
 * Walks the queues leaf by leaf, each in the order of its keys: a loose index scan over deliveries_due, which costs one
 * descent for each queue, however long it is. Over the parent table every step would descend into every leaf, as only a
 * tenant's id says which of them it is in.
 */
export function createWalk(pool: Statements): Walk {
  let text: string | undefined;
  return async (from = START, limit) => {
    text ??= textFor(await countLeaves(pool));
    const { rows } = await pool.query<{
      leaf: number;
      tenant_id: string;
      subscription_id: string;
      due_at_ms: number;
      due_in_ms: number;
    }>({ name: 'walk-due', text, values: [from.leaf, from.tenantId, from.subscriptionUuid, limit] });
    const heads = rows.map((row) => ({
      tenantId: row.tenant_id as TenantId,
      subscriptionId: idFromUuid('sub', row.subscription_id) as SubscriptionId,
      dueAtMs: row.due_at_ms,
      dueInMs: row.due_in_ms,
    }));
    const last = rows[limit - 1];
    const next = last && {
      leaf: last.leaf,
      tenantId: last.tenant_id,
      subscriptionUuid: last.subscription_id,
    };
    return { heads, next };
  };
}

/** Fixed at install. */
async function countLeaves(pool: Statements): Promise<number> {
  const { rows } = await pool.query<{ count: number }>(
    "SELECT count(*)::int4 AS count FROM pg_inherits WHERE inhparent = 'deliveries'::regclass",
  );
  return rows[0]!.count;
}

function textFor(leafCount: number): string {
  const leaves = Array.from({ length: leafCount }, (_, leaf) => leaf);
  const walks = leaves.map((leaf) => {
    const table = hashLeaf('deliveries', leaf);
    const from = `CASE $1::int4 WHEN ${leaf} THEN $2::text ELSE '${START.tenantId}' END,
      CASE $1::int4 WHEN ${leaf} THEN $3::uuid ELSE '${START.subscriptionUuid}'::uuid END`;
    return `walk_${leaf} AS (
      (SELECT tenant_id, subscription_id, run_at FROM ${table}
        WHERE (tenant_id, subscription_id) > (${from}) AND ${IN_DUE} ORDER BY tenant_id, subscription_id, run_at LIMIT 1)
      UNION ALL
      SELECT n.* FROM walk_${leaf} w CROSS JOIN LATERAL (
        SELECT d.tenant_id, d.subscription_id, d.run_at FROM ${table} d
        WHERE (d.tenant_id, d.subscription_id) > (w.tenant_id, w.subscription_id) AND ${IN_DUE}
        ORDER BY d.tenant_id, d.subscription_id, d.run_at LIMIT 1) n)`;
  });
  // Leaves before the position cost nothing, and those after it only what is asked for: a CTE is walked as far as it is read.
  const heads = leaves.map((leaf) => `SELECT ${leaf} AS leaf, * FROM walk_${leaf} WHERE $1::int4 <= ${leaf}`);
  return `WITH RECURSIVE ${walks.join(', ')}
    SELECT leaf, tenant_id, subscription_id, extract(epoch FROM run_at)::float8 * 1000 AS due_at_ms,
      extract(epoch FROM run_at - now())::float8 * 1000 AS due_in_ms
    FROM (${heads.join(' UNION ALL ')}) heads LIMIT $4`;
}
