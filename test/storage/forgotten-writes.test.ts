// A crash of PostgreSQL right after a claim or a result. Claims do not wait for the disk, so such a crash may forget one: what
// it held is due as before, and whoever held it writes nothing under the lease that was forgotten. Claims of lines do wait. Most
// results do not: what is forgotten of them is sent again.
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { encodeId, type SubscriptionId, type TenantId, uuidOf } from '../../src/domain/ids.ts';
import { type Claimed, claim, claimLines } from '../../src/storage/claims.ts';
import { asOwner, type Database, openDatabase } from '../../src/storage/database.ts';
import { type Commit, type DeliveryRecord, writeRecords } from '../../src/storage/records.ts';
import { migrateServer, type PostgresServer, startPostgres } from '../faults/postgres-server.ts';
import { storeBacklog } from '../support/fleet.ts';

const LEASE_MS = 60_000;
const COUNT = 10;
const tenantId = 'acme' as TenantId;
const subscriptionId = encodeId('sub', randomBytes(16)) as SubscriptionId;
const queue = { tenantId, subscriptionId };

let server: PostgresServer;

beforeAll(async () => {
  // Nothing else may write, or it takes to the disk what the claim left behind.
  server = await startPostgres(['autovacuum=off', 'wal_writer_delay=10s', 'bgwriter_lru_maxpages=0']);
  await migrateServer(server);
});
afterAll(() => server[Symbol.asyncDispose]());

beforeEach(async () => {
  await server.ask('TRUNCATE deliveries, events, attempts, closed_deliveries, dead_letters');
  await asOwner(server.url, (owner) => storeBacklog({ owner }, tenantId, uuidOf(subscriptionId), COUNT));
});

/** Ends the server right after a write, before anything but the write itself can have taken it to the disk. */
async function crashAfter<T>(write: (db: Database) => Promise<T>): Promise<T> {
  const [walWriter] = await server.ask<{ pid: number }>(
    `SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'`,
  );
  process.kill(walWriter!.pid, 'SIGSTOP');
  const db = await openDatabase(server.url, 1, () => {});
  try {
    return await write(db);
  } finally {
    process.kill(walWriter!.pid, 'SIGKILL'); // one that stands still would keep the server for 5 s
    await server.crash();
    await db[Symbol.asyncDispose]();
    await server.start();
  }
}

const claimAll = (db: Database) =>
  claim(
    db.claims,
    [{ ...queue, room: COUNT, after: undefined }],
    randomBytes(16),
    LEASE_MS,
    performance.now(),
  );

const claimOfLines = (db: Database) =>
  claimLines(
    db.claims,
    queue,
    { after: '', room: COUNT, perLine: COUNT },
    randomBytes(16),
    LEASE_MS,
    performance.now(),
  );

const leased = async () =>
  (await server.ask<{ n: number }>('SELECT count(*)::int4 AS n FROM deliveries WHERE lease IS NOT NULL'))[0]!
    .n;

const ATTEMPT = {
  attempt: 1,
  status: 200,
  startedAtMs: Date.now(),
  durationUs: 1_000,
  timing: { dnsUs: undefined, connectUs: undefined, tlsUs: undefined, firstByteUs: undefined },
  responseBody: Buffer.alloc(0),
  responseHeaders: undefined,
  batchSize: 0,
};

const succeeded = ({ deliveries }: Claimed): DeliveryRecord[] =>
  deliveries.map((delivery) => ({
    tenantId,
    idBytes: delivery.idBytes,
    lease: delivery.lease,
    kind: 'succeeded',
    attempt: ATTEMPT,
  }));

const FAILURE = { errorClass: 'timeout', message: 'no answer' } as const;

const retried = (claimed: Claimed): DeliveryRecord[] =>
  succeeded(claimed).map((record) => ({
    ...record,
    kind: 'retry',
    attempt: ATTEMPT,
    failure: FAILURE,
    delayMs: 1_000,
  }));

const dead = (claimed: Claimed): DeliveryRecord[] =>
  succeeded(claimed).map((record) => ({
    ...record,
    kind: 'dead',
    reason: 'attempts_exhausted',
    attempt: ATTEMPT,
    failure: FAILURE,
    eventType: 'order.created',
    attemptCount: 1,
    stopsLine: false,
  }));

const asEngine = async <T>(work: (db: Database) => Promise<T>): Promise<T> => {
  await using db = await openDatabase(server.url, 1, () => {});
  return await work(db);
};

describe('after a crash of the database', () => {
  test('a claim that it forgot is due again, and only under the new lease a result is written', async () => {
    const forgotten = await crashAfter(claimAll);
    expect([forgotten.deliveries.length, await leased()]).toEqual([COUNT, 0]);

    await using db = await openDatabase(server.url, 1, () => {});
    expect((await writeRecords(db.records, succeeded(forgotten), 'durable')).count).toBe(0);
    const again = await claimAll(db);
    expect((await writeRecords(db.records, succeeded(forgotten), 'durable')).count).toBe(0);
    expect((await writeRecords(db.records, succeeded(again), 'durable')).count).toBe(COUNT);
    const [left] = await server.ask('SELECT count(*)::int4 AS deliveries FROM deliveries');
    const [attempts] = await server.ask('SELECT count(*)::int4 AS attempts FROM attempts');
    expect({ ...left, ...attempts }).toEqual({ deliveries: 0, attempts: COUNT });
  });

  test('a claim of lines is still there: nobody else sends the next of a line meanwhile', async () => {
    await server.ask(
      `UPDATE deliveries SET order_key = 'k', order_seq = ('x' || substr(id::text, 34))::bit(12)::int`,
    );
    const claimed = await crashAfter(claimOfLines);
    expect([claimed.deliveries.length, await leased()]).toEqual([COUNT, COUNT]);
    await using db = await openDatabase(server.url, 1, () => {});
    expect((await claimOfLines(db)).deliveries).toEqual([]);
  });

  /** What is there after a crash right after the results of all deliveries were written. */
  async function leftAfter(commit: Commit, recordsOf: (claimed: Claimed) => DeliveryRecord[]) {
    const claimed = await asEngine(claimAll);
    await server.ask('CHECKPOINT');
    const { count } = await crashAfter((db) => writeRecords(db.records, recordsOf(claimed), commit));
    expect(count).toBe(COUNT);
    const [rows] = await server.ask<{ leased: number; waiting: number; attempts: number }>(
      `SELECT count(*) FILTER (WHERE lease IS NOT NULL)::int4 AS leased, count(*) FILTER (WHERE lease IS NULL)::int4 AS waiting,
        (SELECT count(*)::int4 FROM attempts) AS attempts FROM deliveries`,
    );
    return {
      rows,
      writtenAgain: await asEngine((db) => writeRecords(db.records, recordsOf(claimed), 'durable')),
    };
  }

  test('a result that did not wait for the disk is forgotten: its delivery is leased as before, and comes again', async () => {
    const successes = await leftAfter('soon', succeeded);
    expect(successes.rows).toEqual({ leased: COUNT, waiting: 0, attempts: 0 });
    expect(successes.writtenAgain.count).toBe(COUNT);
  });

  test('so is a retry that did not wait', async () => {
    const retries = await leftAfter('soon', retried);
    expect(retries.rows).toEqual({ leased: COUNT, waiting: 0, attempts: 0 });
    expect(retries.writtenAgain.count).toBe(COUNT);
  });

  test.each<Commit>(['durable', 'confirmed'])('a result that is %s is there', async (commit) => {
    const successes = await leftAfter(commit, succeeded);
    expect(successes.rows).toEqual({ leased: 0, waiting: 0, attempts: COUNT });
    expect(successes.writtenAgain.count).toBe(0);
  });

  test('a dead letter is there, however it was asked for', async () => {
    const { writtenAgain } = await leftAfter('soon', dead);
    expect(writtenAgain.count).toBe(0);
    const [letters] = await server.ask('SELECT count(*)::int4 AS letters FROM dead_letters');
    expect(letters).toEqual({ letters: COUNT });
  });

  test('what is written after a claim on the same connection waits for the disk', async () => {
    await using db = await openDatabase(server.url, 1, () => {});
    expect((await claimAll(db)).deliveries).toHaveLength(COUNT);
    const { rows } = await db.claims.query('SHOW synchronous_commit');
    expect(rows).toEqual([{ synchronous_commit: 'on' }]);
  });
});
