// One leader for each piece of background work, by a lease in the database. Table: leaders.
import { type Database, sql } from './database.ts';

/** Takes or renews the lease `name` for `ttlMs`, by the database's clock. False: another holder has it. */
export async function tryLead(
  db: Pick<Database, 'many'>,
  name: string,
  holder: string,
  ttlMs: number,
): Promise<boolean> {
  const row = await db.many.maybeOne(sql.typeAlias('any')`
    INSERT INTO leaders AS l (name, holder, expires_at)
    VALUES (${name}, ${holder}, now() + ${ttlMs} * interval '1 ms')
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
      WHERE l.holder = excluded.holder OR l.expires_at <= now()
    RETURNING name`);
  return row !== null;
}

/** Gives the lease back, so that the next leader need not wait for its end. */
export async function stopLeading(db: Pick<Database, 'many'>, name: string, holder: string): Promise<void> {
  await db.many.query(sql.typeAlias('void')`DELETE FROM leaders WHERE name = ${name} AND holder = ${holder}`);
}
