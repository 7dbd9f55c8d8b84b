// Connections for hot statements (ADR 0005), as a role and with planner settings. On a direct connection both are given once,
// when it is opened, and statements are prepared by name. Through a transaction pooler (ADR 0019) the next statement
// may run in another session: each runs in a transaction that sets them for itself, and nothing is prepared.
import type { ConnectionOptions } from 'node:tls';
import pg from 'pg';
import { clientsWith, createMessageMemory } from './bind-message.ts';
import { createMessageSocket } from './message-socket.ts';

/** Names and values of settings, `role` among them. */
export type Settings = Readonly<Record<string, string>>;

/** A statement; with IN_BINARY its rows are arrays. */
export type Statement = pg.QueryConfig & Partial<typeof IN_BINARY>;

/** Types of Postgres. */
const BYTEA = 17;
const VARCHAR = 1043;
/** What pg makes of bytes that are not UTF-8, which is what it takes all that comes for. */
const REPLACEMENT = '\uFFFD';

/**
 * Rows in Postgres's binary format, as arrays, for columns of text, bytea, and varchar for bytes in hexadecimal. Of a bytea it is
 * the bytes, if they are UTF-8; undefined if they are not, or if this cannot be told: U+FFFD is in them.
 *
 * Each is made as its row comes in: a text of 250 KB that waits for the other rows outlives a collection, and 100 of them make
 * V8 collect all of its heap.
 */
export const IN_BINARY = {
  binary: true,
  rowMode: 'array', // of rows that are objects pg would make a Buffer of each value, and parse that
  types: {
    getTypeParser: (oid: number) => (oid === BYTEA ? bytesOf : oid === VARCHAR ? bytesOfHex : asItIs),
  },
} as const;

const bytesOf = (text: string): Buffer | undefined =>
  text.includes(REPLACEMENT) ? undefined : Buffer.from(text);
const bytesOfHex = (text: string): Buffer => Buffer.from(text, 'hex');
const asItIs = (text: string): string => text;

/** Whoever runs statements: a pool, or a transaction. */
export type Statements = {
  readonly query: <R extends pg.QueryResultRow = pg.QueryResultRow>(
    statement: string | Statement,
    values?: unknown[],
  ) => Promise<pg.QueryResult<R>>;
};

export type HotPool = Statements & {
  /** Several statements in one transaction; rolled back if `work` throws. */
  readonly transaction: <T>(work: (tx: Statements) => Promise<T>) => Promise<T>;
  /** Connections that are open, those of them that nobody uses, and callers without one. */
  readonly totalCount: number;
  readonly idleCount: number;
  readonly waitingCount: number;
  readonly end: () => Promise<void>;
};

export type HotPoolOptions = {
  readonly url: string;
  readonly name: string;
  readonly settings: Settings;
  readonly max: number;
  readonly isPooled: boolean;
  readonly onIdleError: (error: Error) => void;
};

/** The URL of a direct connection whose session has these settings. */
export function urlWith(url: string, settings: Settings): string {
  const changed = new URL(url);
  const given = changed.searchParams.get('options') ?? '';
  const own = Object.entries(settings).map(([name, value]) => `-c ${name}=${value}`);
  changed.searchParams.set('options', [given, ...own].join(' ').trim());
  return changed.toString();
}

/** What a URL says of TLS: names of its parameters. */
const TLS_PARAMETERS = ['sslmode', 'sslrootcert', 'sslcert', 'sslkey'];

/** A URL without what it says of TLS, and what pg makes of that, undefined for none: slonik does not read all of it. */
export function splitTls(url: string): {
  readonly bare: string;
  readonly ssl: ConnectionOptions | undefined;
} {
  const { ssl } = new pg.Client({ connectionString: url }) as { readonly ssl: boolean | ConnectionOptions };
  const bare = new URL(url);
  for (const name of TLS_PARAMETERS) bare.searchParams.delete(name);
  return { bare: bare.toString(), ssl: ssl === true ? {} : ssl || undefined };
}

/** Opens a pool; connections are made when first used. */
export function openHotPool({ url, name, settings, max, isPooled, onIdleError }: HotPoolOptions): HotPool {
  const pool = new pg.Pool({
    connectionString: isPooled ? url : urlWith(url, settings),
    max,
    idleTimeoutMillis: 60_000,
    connectionTimeoutMillis: 5_000,
    application_name: name,
    Client: clientsWith(createMessageMemory()),
    ...(splitTls(url).ssl === undefined ? { stream: createMessageSocket } : {}),
  });
  pool.on('error', onIdleError);
  const begin = isPooled ? beginWith(settings) : 'BEGIN';
  const transaction = <T>(work: (tx: Statements) => Promise<T>) =>
    inTransaction(pool, begin, (client) => work(isPooled ? { query: unprepared(client) } : client));
  return {
    query: isPooled
      ? (statement, values) => transaction((tx) => tx.query(statement, values))
      : (statement, values) => pool.query(statement, values),
    transaction,
    get totalCount() {
      return pool.totalCount;
    },
    get idleCount() {
      return pool.idleCount;
    },
    get waitingCount() {
      return pool.waitingCount;
    },
    end: () => pool.end(),
  };
}

/**
 * One message of several statements: the settings end with the transaction, and if one of them cannot be set, what comes
 * after it is refused, too.
 */
const beginWith = (settings: Settings) =>
  ['BEGIN', ...Object.entries(settings).map(([name, value]) => `SET LOCAL ${name} = '${value}'`)].join('; ');

/** Statements without their names: a name is of a session, and the session is another's a moment later. */
const unprepared =
  (client: pg.PoolClient): Statements['query'] =>
  (statement, values) => {
    if (typeof statement === 'string') return client.query(statement, values);
    const { name: _, ...unnamed } = statement;
    return client.query(unnamed, values ?? statement.values);
  };

/** With the SQLSTATE that says so: it may be tried again. */
const rolledBack = () =>
  Object.assign(new Error('the transaction was rolled back: one of its statements failed'), {
    code: '40000',
  });

async function inTransaction<T>(
  pool: pg.Pool,
  begin: string,
  work: (client: pg.PoolClient) => Promise<T>,
): Promise<T> {
  const client = await pool.connect();
  // The pool listens only to connections that are not lent: a break that nobody hears would end the process. What was in
  // hand is rejected too, and handled by whoever asked.
  const onBreak = () => {};
  client.on('error', onBreak);
  let failure: unknown;
  try {
    await client.query(begin);
    const result = await work(client);
    // A statement that failed, and whose error `work` put up with, has undone the rest: it must not pass for stored.
    const { command } = await client.query('COMMIT');
    if (command !== 'COMMIT') throw rolledBack();
    return result;
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    // After a failure the connection is closed: whatever it was in the middle of is rolled back, and one that serves a
    // database which is read-only now is not used again.
    client.release(failure !== undefined);
    client.off('error', onBreak);
  }
}
