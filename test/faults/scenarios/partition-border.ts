// Whoever makes partitions and drops old ones is killed between any two of its statements, while events come in. The next
// run mends what was left, and no insert fails at a border, however far ahead.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { lowestUuidAt } from '../../../src/domain/ids.ts';
import { ensurePartitions } from '../../../src/storage/partitions.ts';
import { eventually } from '../../support/eventually.ts';
import { environmentOn } from '../../support/fleet.ts';
import { startProducer } from '../producer.ts';
import { startProxy } from '../proxy.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe, type World } from '../world.ts';

const PER_SECOND = 200;
const TENANTS = ['t0', 't1', 't2', 't3'];
const DAY_MS = 24 * 3600 * 1000;
/** Of the template's partitions. */
const WIDTH_MS = 7 * DAY_MS;
const AHEAD_MS = 14 * DAY_MS;
const HISTORY_DAYS = '15';
const MAIN = fileURLToPath(new URL('../../../src/main.ts', import.meta.url));

/** Where the maintainer is killed: before a statement of these reaches the database, or when its answer comes. */
type Point = { readonly statement: string; readonly when: 'before' | 'after' };
const POINTS: readonly Point[] = [
  'CREATE TABLE IF NOT EXISTS events',
  'ADD CONSTRAINT in_range',
  'FORCE ROW LEVEL SECURITY',
  'CREATE POLICY tenant_only',
  'GRANT SELECT',
  'ATTACH PARTITION',
  'DROP CONSTRAINT in_range',
  'COMMIT',
  'DETACH PARTITION',
  'DROP TABLE',
].flatMap((statement) => [
  { statement, when: 'before' as const },
  { statement, when: 'after' as const },
]);

export const partitionBorder: Scenario = {
  name: 'partition-border',
  about: 'who makes and drops partitions is killed before and after 10 statements; the next run mends it',
  promises: ['P1', 'P2'],
  seconds: 30,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    const admin = adminOf(await world.dispatch(url, 'api,worker'));
    for (const tenantId of TENANTS) await subscribe(admin, tenantId, endpoint.url);
    const clients = () => [admin];
    const producer = startProducer(world, { tenantIds: TENANTS, clients, perSecond: PER_SECOND });
    const points = shuffled(world, POINTS).slice(0, world.sized(POINTS.length, 4));
    for (const [i, point] of points.entries()) {
      await makeWorkFor(owner, i);
      await killAt(world, url, point);
    }
    await makeWorkFor(owner, points.length);
    await killDetaching(world, url, owner);
    const halfDetached = await pendingDetaches(owner);
    await endLeases(owner);
    await world.dispatch(url, 'maintenance', { DISPATCH_HISTORY_DAYS: HISTORY_DAYS });
    const left = await eventually(async () => noneLeft(await oldLeaves(owner)), 20_000).catch(() =>
      oldLeaves(owner),
    );
    await producer.stop();
    const verdict = await world.judge(url);
    const failed = [...producer.failures.values()].reduce((sum, count) => sum + count, 0);
    return {
      verdict,
      figures: [
        { name: 'kills', value: points.length + 1 },
        { name: 'half detached', value: halfDetached, atLeast: 1 },
        { name: 'failed publishes', value: failed, atMost: 0 },
        { name: 'left to drop', value: left, atMost: 0 },
        { name: 'left to make', value: await ensurePartitions(owner), atMost: 0 },
        { name: 'leaves that are not whole', value: await brokenLeaves(owner), atMost: 0 },
        { name: 'inserts refused at borders', value: await refusedAtBorders(owner), atMost: 0 },
      ],
    };
  },
};

function shuffled<T>(world: World, items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, at: world.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}

/** Something to make, the leaves that are furthest ahead, and something to drop, leaves that ended long ago. */
async function makeWorkFor(owner: pg.Client, round: number): Promise<void> {
  await endLeases(owner);
  for (const [table, column] of [
    ['events', 'id'],
    ['attempts', 'delivery_id'],
  ] as const) {
    const parent = `${table}_h${round % 4}`;
    const lastMs = Math.floor((Date.now() + AHEAD_MS) / WIDTH_MS) * WIDTH_MS;
    await owner.query(`DROP TABLE IF EXISTS ${leafOf(parent, lastMs)}`);
    const fromMs = (Math.floor(Date.now() / WIDTH_MS) - 40 + round) * WIDTH_MS;
    const leaf = leafOf(parent, fromMs);
    const [from, to] = [lowestUuidAt(fromMs), lowestUuidAt(fromMs + WIDTH_MS)];
    await owner.query(`CREATE TABLE ${leaf} (LIKE ${parent} INCLUDING ALL, CHECK (${column} IS NOT NULL))`);
    await owner.query(
      `ALTER TABLE ${parent} ATTACH PARTITION ${leaf} FOR VALUES FROM ('${from}') TO ('${to}')`,
    );
  }
}

/** Nobody waits here for the lease of a leader that was killed. */
const endLeases = (owner: pg.Client) => owner.query('DELETE FROM leaders');

const leafOf = (parent: string, fromMs: number) =>
  `${parent}_${new Date(fromMs).toISOString().slice(0, 10).replaceAll('-', '')}`;

/** Runs a maintainer through a proxy until it comes to a point, and kills it there. */
async function killAt(world: World, url: string, { statement, when }: Point): Promise<void> {
  await using proxy = await startProxy(Number(new URL(url).port || '5432'));
  const direct = new URL(url);
  direct.host = `127.0.0.1:${proxy.port}`;
  const { child, gone } = startMaintainer(url, direct.toString());
  let isThere = false;
  let isSent = false;
  proxy.rules.onChunk = (chunk, direction) => {
    if (isThere) return 'cut';
    isThere = direction === 'up' ? when === 'before' && chunk.includes(statement) : isSent;
    isSent ||= direction === 'up' && chunk.includes(statement);
    if (!isThere) return 'pass';
    child.kill('SIGKILL');
    world.timeline.fault(`${when} ${statement}`);
    return 'cut';
  };
  try {
    await eventually(() => {
      if (!isThere) throw new Error(`the maintainer never came to ${statement}`);
    }, 15_000);
  } finally {
    child.kill('SIGKILL');
    await gone;
  }
}

function startMaintainer(url: string, directUrl: string) {
  const child = spawn(process.execPath, [MAIN, 'serve', '--roles=maintenance'], {
    stdio: 'ignore',
    env: {
      PATH: process.env['PATH'],
      ...environmentOn(url),
      DISPATCH_DIRECT_DATABASE_URL: directUrl,
      DISPATCH_HISTORY_DAYS: HISTORY_DAYS,
      DISPATCH_LOG_LEVEL: 'silent',
    },
  });
  return { child, gone: new Promise((done) => child.once('exit', done)) };
}

/** Kills a maintainer and its session while DETACH CONCURRENTLY, half done, waits for a reader: as a server's end would. */
async function killDetaching(world: World, url: string, owner: pg.Client): Promise<void> {
  const reader = new pg.Client({ connectionString: url });
  await reader.connect();
  await reader.query('BEGIN');
  await reader.query('SELECT 1 FROM attempts LIMIT 1');
  const { child, gone } = startMaintainer(url, url);
  try {
    await eventually(async () => {
      if ((await pendingDetaches(owner)) === 0) throw new Error('nothing is half detached');
    }, 15_000);
    world.timeline.fault('during DETACH PARTITION');
  } finally {
    child.kill('SIGKILL');
    await gone;
    await owner.query(
      "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dispatch-owner'",
    );
    await reader.end();
  }
}

const pendingDetaches = (owner: pg.Client): Promise<number> =>
  countIn(owner, 'SELECT count(*)::int AS n FROM pg_inherits WHERE inhdetachpending');

async function countIn(owner: pg.Client, query: string, values: readonly unknown[] = []): Promise<number> {
  const { rows } = await owner.query<{ n: number }>(query, [...values]);
  return rows[0]!.n;
}

/** Leaves of the history that ended before what is kept, attached or not. */
function oldLeaves(owner: pg.Client): Promise<number> {
  const before = new Date(Date.now() - Number(HISTORY_DAYS) * DAY_MS - WIDTH_MS).toISOString().slice(0, 10);
  return countIn(
    owner,
    `SELECT count(*)::int AS n FROM pg_class
     WHERE relkind = 'r' AND relname ~ '^(events|attempts)_h[0-9]+_[0-9]{8}$' AND right(relname, 8) <= $1`,
    [before.replaceAll('-', '')],
  );
}

function noneLeft(count: number): 0 {
  if (count > 0) throw new Error(`${count} old leaves`);
  return 0;
}

/** Tables of the history that are not attached, are half detached, or lack what guards them. */
function brokenLeaves(owner: pg.Client): Promise<number> {
  return countIn(
    owner,
    `SELECT count(*)::int AS n FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
     WHERE c.relkind = 'r' AND c.relname ~ '^(events|attempts)_h[0-9]+_[0-9]{8}$' AND (
       i.inhrelid IS NULL OR i.inhdetachpending OR NOT c.relrowsecurity OR NOT c.relforcerowsecurity
       OR (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid) <> 2
       OR EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.conname = 'in_range'))`,
  );
}

/** Events in the last and the first ms at each border there is up to what is made ahead, of tenants in every hash. */
async function refusedAtBorders(owner: pg.Client): Promise<number> {
  const first = Math.floor(Date.now() / WIDTH_MS) * WIDTH_MS;
  let refused = 0;
  await owner.query('BEGIN');
  await owner.query('SET LOCAL ROLE dispatch_engine');
  for (let border = first; border <= Date.now() + AHEAD_MS; border += WIDTH_MS) {
    for (const ms of [border - 1, border]) {
      for (let tenant = 0; tenant < 16; tenant++) {
        await owner.query('SAVEPOINT one');
        const insert = 'INSERT INTO events (tenant_id, id, type, payload) VALUES ($1, $2, $3, $4)';
        await owner.query(insert, [`b${tenant}`, lowestUuidAt(ms), 'x', Buffer.from('x')]).catch(async () => {
          refused++;
          await owner.query('ROLLBACK TO SAVEPOINT one');
        });
      }
    }
  }
  await owner.query('ROLLBACK');
  return refused;
}
