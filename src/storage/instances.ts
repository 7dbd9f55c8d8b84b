// Who is running, by heartbeats on the database's clock. Table: instances (not tenant data). Limits that are not
// shared through Redis are divided by these numbers.
import { z } from 'zod';
import type { Role } from '../config.ts';
import { type Database, type ManyStatements, sql } from './database.ts';

export const HEARTBEAT_MS = 10_000;
/** An instance that has not been heard of for this long is gone. */
const EXPIRES = sql.fragment`now() + interval '31 s'`;

/**
 * The instances of a role: how many, and which of them this one is, 0-based by id. Not settled: others may not have
 * heard of this one yet and count without it.
 */
export type Standing = { readonly count: number; readonly rank: number; readonly isSettled: boolean };
export type Standings = { readonly api: Standing; readonly worker: Standing };
/** `databaseNowMs`: the database's clock while it answered, ms since 1970. */
export type Beat = Standings & { readonly databaseNowMs: number };

const row = z.object({
  id: z.string(),
  roles: z.array(z.string()),
  is_new: z.boolean(),
  now_ms: z.number(),
});

/**
 * The first time that this instance says so. One after the other: of two that start at the same moment neither would see the
 * other's row before it is committed, and each would have all of what the limits let pass until it is heard again.
 */
export function join(db: Pick<Database, 'many'>, id: string, roles: ReadonlySet<Role>): Promise<Beat> {
  return db.many.transaction(async (tx) => {
    await tx.query(sql.typeAlias('void')`LOCK TABLE instances IN SHARE ROW EXCLUSIVE MODE`);
    return beat(tx, id, roles);
  });
}

/** Says that this instance is alive, and reads who else is. */
export async function beat(
  statements: Pick<ManyStatements, 'any'>,
  id: string,
  roles: ReadonlySet<Role>,
): Promise<Beat> {
  const rows = await statements.any(sql.type(row)`
    WITH mine AS (
      INSERT INTO instances (id, roles, expires_at) VALUES (${id}, ${sql.array([...roles], 'text')}, ${EXPIRES})
      ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at RETURNING id, roles, started_at),
    gone AS (DELETE FROM instances WHERE expires_at < now() - interval '1 min'),
    alive AS (
      SELECT id, roles, started_at FROM instances WHERE expires_at > now() AND id <> ${id}
      UNION ALL SELECT id, roles, started_at FROM mine)
    SELECT id, roles, started_at > now() - interval '9.5 s' AS is_new,
      extract(epoch FROM clock_timestamp())::float8 * 1000 AS now_ms FROM alive ORDER BY id`);
  const standing = (role: Role): Standing => {
    const others = rows.filter((r) => r.id !== id && r.roles.includes(role));
    const isSettled = others.length === 0 || rows.every((r) => r.id !== id || !r.is_new);
    return { count: others.length + 1, rank: others.filter((r) => r.id < id).length, isSettled };
  };
  return { api: standing('api'), worker: standing('worker'), databaseNowMs: rows[0]!.now_ms };
}

/** Says that this instance is gone. */
export async function leave(db: Pick<Database, 'many'>, id: string): Promise<void> {
  await db.many.query(sql.typeAlias('void')`DELETE FROM instances WHERE id = ${id}`);
}
