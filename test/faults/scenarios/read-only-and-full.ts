// The database takes no writes for a while: it is read-only, its data's disk is full, the disk of its log is full (which
// brings the whole server down). Publishes are refused and may be tried again; when it takes writes again all goes on, on
// the connections that were opened meanwhile too.
import { execFile } from 'node:child_process';
import { symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { promisify } from 'node:util';
import { eventually } from '../../support/eventually.ts';
import { type DatabaseLoad, startDatabaseLoad } from '../database-load.ts';
import { migrateServer, type PostgresServer, startPostgres } from '../postgres-server.ts';
import type { Figure, Scenario } from '../scenario.ts';
import { mountSmallDisk, type SmallDisk } from '../small-disk.ts';
import type { World } from '../world.ts';

/** Little log, so that a small disk holds it. */
const SETTINGS = ['min_wal_size=32MB', 'max_wal_size=64MB'];
const DATA_MB = 128;
const LOG_MB = 192;
/** How long a fault lasts at full size. */
const FAULT_MS = 20_000;

type Fault = {
  readonly name: string;
  readonly begin: () => Promise<void>;
  readonly end: () => Promise<void>;
};

export const readOnlyAndFull: Scenario = {
  name: 'read-only-and-full',
  about: 'the database read-only, its data’s disk full, its log’s disk full, at 300 events/s',
  promises: ['P1', 'P2'],
  seconds: 110,
  async run(world) {
    const disks = new AsyncDisposableStack();
    world.use(disks); // unmounted once the server is gone
    const server = world.use(await startPostgres(SETTINGS));
    const dataDisk = await mountSmallDisk(DATA_MB, server.user);
    const logDisk = typeof dataDisk === 'string' ? dataDisk : await mountSmallDisk(LOG_MB, server.user);
    const faults = [readOnly(server)];
    if (typeof dataDisk === 'string' || typeof logDisk === 'string') {
      world.say(`full disks are left out: ${typeof dataDisk === 'string' ? dataDisk : logDisk}`);
    } else {
      disks.use(dataDisk);
      disks.use(logDisk);
      await moveTo(server, dataDisk, logDisk);
      faults.push(dataFull(dataDisk), logFull(server, logDisk));
    }
    await migrateServer(server);
    const load = await startDatabaseLoad(world, server.url);
    const figures: Figure[] = [];
    for (const fault of faults) figures.push(...(await suffer(world, load, fault)));
    figures.push(...(await load.stop()));
    return { verdict: await world.judge(server.url), figures };
  },
};

async function suffer(world: World, load: DatabaseLoad, { name, begin, end }: Fault): Promise<Figure[]> {
  await load.acked(world.between(150, 450));
  const before = load.failureCount();
  world.timeline.fault(name);
  await begin();
  await eventually(() => {
    if (load.failureCount() === before) throw new Error(`publishes go on although it is: ${name}`);
  });
  await wait(world.sized(FAULT_MS, 1_000));
  const refused = load.failureCount() - before;
  await end();
  world.timeline.fault('over');
  const backS = await load.rateIsBack();
  return [
    { name: `refused while ${name}`, value: refused, atLeast: 1 },
    { name: `s until the rate is back after ${name}`, value: backS, atMost: 10 },
  ];
}

/** Sessions that begin meanwhile stay read-only when it is over: they are not terminated then. */
function readOnly(server: PostgresServer): Fault {
  return {
    name: 'read-only',
    async begin() {
      await server.ask('ALTER DATABASE dispatch SET default_transaction_read_only = on', [], 'postgres');
      await server.ask(
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'dispatch'`,
        [],
        'postgres',
      );
    },
    async end() {
      await server.ask('ALTER DATABASE dispatch RESET default_transaction_read_only', [], 'postgres');
    },
  };
}

const dataFull = (disk: SmallDisk): Fault => ({ name: 'data full', begin: disk.fill, end: disk.free });

const NEXT_LOG_FILE = "SELECT pg_logical_emit_message(true, 'faults', 'next'), pg_switch_wal()";
const MAX_LOG_FILES = LOG_MB / 16;

/** Without room for its log the server panics, and may not even recover. */
function logFull(server: PostgresServer, disk: SmallDisk): Fault {
  return {
    name: 'log full',
    async begin() {
      await disk.fill();
      // Files of the log that are made already are used up first.
      for (let i = 0; i < MAX_LOG_FILES && (await server.isUp()); i++)
        await server.ask(NEXT_LOG_FILE).catch(() => {});
    },
    async end() {
      await disk.free();
      await server.start();
    },
  };
}

/** The database to a tablespace on one disk, the log to another. */
async function moveTo(server: PostgresServer, dataDisk: SmallDisk, logDisk: SmallDisk): Promise<void> {
  await server.ask(`CREATE TABLESPACE small LOCATION '${dataDisk.path}'`, [], 'postgres');
  await server.ask('ALTER DATABASE dispatch SET TABLESPACE small', [], 'postgres');
  await server.crash();
  const log = join(server.data, 'pg_wal');
  await promisify(execFile)('mv', [log, logDisk.path]); // files keep their owner
  await symlink(join(logDisk.path, 'pg_wal'), log);
  await server.start();
}
