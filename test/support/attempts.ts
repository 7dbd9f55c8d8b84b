// When attempts began, as recorded.
import type pg from 'pg';
import { uuidOf } from '../../src/domain/ids.ts';

/**
 * When requests began that were recorded by now, by the processes' own clocks (this machine's), Unix ms, in order: of one
 * subscription, or of all. They keep a rate; what the network or a busy receiver bunches is not theirs.
 */
export async function attemptsAtMs(
  owner: Pick<pg.Client, 'query'>,
  subscriptionId?: string,
): Promise<number[]> {
  const { rows } = await owner.query<{ at: number }>(
    `SELECT extract(epoch FROM started_at)::float8 * 1000 AS at FROM attempts
     WHERE $1::uuid IS NULL OR subscription_id = $1 ORDER BY started_at`,
    [subscriptionId === undefined ? null : uuidOf(subscriptionId)],
  );
  return rows.map(({ at }) => at);
}
