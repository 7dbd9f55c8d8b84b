// What a claim costs: p99, rows and buffers, beside 10,000 and beside 1,000,000 deliveries, with 10,000 subscriptions in
// backlog, of lines, and what a walk over 10,000 queues costs. The statements are the product's own, on a database alone.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { encodeId, type SubscriptionId, type TenantId, uuidOf } from '../../src/domain/ids.ts';
import { claim, claimLines, type QueueKey } from '../../src/storage/claims.ts';
import { type Database, openDatabase } from '../../src/storage/database.ts';
import { migrate } from '../../src/storage/migrate.ts';
import { createWalk, type WalkPosition } from '../../src/storage/walk.ts';
import { storeBacklog } from '../../test/support/fleet.ts';
import { truncate } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

const LEASE_MS = 3_600_000;
const ROOM = 50;
const CLAIMS = 150;
const tenantId = 'acme' as TenantId;

type Cost = { readonly p99Ms: number; readonly buffers: number };

/** Runs something `CLAIMS` times, alone; its p99 in ms, and the shared buffers that it touched on average. */
async function costOf(owner: pg.Client, db: Database, work: () => Promise<unknown>): Promise<Cost> {
  for (let i = 0; i < 10; i++) await work(); // plans and caches are warm
  const times: number[] = [];
  const before = await buffers(owner);
  for (let i = 0; i < CLAIMS; i++) {
    const startedAt = performance.now();
    await work();
    times.push(performance.now() - startedAt);
  }
  // Sessions report what they read when they are idle, or end.
  await db.claims.query('SELECT pg_stat_force_next_flush()');
  const touched = ((await buffers(owner)) - before) / CLAIMS;
  times.sort((a, b) => a - b);
  return { p99Ms: times[Math.floor(CLAIMS * 0.99)]!, buffers: touched };
}

/** Blocks that were looked at in the queue's leaves and indexes, in memory or not. */
async function buffers(owner: pg.Client): Promise<number> {
  const { rows } = await owner.query<{ n: string }>(
    `SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit) AS n FROM pg_statio_user_tables
     WHERE relname LIKE 'deliveries_h%'`,
  );
  return Number(rows[0]!.n);
}

/** What writing all those rows left behind (dead ones, dirty pages) is not what a claim costs. */
async function settle(owner: pg.Client): Promise<void> {
  await owner.query('VACUUM ANALYZE deliveries');
  await owner.query('CHECKPOINT');
}

/** Spreads the backlog over `count` subscriptions; returns their queues. */
async function spread(owner: pg.Client, count: number, due: string): Promise<QueueKey[]> {
  await owner.query(
    `UPDATE deliveries SET run_at = now() ${due}, lease = NULL, is_leased = false, subscription_id =
       ('01990000-0000-7000-8000-' || lpad(to_hex(('x' || substr(replace(id::text, '-', ''), 21, 6))::bit(24)::int % $1), 12, '0'))::uuid`,
    [count],
  );
  await settle(owner);
  return Array.from({ length: count }, (_, i) => {
    const bytes = Buffer.from(`0199000000007000800000000000${i.toString(16).padStart(4, '0')}`, 'hex');
    return { tenantId, subscriptionId: encodeId('sub', bytes) as SubscriptionId };
  });
}

export const claims: Scenario = {
  name: 'claims',
  about: `claims of ${ROOM} on a database alone, ms (p99) and buffers, by what lies beside them`,
  async start({ serverUrl }) {
    await using stack = new AsyncDisposableStack();
    const name = `claims_${randomBytes(4).toString('hex')}`;
    const server = new pg.Client({ connectionString: serverUrl });
    await server.connect();
    await server.query(`CREATE DATABASE ${name}`);
    stack.defer(async () => {
      await server.query(`DROP DATABASE ${name} WITH (FORCE)`);
      await server.end();
    });
    const url = new URL(serverUrl);
    url.pathname = `/${name}`;
    await migrate(url.toString(), { hashPartitions: 4, partitionDays: 7 });
    const owner = new pg.Client({ connectionString: url.toString() });
    owner.on('error', () => {}); // it is dropped with its database
    await owner.connect();
    const db = stack.use(await openDatabase(url.toString(), 1, () => {}));
    const bytes = randomBytes(16);
    const queue = { tenantId, subscriptionId: encodeId('sub', bytes) as SubscriptionId };
    const lease = () => randomBytes(16);
    const claimOf = (queues: readonly QueueKey[], room: number) =>
      claim(
        db.claims,
        queues.map((q) => ({ ...q, room, after: undefined })),
        lease(),
        LEASE_MS,
        0,
      );
    const owned = stack.move();
    return {
      product: async () => {
        const one = async (count: number) => {
          await truncate(owner, 'deliveries, events');
          await storeBacklog({ owner }, tenantId, uuidOf(queue.subscriptionId), count);
          await settle(owner);
          return costOf(owner, db, () => claimOf([queue], ROOM));
        };
        const small = await one(10_000);
        const large = await one(1_000_000);
        const many = await spread(owner, 10_000, "- interval '1 s'");
        let turn = 0;
        const next = (size: number) => Array.from({ length: size }, () => many[turn++ % many.length]!);
        const wide = await costOf(owner, db, () => claimOf(next(32), 6));
        await owner.query(
          `UPDATE deliveries SET order_key = 'k' || (('x' || substr(replace(id::text, '-', ''), 24, 3))::bit(12)::int % 200),
             order_seq = ('x' || substr(replace(id::text, '-', ''), 21, 6))::bit(24)::int, run_at = now(), lease = NULL, is_leased = false,
             subscription_id = $1`,
          [uuidOf(queue.subscriptionId)],
        );
        await settle(owner);
        const lines = await costOf(owner, db, () =>
          claimLines(db.claims, queue, { after: '', room: ROOM, perLine: 1 }, lease(), LEASE_MS, 0),
        );
        await spread(owner, 10_000, "+ interval '3 hours'");
        const walk = createWalk(db.claims);
        const walks: number[] = [];
        for (let i = 0; i < 5; i++) {
          const startedAt = performance.now();
          let from: WalkPosition | undefined;
          do from = (await walk(from, 500)).next;
          while (from !== undefined);
          walks.push(performance.now() - startedAt);
        }
        walks.sort((a, b) => a - b);
        return {
          figures: {
            'p99 at 10k': small.p99Ms,
            'p99 at 1M': large.p99Ms,
            'buffers at 10k': small.buffers,
            'buffers at 1M': large.buffers,
            'buffers ratio': large.buffers / small.buffers,
            'p99 of 32 of 10k queues': wide.p99Ms,
            'p99 of lines': lines.p99Ms,
            'walk over 10k queues': walks[2]!,
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
