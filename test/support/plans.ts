// What statements read: their plans, and what keeps the rows that are gone in their way.
import pg from 'pg';
import type { Database } from '../../src/storage/database.ts';

/** A session with a snapshot that it keeps. */
export async function openReader(url: string) {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  await client.query('SELECT FROM tenants');
  return { [Symbol.asyncDispose]: () => client.end() };
}

/** A pool that keeps the plans of what runs in it, by name; with `ANALYZE` it has run by then, and runs a second time. */
export function explaining(of: Database['claims'], options = 'COSTS') {
  const plans = new Map<string, string>();
  const query = async (statement: { name: string; text: string; values: unknown[] }) => {
    const { name, text, values } = statement;
    const { rows } = await of.query(`EXPLAIN (${options}) ${text}`, values);
    plans.set(name, rows.map((row) => row['QUERY PLAN']).join('\n'));
    return of.query(statement);
  };
  return { pool: { query } as unknown as typeof of, plans };
}
