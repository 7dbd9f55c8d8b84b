// The processes of a benchmark: database, product, receiver and load, each apart, on loopback.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { removeEmbedded, startEmbedded } from '../../src/storage/embedded.ts';
import { freePort } from '../../test/support/free-port.ts';

export const ADMIN_KEY = 'bench-admin-key-0123456789';

/** A child that prints a first line when it is up. */
export type Child = AsyncDisposable & { readonly process: ChildProcess; readonly firstLine: string };

/** Starts a TypeScript file of this project under the same Node. */
export async function startChild(
  file: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  until = /^(.*)\n/,
): Promise<Child> {
  const path = new URL(file, import.meta.url).pathname;
  const child = spawn(process.execPath, [path, ...args], {
    stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
    env: { PATH: process.env['PATH'], ...env },
  });
  const firstLine = await new Promise<string>((done, fail) => {
    let text = '';
    const read = (chunk: Buffer) => {
      text += chunk;
      const match = until.exec(text);
      if (match === null) return;
      child.stdout?.off('data', read);
      done(match[1] ?? '');
    };
    child.stdout?.on('data', read);
    child.once('exit', (code) => fail(new Error(`${file} ended with ${code}: ${text}`)));
  });
  // Its log is read by a process of its own: read here it is garbage of this process, whose full collections take all cores from
  // what is measured for 40 ms each.
  spawn('cat', { stdio: [child.stdout, 'ignore', 'inherit'] });
  child.stdout?.destroy();
  return {
    process: child,
    firstLine,
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const ended = new Promise((done) => child.once('exit', done));
      child.kill('SIGTERM');
      await ended;
    },
  };
}

/** Files of 16 MB: as much as is written between two checkpoints of the product's `max_wal_size`, and some more. */
const WAL_FILES = 192;

/**
 * A server that has been under load for a minute has the files that its log is written to. A new one makes each of them while a
 * commit waits, once a second and for 30 to 80 ms under load: that is its age, and not what is measured here.
 */
async function makeWalFiles(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  for (let i = 0; i < WAL_FILES; i++) {
    await client.query("SELECT pg_logical_emit_message(false, 'bench', '')"); // a file without anything is not ended
    await client.query('SELECT pg_switch_wal()');
  }
  // The first says that they are done with, the second that they may be used again.
  for (let i = 0; i < 2; i++) await client.query('CHECKPOINT');
  await client.end();
}

/** An embedded server in a folder of its own, with the settings that the product gives it: fsync on. Its log has its files. */
export async function startDatabase(): Promise<AsyncDisposable & { readonly url: string }> {
  const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-bench-'));
  const embedded = await startEmbedded({ dataDir, settings: [`min_wal_size=${WAL_FILES * 16}MB`] });
  const database = {
    url: embedded.url,
    async [Symbol.asyncDispose]() {
      await embedded[Symbol.asyncDispose]();
      await removeEmbedded(dataDir);
    },
  };
  await makeWalFiles(embedded.url).catch(async (error) => {
    await database[Symbol.asyncDispose]();
    throw error;
  });
  return database;
}

export type Product = Child & {
  readonly httpPort: number;
  readonly grpcPort: number;
  readonly databaseUrl: string;
};

/** `dispatch serve` on a fresh database of the server at `serverUrl`. */
export async function startProduct(
  serverUrl: string,
  env: NodeJS.ProcessEnv = {},
  args: readonly string[] = [],
): Promise<Product> {
  const name = `bench_${randomBytes(4).toString('hex')}`;
  const client = new pg.Client({ connectionString: serverUrl });
  await client.connect();
  await client.query(`CREATE DATABASE ${name}`);
  await client.end();
  const url = new URL(serverUrl);
  url.pathname = `/${name}`;
  return startServe(url.toString(), env, args);
}

/** `dispatch serve` on a database that is there. */
export async function startServe(
  databaseUrl: string,
  env: NodeJS.ProcessEnv = {},
  args: readonly string[] = [],
): Promise<Product> {
  const httpPort = await freePort();
  const grpcPort = await freePort();
  const child = await startChild(
    '../../src/main.ts',
    ['serve', ...args],
    {
      DISPATCH_DATABASE_URL: databaseUrl,
      DISPATCH_ADMIN_KEY: ADMIN_KEY,
      DISPATCH_MASTER_KEYS: `bench:${Buffer.alloc(32, 7).toString('base64')}`,
      DISPATCH_ALLOW_ENDPOINT_CIDRS: '127.0.0.0/8',
      DISPATCH_DEFAULT_QUOTA: '{"publishPerSecond": 0}',
      DISPATCH_HTTP_PORT: String(httpPort),
      DISPATCH_GRPC_PORT: String(grpcPort),
      ...env,
    },
    /(dispatch is ready)/,
  );
  return { ...child, httpPort, grpcPort, databaseUrl };
}

/** The pid of the server that a connection leads to. */
export async function postmasterOf(client: pg.Client): Promise<number> {
  const { rows } = await client.query<{ data_directory: string }>('SHOW data_directory');
  return Number.parseInt(await readFile(join(rows[0]!.data_directory, 'postmaster.pid'), 'utf8'), 10);
}

/** Asks a sink for its count or its arrival times. */
export async function askSink(port: number, what: 'count' | 'times'): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${port}/${what}`);
  return response.text();
}
