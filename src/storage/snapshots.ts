// How old the oldest snapshot in this database is. Tables: pg_stat_activity, pg_prepared_xacts.
import { asOwner } from './database.ts';

/**
 * In seconds; 0: there is none. As the owner, who sees its own sessions, and those of other roles if it is a member of
 * pg_monitor. Vacuums do not hold each other up and are left out.
 */
export function oldestSnapshotSeconds(ownerUrl: string): Promise<number> {
  return asOwner(ownerUrl, async (client) => {
    const { rows } = await client.query<{ seconds: number }>(
      `SELECT coalesce(extract(epoch FROM clock_timestamp() - min(began))::float8, 0) AS seconds FROM (
         SELECT xact_start AS began FROM pg_stat_activity
         WHERE datname = current_database() AND backend_type <> 'autovacuum worker' AND pid <> pg_backend_pid()
           AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
         UNION ALL SELECT prepared FROM pg_prepared_xacts WHERE database = current_database()) s`,
    );
    return rows[0]?.seconds ?? 0;
  });
}
