// Connections to Postgres. Two roles (ADR 0004): `dispatch_engine` runs the statements that work for many tenants,
// `dispatch_tenant` sees one tenant at a time and nothing without `app.tenant_id`. The login user of the URL owns
// the tables and is used for migrations and partition DDL only.

import { randomBytes } from 'node:crypto';
import pg from 'pg';
import {
  createPool,
  createSqlTag,
  createTypeParserPreset,
  type DatabasePool,
  type DatabaseTransactionConnection,
  type Interceptor,
} from 'slonik';
import { z } from 'zod';
import type { Change } from '../domain/audit.ts';
import { DispatchError } from '../domain/errors.ts';
import { createIdSource, type TenantId, uuidOf } from '../domain/ids.ts';

/** SQL with the rows parsed by a schema; `sql.typeAlias('void')` for statements without rows. */
export const sql = createSqlTag({ typeAliases: { void: z.object({}).strict() } });

export type TenantTransaction = DatabaseTransactionConnection;

/** The open database. */
export type Database = AsyncDisposable & {
  /** Hot statements, prepared by name, as dispatch_engine (ADR 0005 says why not slonik). */
  readonly engine: pg.Pool;
  /** Claims, prepared by name, as dispatch_engine; their plans never hash a queue. */
  readonly claims: pg.Pool;
  /** All other statements over many tenants, as dispatch_engine. */
  readonly many: DatabasePool;
  /**
   * Runs `work` in one transaction as dispatch_tenant with `app.tenant_id` set: row-level security holds it there.
   */
  readonly inTenant: <T>(tenantId: TenantId, work: (tx: TenantTransaction) => Promise<T>) => Promise<T>;
  /** The same database, on which every inTenant() writes this change to the audit log in its transaction. */
  readonly audited: (change: Change) => Database;
  /** The URL of the owner, for LISTEN, migrations and DDL. */
  readonly ownerUrl: string;
};

/**
 * Opens the pools; connections are made when first used. `poolSize` is per role. `onIdleError` hears about
 * connections that broke while nobody used them.
 */
export async function openDatabase(
  ownerUrl: string,
  poolSize: number,
  onIdleError: (error: Error) => void,
): Promise<Database> {
  const hotPool = (name: string, settings: string, max: number): pg.Pool => {
    const pool = new pg.Pool({
      connectionString: urlAs(ownerUrl, 'dispatch_engine', settings),
      max,
      idleTimeoutMillis: 60_000,
      connectionTimeoutMillis: 5_000,
      application_name: name,
    });
    pool.on('error', onIdleError);
    return pool;
  };
  const engine = hotPool('dispatch-engine', ENGINE_SETTINGS, poolSize);
  const claims = hotPool('dispatch-claims', CLAIM_SETTINGS, Math.min(poolSize, MAX_CLAIM_CONNECTIONS));
  const many = await openSlonik(urlAs(ownerUrl, 'dispatch_engine', ENGINE_SETTINGS), 4, onIdleError);
  const tenant = await openSlonik(urlAs(ownerUrl, 'dispatch_tenant', ''), poolSize, onIdleError);
  const ids = createIdSource(Date.now, randomBytes);
  const create = (change: Change | undefined): Database => ({
    engine,
    claims,
    many,
    ownerUrl,
    audited: create,
    inTenant: (tenantId, work) =>
      tenant.transaction(async (tx) => {
        await tx.query(
          sql.type(
            z.object({ set_config: z.string() }),
          )`SELECT set_config('app.tenant_id', ${tenantId}, true)`,
        );
        const result = await work(tx);
        if (change !== undefined) {
          await tx.query(sql.typeAlias('void')`
            INSERT INTO audit_log (tenant_id, id, actor, action, resource, address, detail)
            VALUES (${tenantId}, ${uuidOf(ids.next('aud'))}, ${change.actor}, ${change.action}, ${change.resource},
              ${change.address}, ${sql.jsonb(change.detail)})`);
        }
        return result;
      }),
    async [Symbol.asyncDispose]() {
      await Promise.all([engine.end(), claims.end(), many.end(), tenant.end()]);
    },
  });
  return create(undefined);
}

// Queue-like tables change size faster than their statistics: look-ups by key must never turn into scans or merges.
const ENGINE_SETTINGS = '-c enable_seqscan=off -c enable_mergejoin=off -c jit=off -c statement_timeout=30000';
// Of a queue of 10,000 the planner would hash all to update 50: 2 ms where look-ups take 0.2. Not for all that is hot:
// what stores events joins lists with lists.
const CLAIM_SETTINGS = `${ENGINE_SETTINGS} -c enable_hashjoin=off`;
/** One is used at a time, more only for queues with an order. */
const MAX_CLAIM_CONNECTIONS = 4;

function urlAs(ownerUrl: string, role: string, settings: string): string {
  const url = new URL(ownerUrl);
  const given = url.searchParams.get('options') ?? '';
  url.searchParams.set('options', `${given} -c role=${role} ${settings}`.trim());
  return url.toString();
}

/** Every bigint of ours counts something: it fits in a double, or something is very wrong. */
function safeInteger(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value)) throw new Error(`${text} is too large for a count`);
  return value;
}

const parseRows: Interceptor = {
  name: 'parse-rows',
  transformRow: (context, _query, row) => {
    const parser = context.resultParser as z.ZodType | undefined;
    return parser === undefined ? row : (parser.parse(row) as typeof row);
  },
};

function openSlonik(
  url: string,
  maxPoolSize: number,
  onIdleError: (error: Error) => void,
): Promise<DatabasePool> {
  const pool = createPool(url, {
    maxPoolSize,
    minPoolSize: 0,
    idleTimeout: 60_000,
    connectionTimeout: 5_000,
    statementTimeout: 30_000,
    interceptors: [parseRows],
    typeParsers: [...createTypeParserPreset(), { name: 'int8', parse: safeInteger }],
    // Everything here is set by SET LOCAL inside a transaction, so there is nothing to reset; the default (DISCARD
    // ALL) would cost a round trip each time and drop the role that the connection was opened with.
    resetConnection: async () => {},
  });
  return Promise.resolve(pool).then((opened) => {
    opened.on('error', onIdleError);
    return opened;
  });
}

/**
 * Lends one connection of a pool to `work`. If that fails the connection is closed: whatever it was in the middle of is
 * rolled back, and one that serves a database which is read-only now is not used again.
 */
export async function onConnection<T>(
  pool: pg.Pool,
  work: (client: pg.PoolClient) => Promise<T>,
): Promise<T> {
  const client = await pool.connect();
  // The pool listens only to connections that are not lent: a break that nobody hears would end the process. What was in
  // hand is rejected too, and handled by whoever asked.
  const onBreak = () => {};
  client.on('error', onBreak);
  let failure: unknown;
  try {
    return await work(client);
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    client.release(failure !== undefined);
    client.off('error', onBreak);
  }
}

/** Opens one connection as the owner of the tables, uses it and closes it. */
export async function asOwner<T>(ownerUrl: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({
    connectionString: ownerUrl,
    connectionTimeoutMillis: 5_000,
    application_name: 'dispatch-owner',
  });
  client.on('error', () => {}); // a broken connection also rejects the query in hand, which is where it is handled
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

/** Throws if a service role could pass by row-level security: by BYPASSRLS, as superuser or as owner of a table. */
export async function assertRolesAreBound(client: pg.Client): Promise<void> {
  const { rows } = await client.query<{ problem: string }>(`
    SELECT rolname || ' has ' || CASE WHEN rolsuper THEN 'SUPERUSER' ELSE 'BYPASSRLS' END AS problem FROM pg_roles
      WHERE rolname IN ('dispatch_tenant', 'dispatch_engine') AND (rolsuper OR rolbypassrls)
    UNION ALL
    SELECT rolname || ' owns ' || relname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
      WHERE rolname IN ('dispatch_tenant', 'dispatch_engine')`);
  const first = rows[0];
  if (first !== undefined) {
    throw new Error(
      `the database role ${first.problem}: row-level security would not hold, so dispatch does not start`,
    );
  }
}

/** SQLSTATEs that pass when tried again: the server is away, shutting down, read-only, or another was faster. */
const PASSING = /^(?:08|40|57P|53|25006|55P03|57014)/;

/** UNAVAILABLE or RESOURCE_EXHAUSTED for an error that the database's state explains; undefined for any other. */
export function databaseUnavailable(error: unknown): DispatchError | undefined {
  for (let e = error; e instanceof Error; e = e.cause) {
    const code = 'code' in e && typeof e.code === 'string' ? e.code : '';
    if (code === '53100') {
      return new DispatchError('RESOURCE_EXHAUSTED', 'the database is out of disk space', {
        cause: error,
        reason: 'DATABASE_FULL',
        retryAfterMs: 30_000,
      });
    }
    const away =
      PASSING.test(code) ||
      /^E(?:CONN|PIPE|TIMEDOUT|HOST|NET|NOTFOUND|AI_AGAIN)/.test(code) ||
      /connection terminated|connection timeout|timeout exceeded when trying to connect|Connection ended|not queryable|pool is (?:shutting down|ended)|Cannot use a pool after|connection error/i.test(
        e.message,
      );
    if (away) {
      return new DispatchError('UNAVAILABLE', 'the database is not available; try again', {
        cause: error,
        reason: 'DATABASE_UNAVAILABLE',
        retryAfterMs: 1_000,
      });
    }
  }
  return undefined;
}
