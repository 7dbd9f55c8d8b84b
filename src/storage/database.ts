// Connections to Postgres. Two roles (ADR 0004): `dispatch_engine` runs the statements that work for many tenants,
// `dispatch_tenant` sees one tenant at a time and nothing without `app.tenant_id`. The login user of the URL owns
// the tables and is used for LISTEN, migrations and partition DDL only.

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
import { type HotPool, openHotPool, type Settings, splitTls, urlWith } from './hot-pool.ts';

/**
 * SQL with the rows parsed by a schema; `sql.typeAlias('void')` for statements without rows, 'count' for those that count,
 * 'any' for rows that are not looked at. Schemas are made once: zod compiles each at its first row, for longer than it
 * parses a hundred.
 */
export const sql = createSqlTag({
  typeAliases: {
    void: z.object({}).strict(),
    count: z.object({ count: z.number() }),
    any: z.looseObject({}),
  },
});

export type TenantTransaction = DatabaseTransactionConnection;

/** Statements that run by themselves, and transactions. */
export type ManyStatements = Pick<
  DatabasePool,
  'any' | 'anyFirst' | 'maybeOne' | 'oneFirst' | 'query' | 'transaction' | 'end'
>;

/** The open database. */
export type Database = AsyncDisposable & {
  /** Hot statements, prepared by name, as dispatch_engine (ADR 0005 says why not slonik). */
  readonly engine: HotPool;
  /** Claims and the configurations they need, prepared by name, as dispatch_engine; their plans are look-ups by key. */
  readonly claims: HotPool;
  /** Records, prepared by name, as dispatch_engine; their plans never read through a queue. */
  readonly records: HotPool;
  /** All other statements over many tenants, as dispatch_engine. */
  readonly many: ManyStatements;
  /**
   * Runs `work` in one transaction as dispatch_tenant with `app.tenant_id` set: row-level security holds it there.
   */
  readonly inTenant: <T>(tenantId: TenantId, work: (tx: TenantTransaction) => Promise<T>) => Promise<T>;
  /** The same database, on which every inTenant() writes these changes to the audit log in its transaction. */
  readonly audited: (...changes: readonly Change[]) => Database;
  /** The direct URL of the owner, for LISTEN, migrations and DDL. */
  readonly ownerUrl: string;
};

/**
 * Opens the pools; connections are made when first used. `poolSize` is per role. `onIdleError` hears about
 * connections that broke while nobody used them. With a `directUrl`, `url` may lead through a transaction pooler: no
 * statement through it relies on the session that it runs in (ADR 0019).
 */
export async function openDatabase(
  url: string,
  poolSize: number,
  onIdleError: (error: Error) => void,
  directUrl?: string,
): Promise<Database> {
  const isPooled = directUrl !== undefined;
  const hotPool = (name: string, settings: Settings, max: number) =>
    openHotPool({
      url,
      name,
      settings: isPooled ? { ...settings, ...POOLED } : settings,
      max,
      isPooled,
      onIdleError,
    });
  const engine = hotPool('dispatch-engine', ENGINE, poolSize);
  const claims = hotPool('dispatch-claims', CLAIMS, Math.min(poolSize, MAX_CLAIM_CONNECTIONS));
  const records = hotPool('dispatch-records', RECORDS, Math.min(poolSize, MAX_RECORD_CONNECTIONS));
  const slonik = (settings: Settings, max: number) => openSlonik(url, settings, max, isPooled, onIdleError);
  const shared = await slonik(ENGINE, 4);
  const many = isPooled ? inTransactions(shared, { ...ENGINE, ...POOLED }) : shared;
  const tenant = await slonik(TENANT, poolSize);
  const ids = createIdSource(Date.now, randomBytes);
  const create = (...changes: readonly Change[]): Database => ({
    engine,
    claims,
    records,
    many,
    ownerUrl: directUrl ?? url,
    audited: create,
    inTenant: (tenantId, work) =>
      tenant.transaction(async (tx) => {
        await set(tx, { ...(isPooled ? { ...TENANT, ...POOLED } : {}), 'app.tenant_id': tenantId });
        const result = await work(tx);
        const entries = changes.flatMap(({ actor, action, resource, address, detail, outcome }) => {
          const more = outcome === undefined ? {} : outcome(result);
          if (more === undefined) return [];
          const told = JSON.stringify({ ...detail, ...more });
          return [[uuidOf(ids.next('aud')), actor, action, resource, address, told]];
        });
        if (entries.length > 0) {
          const columns = sql.unnest(entries, ['uuid', 'text', 'text', 'text', 'text', 'jsonb']);
          await tx.query(sql.typeAlias('void')`
            INSERT INTO audit_log (tenant_id, id, actor, action, resource, address, detail)
            SELECT ${tenantId}, e.* FROM ${columns} AS e`);
        }
        return result;
      }),
    async [Symbol.asyncDispose]() {
      await Promise.all([engine.end(), claims.end(), records.end(), shared.end(), tenant.end()]);
    },
  });
  return create();
}

// Queue-like tables change size faster than their statistics: look-ups by key must never turn into scans or merges.
const ENGINE: Settings = {
  role: 'dispatch_engine',
  enable_seqscan: 'off',
  enable_mergejoin: 'off',
  jit: 'off',
  statement_timeout: '30000',
};
// Of a queue of 10,000 the planner would hash all to update 50: 2 ms where look-ups take 0.2. Not for all that is hot:
// what stores events joins lists with lists. And of what is parked it would read and sort all that is due to take the first 5,000 of it.
const CLAIMS: Settings = { ...ENGINE, enable_hashjoin: 'off', enable_bitmapscan: 'off' };
// To a planner that knows a queue as empty, reading all of its index costs as much as one look-up, and what was delivered since
// is still in there. A bitmap is built from look-ups only (ADR 0021).
const RECORDS: Settings = { ...CLAIMS, enable_indexscan: 'off', enable_bitmapscan: 'on' };
const TENANT: Settings = { role: 'dispatch_tenant' };
/**
 * Through a pooler every statement has a transaction, which a process that stands still would keep open, with its locks:
 * less than the shortest lease. slonik gives its statements their timeout itself, but only when a connection is opened.
 */
const POOLED: Settings = { statement_timeout: '30000', idle_in_transaction_session_timeout: '9000' };
/** One for claims, more for queues with an order and while configurations are read, and one for each look of lease-ends and unparker. */
const MAX_CLAIM_CONNECTIONS = 4;
/** Two of each lane of the recorder. */
const MAX_RECORD_CONNECTIONS = 4;

/** Sets what holds until the end of the transaction. */
async function set(tx: TenantTransaction, settings: Settings): Promise<void> {
  const each = Object.entries(settings).map(
    ([name, value]) => sql.fragment`set_config(${name}, ${value}, true)`,
  );
  await tx.query(sql.typeAlias('any')`SELECT ${sql.join(each, sql.fragment`, `)}`);
}

/** Every statement in a transaction of its own with these settings. */
function inTransactions(pool: DatabasePool, settings: Settings): ManyStatements {
  const transaction: DatabasePool['transaction'] = (work, retryLimit) =>
    pool.transaction(async (tx) => {
      await set(tx, settings);
      return work(tx);
    }, retryLimit);
  return {
    any: (query) => transaction((tx) => tx.any(query)),
    anyFirst: (query) => transaction((tx) => tx.anyFirst(query)),
    maybeOne: (query) => transaction((tx) => tx.maybeOne(query)),
    oneFirst: (query) => transaction((tx) => tx.oneFirst(query)),
    query: (query) => transaction((tx) => tx.query(query)),
    transaction,
    end: pool.end,
  };
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
  settings: Settings,
  maxPoolSize: number,
  isPooled: boolean,
  onIdleError: (error: Error) => void,
): Promise<DatabasePool> {
  const { bare, ssl } = splitTls(isPooled ? url : urlWith(url, settings));
  const pool = createPool(bare, {
    ...(ssl === undefined ? {} : { ssl }),
    maxPoolSize,
    minPoolSize: 0,
    idleTimeout: 60_000,
    connectionTimeout: 5_000,
    // Both are given when a connection is opened, which a pooler refuses; POOLED sets them then.
    statementTimeout: isPooled ? 'DISABLE_TIMEOUT' : 30_000,
    ...(isPooled ? { idleInTransactionSessionTimeout: 'DISABLE_TIMEOUT' as const } : {}),
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
