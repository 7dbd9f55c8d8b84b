import { expect, test } from 'vitest';
import { encodeId, uuidOf } from '../../src/domain/ids.ts';
import { claim } from '../../src/storage/claims.ts';
import type { Database } from '../../src/storage/database.ts';
import { cancelDeliveries } from '../../src/storage/deliveries.ts';
import { MAX_UNPARK, type ParkedPosition, parkedFrom, unpark } from '../../src/storage/parking.ts';
import { purgeSubscription } from '../../src/storage/purges.ts';
import { type DeliveryRecord, writeRecords } from '../../src/storage/records.ts';
import { createWalk } from '../../src/storage/walk.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { storeBacklog } from '../support/fleet.ts';
import { startTestInstance, type TestInstance } from '../support/instance.ts';
import { queue, subscriptionId, tenantId, useOneQueue } from '../support/one-queue.ts';
import { explaining, openReader } from '../support/plans.ts';
import { startReceiver } from '../support/receiver.ts';

const lease = Buffer.alloc(16, 7);
const HOUR_S = 3_600;
let database: TestDatabase;
let db: Database;

useOneQueue((...opened) => {
  [database, db] = opened;
});

const backlog = (count: number, dueInSeconds: number) =>
  storeBacklog(database, tenantId, uuidOf(subscriptionId), count, dueInSeconds);

/** How many deliveries there are, and how many of them are parked. */
async function counts(): Promise<{ all: number; parked: number }> {
  const { rows } = await database.owner.query(
    'SELECT count(*)::int4 AS all, count(*) FILTER (WHERE is_parked)::int4 AS parked FROM deliveries',
  );
  return rows[0];
}

const walked = async () => (await createWalk(db.claims)(undefined, 10)).heads;
const fromFront = () => unpark(db.claims, parkedFrom(0));
const claimSome = async () =>
  (await claim(db.claims, [{ ...queue, room: 10, after: undefined }], lease, 60_000, 0)).deliveries;

/** Lets time pass for what is in the queue. */
const passes = (seconds: number) =>
  database.owner.query('UPDATE deliveries SET run_at = run_at - make_interval(secs => $1)', [seconds]);

test('what is due in an hour is in no way of claims and of their walk, and comes back a minute before its time', async () => {
  await backlog(3, HOUR_S);
  expect(await walked()).toEqual([]);
  expect(await fromFront()).toMatchObject({ count: 0, next: undefined });
  await passes(HOUR_S - 70);
  expect((await fromFront()).count).toBe(0);
  await passes(20);
  expect(await fromFront()).toMatchObject({ count: 3, next: undefined });
  expect(await counts()).toEqual({ all: 3, parked: 0 });
  expect(await walked()).toMatchObject([queue]);
  expect(await claimSome()).toEqual([]);
  await passes(60);
  expect(await claimSome()).toHaveLength(3);
});

test('a retry and what is given back are parked if they are due much later, and not if they are due soon', async () => {
  await backlog(4, 0);
  const claimed = await claimSome();
  const attempt = {
    attempt: 1,
    status: 500,
    startedAtMs: Date.now(),
    durationUs: 1,
    timing: { dnsUs: 0, connectUs: 0, tlsUs: 0, firstByteUs: 0 },
    responseBody: Buffer.alloc(0),
    responseHeaders: undefined,
    batchSize: 0,
  };
  const failure = { errorClass: 'http_status', message: 'no' } as const;
  const records = claimed.map(({ idBytes }, i): DeliveryRecord => {
    const of = { tenantId, idBytes, lease, delayMs: i % 2 === 0 ? 3_600_000 : 90_000 };
    return i < 2 ? { ...of, kind: 'retry', attempt, failure } : { ...of, kind: 'release' };
  });
  await writeRecords(db.records, records, 'durable');
  expect(await counts()).toEqual({ all: 4, parked: 2 });
  await passes(HOUR_S);
  expect(await claimSome()).toHaveLength(2);
  expect((await fromFront()).count).toBe(2);
  expect(await claimSome()).toHaveLength(2);
});

test('one call takes out the first that are due, of whatever tenant, and the next goes on where it ended', async () => {
  await backlog(MAX_UNPARK + 2_000, HOUR_S);
  const { owner } = database;
  await owner.query("UPDATE deliveries SET tenant_id = 'other' WHERE get_byte(uuid_send(id), 12) % 2 = 0");
  await passes(HOUR_S); // all are due at the same time but for two
  const [last, lastButOne] = (await owner.query('SELECT id FROM deliveries ORDER BY id DESC LIMIT 2')).rows;
  await owner.query("UPDATE deliveries SET run_at = now() + interval '2 s' WHERE id = $1", [last.id]);
  await owner.query("UPDATE deliveries SET run_at = now() + interval '1 s' WHERE id = $1", [lastButOne.id]);
  const parked = async () =>
    (await owner.query('SELECT id FROM deliveries WHERE is_parked ORDER BY id')).rows;
  const ids = (await parked()).map(({ id }) => id);
  const first = await fromFront();
  expect([first.count, (await parked()).map(({ id }) => id)]).toEqual([MAX_UNPARK, ids.slice(MAX_UNPARK)]);
  expect(first.next?.uuid).toBe(ids[MAX_UNPARK - 1]);
  // What lies before the place is not looked at: a look goes on also among what is due at the same microsecond.
  await owner.query('UPDATE deliveries SET is_parked = true');
  expect(await unpark(db.claims, first.next)).toMatchObject({ count: 2_000, next: undefined });
  expect((await parked()).map(({ id }) => id)).toEqual(ids.slice(0, MAX_UNPARK));
});

test('two calls at once take out each once, and what is being written to is passed over', async () => {
  await backlog(2_000, HOUR_S);
  await passes(HOUR_S);
  const { owner } = database;
  await owner.query('BEGIN');
  await owner.query('SELECT FROM deliveries ORDER BY id LIMIT 1 FOR UPDATE');
  const both = await Promise.all([fromFront(), fromFront()]);
  expect(both[0].count + both[1].count).toBe(1_999);
  await owner.query('COMMIT');
  expect((await fromFront()).count).toBe(1);
  expect(await counts()).toEqual({ all: 2_000, parked: 0 });
});

test('a look goes on after a time, and one without a time begins ten minutes ago', async () => {
  await backlog(2, HOUR_S);
  await passes(HOUR_S + 1_000);
  const { nowUs, ...found } = await unpark(db.claims, undefined);
  expect(found).toEqual({ count: 0, next: undefined });
  expect((await unpark(db.claims, parkedFrom(nowUs - 900_000_000))).count).toBe(0);
  expect((await unpark(db.claims, parkedFrom(nowUs - 2_000_000_000))).count).toBe(2);
  await database.owner.query('UPDATE deliveries SET is_parked = true');
  await passes(-900);
  const later = await unpark(db.claims, undefined);
  expect(later.count).toBe(2);
  expect(later.nowUs).toBeGreaterThan(nowUs);
});

test('a look reads what it takes, whatever the planner believes of how much that is', async () => {
  const store = (count: number, dueInS: number) =>
    database.owner.query(
      `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at, is_parked)
        SELECT 'tenant-' || i % 50, gen_random_uuid(), $2, now() + $3::float8 * random() * interval '1 s', true
        FROM generate_series(1, $1::int) AS i`,
      [count, uuidOf(subscriptionId), dueInS],
    );
  await store(20_000, HOUR_S); // of which the planner takes as many for near as one look takes
  await database.owner.query('VACUUM ANALYZE deliveries');
  await store(10_000, 30);
  const looking = explaining(db.claims, 'ANALYZE, BUFFERS, TIMING OFF');
  expect((await unpark(looking.pool, parkedFrom(0))).count).toBe(MAX_UNPARK);
  const plan = looking.plans.get('unpark')!;
  expect(plan).not.toMatch(/Seq Scan|Bitmap/);
  const scanned = [...plan.matchAll(/Index Scan using .*actual rows=(\d+)/g)].map(([, n]) => Number(n));
  expect(scanned.length).toBeGreaterThan(0);
  expect(scanned.reduce((sum, n) => sum + n, 0)).toBeLessThan(MAX_UNPARK + 10);
});

test('a look that goes on reads nothing of what was taken out in front of it and is not vacuumed', async () => {
  const { owner, url } = database;
  await using _ = await openReader(url); // from here on nothing is forgotten
  await owner.query(
    `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at, is_parked)
      SELECT $1, gen_random_uuid(), $2, now() - i * interval '1 ms', true FROM generate_series(1, 20000) AS i`,
    [tenantId, uuidOf(subscriptionId)],
  );
  let found = await fromFront();
  while (found.next !== undefined) found = await unpark(db.claims, found.next);
  await backlog(1, HOUR_S);
  await owner.query("UPDATE deliveries SET run_at = now() + interval '30 s' WHERE is_parked");
  const pagesOf = async (after: ParkedPosition) => {
    const looking = explaining(db.claims, 'ANALYZE, BUFFERS, TIMING OFF');
    await unpark(looking.pool, after);
    const plan = looking.plans.get('unpark')!;
    expect(plan).not.toMatch(/Seq Scan/);
    const [, hit, read = 0] = /Buffers: shared hit=(\d+)(?: read=(\d+))?/.exec(plan) ?? [];
    return Number(hit) + Number(read); // of the first line: of all that reads
  };
  expect(await pagesOf(parkedFrom(found.nowUs))).toBeLessThan(50);
  expect(await pagesOf(parkedFrom(0))).toBeGreaterThan(300); // in the index and the table
});

test('cancelling what waits for a subscription, and removing a deleted one, reaches what is parked', async () => {
  await backlog(2, 0);
  await database.owner.query("UPDATE deliveries SET id = replace(id::text, '-7000-', '-7001-')::uuid");
  await database.owner.query('TRUNCATE events');
  await backlog(3, HOUR_S);
  expect(await counts()).toEqual({ all: 5, parked: 3 });
  expect(await cancelDeliveries(db, tenantId, subscriptionId)).toBe(5);
  expect(await counts()).toEqual({ all: 0, parked: 0 });
  await database.owner.query('TRUNCATE events, closed_deliveries');
  await backlog(3, HOUR_S);
  await database.owner.query('UPDATE subscriptions SET deleted_at = now()');
  expect(await purgeSubscription(db, tenantId, uuidOf(subscriptionId))).toBe(3);
  expect(await counts()).toEqual({ all: 0, parked: 0 });
});

test('an event that is delayed by a day reaches its endpoint once that has passed, also if no worker was there meanwhile', async () => {
  await using receiver = await startReceiver();
  await using own = await cloneDatabase();
  const events = async (api: TestInstance, types: readonly string[]) => {
    for (const type of types) {
      const deliverAfter = { seconds: BigInt(Math.floor(Date.now() / 1000) + 24 * HOUR_S) };
      await api
        .clients()
        .publish.publish({ tenantId, event: { type, deliverAfter, body: { case: 'data', value: {} } } });
    }
  };
  {
    await using api = await startTestInstance({ DISPATCH_ROLES: 'api' }, own);
    await api.clients().tenants.createTenant({ tenant: { tenantId } });
    const subscription = { url: receiver.url, eventTypes: ['order.*'] };
    await api.clients().subscriptions.createSubscription({ tenantId, subscription });
    await events(api, ['order.passed', 'order.waits']);
  }
  const { rows } = await own.owner.query('SELECT id, is_parked FROM deliveries ORDER BY id');
  expect(rows.map((row) => row.is_parked)).toEqual([true, true]);
  await own.owner.query("UPDATE deliveries SET run_at = now() - interval '1 s' WHERE id = $1", [rows[0].id]);
  await using worker = await startTestInstance({}, own);
  await eventually(() => expect(receiver.received).toHaveLength(1));
  // Its owner does not want to wait for the other one.
  const waiting = encodeId('dlv', Buffer.from(rows[1].id.replaceAll('-', ''), 'hex'));
  await worker.clients().events.retryDelivery({ tenantId, deliveryId: waiting });
  await eventually(() => expect(receiver.received).toHaveLength(2));
});
