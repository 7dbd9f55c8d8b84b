// A real PgBouncer in transaction mode in front of a test database: from PATH, else Debian's package as root. Failing that,
// the test fails and says what to do.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { chownSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { eventually } from './eventually.ts';
import { freePort } from './free-port.ts';

export type PgBouncer = AsyncDisposable & {
  /** The database's URL through it. */
  readonly url: string;
  /** Ends it, with every connection through it. */
  readonly stop: (signal: 'SIGTERM' | 'SIGKILL') => Promise<void>;
  /** Starts it again on the same port. */
  readonly start: () => Promise<void>;
};

/** PgBouncer refuses to run as root: this is nobody's number. */
const NOBODY = 65_534;

const onPath = (): string =>
  execFileSync('sh', ['-c', 'PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v pgbouncer']).toString().trim();

function binary(): string {
  try {
    return onPath();
  } catch {
    if (process.getuid?.() !== 0) {
      throw new Error(
        'pgbouncer is not on PATH, and installing it needs root: apt-get install pgbouncer, or run as root',
      );
    }
    execFileSync('apt-get', ['update', '-qq'], { stdio: 'ignore' });
    execFileSync('apt-get', ['install', '-y', '-qq', 'pgbouncer'], { stdio: 'ignore' });
    return onPath();
  }
}

/** Starts one on a free port of loopback for the database of a URL, with `poolSize` connections to it. */
export async function startPgBouncer(databaseUrl: string, poolSize: number): Promise<PgBouncer> {
  const program = binary();
  const target = new URL(databaseUrl);
  const port = await freePort();
  const dir = mkdtempSync(join(tmpdir(), 'dispatch-pgbouncer-'));
  const name = target.pathname.slice(1);
  const user = decodeURIComponent(target.username);
  const files = {
    'pgbouncer.ini': `[databases]
${name} = host=${target.hostname} port=${target.port || '5432'} dbname=${name}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = plain
auth_file = ${join(dir, 'users.txt')}
pool_mode = transaction
default_pool_size = ${poolSize}
max_client_conn = 200
server_login_retry = 1
`,
    'users.txt': `"${user}" "${decodeURIComponent(target.password)}"\n`,
  };
  for (const [file, text] of Object.entries(files)) writeFileSync(join(dir, file), text, { mode: 0o600 });
  const isRoot = process.getuid?.() === 0;
  if (isRoot) {
    for (const path of [dir, ...Object.keys(files).map((file) => join(dir, file))]) {
      chownSync(path, NOBODY, NOBODY);
    }
  }
  const url = new URL(databaseUrl);
  url.host = `127.0.0.1:${port}`;
  let child: ChildProcess | undefined;

  async function start(): Promise<void> {
    const who = isRoot ? { uid: NOBODY, gid: NOBODY } : {};
    child = spawn(program, ['-q', join(dir, 'pgbouncer.ini')], { ...who, stdio: 'ignore' });
    await eventually(() => ping(url.toString()));
  }

  async function stop(signal: NodeJS.Signals): Promise<void> {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((done) => child!.once('exit', done));
    child.kill(signal);
    await gone;
  }

  await start();
  return {
    url: url.toString(),
    stop,
    start,
    async [Symbol.asyncDispose]() {
      await stop('SIGKILL');
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

async function ping(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 1_000 });
  client.on('error', () => {});
  try {
    await client.connect();
    await client.query('SELECT 1');
  } finally {
    await client.end();
  }
}
