// PostgreSQL servers of a run's own, for faults that a shared one cannot have: they crash, come back on the same port,
// and are copied to a synchronous standby, which is promoted.
import {
  chown,
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import type pg from 'pg';
import { asOwner } from '../../src/storage/database.ts';
import { findPlace, type Place, removeEmbedded, startEmbedded } from '../../src/storage/embedded.ts';
import { migrate } from '../../src/storage/migrate.ts';
import { eventually } from '../support/eventually.ts';
import { startProxy } from './proxy.ts';

export type PostgresServer = AsyncDisposable & {
  /** Of the database `dispatch`, as a superuser who owns it. The port never changes. */
  readonly url: string;
  readonly port: number;
  /** The data directory itself, and whose it is. */
  readonly data: string;
  readonly user: Place['user'];
  /** Asks on a connection of its own, in this database. */
  readonly ask: <Row extends pg.QueryResultRow>(
    sql: string,
    values?: readonly unknown[],
    database?: string,
  ) => Promise<Row[]>;
  /** SIGQUIT to the postmaster: every process ends at once, nothing is written. Resolves when it is gone. */
  readonly crash: () => Promise<void>;
  readonly isUp: () => Promise<boolean>;
  /** Starts it again after a crash, or waits for one that recovers by itself; resolves once it answers. */
  readonly start: () => Promise<void>;
  /**
   * A copy that streams, and that every commit on this server waits for from now on. What is streamed takes LAG_MS, as
   * between two zones: an ack that did not wait is lost with the primary.
   */
  readonly syncStandby: () => Promise<PostgresServer>;
  /** Ends the standby's following; resolves once it takes writes. */
  readonly promote: () => Promise<void>;
};

/** Postmasters that a run which failed half-way leaves behind end with it. */
const postmasters = new Set<number>();
process.once('exit', () => {
  for (const pid of postmasters) quit(pid);
});

/** Starts an empty server. `settings` are `name=value`; one that gets standbys needs a wal_keep_size. */
export async function startPostgres(settings: readonly string[] = []): Promise<PostgresServer> {
  return launch(await mkdtemp(join(tmpdir(), 'dispatch-faults-')), settings);
}

/** What dispatch needs to be there. */
export async function migrateServer(server: PostgresServer): Promise<void> {
  await migrate(server.url, { hashPartitions: 4, partitionDays: 7 });
}

async function launch(dataDir: string, settings: readonly string[]): Promise<PostgresServer> {
  const first = await startEmbedded({ dataDir, settings, isKept: false });
  const { home, user } = await findPlace(dataDir);
  const data = join(home, 'data');
  const { url } = first;
  let postmaster: number | undefined;
  const know = async () => {
    postmaster = await pidOf(data);
    postmasters.add(postmaster);
  };
  await know();

  const ask: PostgresServer['ask'] = (sql, values = [], database = 'dispatch') => {
    const of = new URL(url);
    of.pathname = `/${database}`;
    return asOwner(of.toString(), async (client) => (await client.query(sql, [...values])).rows);
  };
  const server: PostgresServer = {
    url,
    port: Number(new URL(url).port),
    data,
    user,
    ask,
    isUp: () => ask('SELECT 1').then(...YES_OR_NO),
    async crash() {
      const pid = postmaster;
      if (pid === undefined) return;
      quit(pid);
      await eventually(() => {
        if (isAlive(pid)) throw new Error('the postmaster is still there');
      });
      postmasters.delete(pid);
      postmaster = undefined;
    },
    async start() {
      // One that is ending just now is in the way of the next.
      const again = await eventually(() => startEmbedded({ dataDir, settings, isKept: false }), 60_000);
      if (again.url !== url) throw new Error(`it answers at ${again.url}, not at its old port`);
      await know();
    },
    syncStandby: () => makeStandby(server, settings),
    async promote() {
      await ask('SELECT pg_promote(wait => true)');
    },
    async [Symbol.asyncDispose]() {
      await server.crash();
      await removeEmbedded(dataDir);
    },
  };
  return server;
}

const YES_OR_NO = [() => true, () => false] as const;

const LAG_MS = 20;

/** The base backup is made over SQL and by a copy of the files: the embedded binaries have no pg_basebackup. */
async function makeStandby(primary: PostgresServer, settings: readonly string[]): Promise<PostgresServer> {
  const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-faults-'));
  const { home, user } = await findPlace(dataDir);
  const data = join(home, 'data');
  const name = `standby_${basename(dataDir).replaceAll(/\W/g, '_')}`.toLowerCase();
  await asOwner(primary.url, async (owner) => {
    await owner.query("SELECT pg_backup_start('standby', fast => true)");
    await copyData(primary.data, data, user);
    const { rows } = await owner.query<{ labelfile: string }>(
      'SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)',
    );
    await writeFile(join(data, 'backup_label'), rows[0]!.labelfile, { mode: 0o600 });
  });
  const link = await startProxy(primary.port);
  link.rules.delayMs = LAG_MS;
  const { hostname, username, password } = new URL(primary.url);
  const conninfo = `host=${hostname} port=${link.port} user=${username} password=${password} application_name=${name}`;
  await writeFile(join(data, 'postgresql.auto.conf'), `primary_conninfo = '${conninfo}'\n`, { mode: 0o600 });
  await writeFile(join(data, 'standby.signal'), '');
  await writeFile(join(home, 'password'), password, { mode: 0o600 });
  for (const file of ['data/backup_label', 'data/postgresql.auto.conf', 'data/standby.signal', 'password'])
    await own(join(home, file), user);
  const standby = await launch(dataDir, settings);
  await primary.ask(`ALTER SYSTEM SET synchronous_standby_names = '${name}'`);
  await primary.ask('SELECT pg_reload_conf()');
  // What was committed before is there too once the standby has flushed what is now the end of the log.
  const [end] = await primary.ask<{ lsn: string }>('SELECT pg_current_wal_lsn() AS lsn');
  await eventually(async () => {
    const rows = await primary.ask(
      `SELECT FROM pg_stat_replication
       WHERE application_name = $1 AND state = 'streaming' AND sync_state = 'sync' AND flush_lsn >= $2`,
      [name, end!.lsn],
    );
    if (rows.length === 0) throw new Error('the standby is not synchronous yet');
  });
  return {
    ...standby,
    async [Symbol.asyncDispose]() {
      await standby[Symbol.asyncDispose]();
      await link[Symbol.asyncDispose]();
    },
  };
}

/** Made anew by the server that starts on a copy. */
const EMPTY = new Set(
  'pg_wal pg_replslot pg_dynshmem pg_notify pg_serial pg_snapshots pg_stat_tmp pg_subtrans'.split(' '),
);
const LEFT_OUT = new Set(['postmaster.pid', 'postmaster.opts', 'postgresql.auto.conf', 'pg_control']);

async function copyData(from: string, to: string, user: Place['user']): Promise<void> {
  await copyFolder(from, to, user, true);
  // Last, so that it is not older than the rest.
  const control = join('global', 'pg_control');
  await copyFile(join(from, control), join(to, control));
  await own(join(to, control), user);
}

async function copyFolder(from: string, to: string, user: Place['user'], isTop: boolean): Promise<void> {
  await mkdir(to, { recursive: true, mode: 0o700 });
  await own(to, user);
  if (!isTop && EMPTY.has(basename(to))) return;
  for (const entry of await readdir(from, { withFileTypes: true })) {
    if (LEFT_OUT.has(entry.name)) continue;
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) {
      await copyFolder(source, target, user, false);
      continue;
    }
    try {
      if (entry.isSymbolicLink()) await symlink(await readlink(source), target);
      else await copyFile(source, target);
      await own(target, user);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error; // a table that was dropped meanwhile
    }
  }
}

async function own(path: string, user: Place['user']): Promise<void> {
  if (user !== undefined) await chown(path, user.uid, user.gid);
}

async function pidOf(data: string): Promise<number> {
  return Number((await readFile(join(data, 'postmaster.pid'), 'utf8')).split('\n')[0]);
}

function quit(pid: number): void {
  try {
    process.kill(pid, 'SIGQUIT');
  } catch {
    // It is gone already.
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
