// What workers hold, in the index deliveries_leased (ADR 0034).
import { expect, test } from 'vitest';
import { NO_TIMING } from '../../src/domain/delivery.ts';
import { uuidOf } from '../../src/domain/ids.ts';
import { claim, claimLeftovers, claimLines } from '../../src/storage/claims.ts';
import type { Database } from '../../src/storage/database.ts';
import { cancelDeliveries } from '../../src/storage/deliveries.ts';
import { MAX_PUT_BACK, putBack } from '../../src/storage/leases.ts';
import { parkedFrom, unpark } from '../../src/storage/parking.ts';
import { purgeSubscription } from '../../src/storage/purges.ts';
import { type DeliveryRecord, writeRecords } from '../../src/storage/records.ts';
import { createWalk, type QueueHead } from '../../src/storage/walk.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { storeBacklog } from '../support/fleet.ts';
import { startTestInstance } from '../support/instance.ts';
import { queue, subscriptionId, tenantId, useOneQueue } from '../support/one-queue.ts';
import { startReceiver } from '../support/receiver.ts';

const lease = Buffer.alloc(16, 7);
const LEASE_MS = 60_000;
let database: TestDatabase;
let db: Database;

useOneQueue((...opened) => {
  [database, db] = opened;
});

const store = (count: number) => storeBacklog(database, tenantId, uuidOf(subscriptionId), count);
const walked = async () => (await createWalk(db.claims)(undefined, 10)).heads;
const claimSome = async (room = 10) =>
  (await claim(db.claims, [{ ...queue, room, after: undefined }], lease, LEASE_MS, 0)).deliveries;

/** How many are held, and when the database says it is, in µs. */
async function held(): Promise<{ count: number; nowUs: number }> {
  const { rows } = await database.owner.query(
    `SELECT count(*) FILTER (WHERE is_leased)::int4 AS count, extract(epoch FROM now())::float8 * 1000000 AS now_us
     FROM deliveries`,
  );
  return { count: rows[0].count, nowUs: rows[0].now_us };
}

/** Lets time pass for what is in the queue. */
const passes = (seconds: number) =>
  database.owner.query('UPDATE deliveries SET run_at = run_at - make_interval(secs => $1)', [seconds]);

/** Holds everything, as `count` rows that a worker claimed. */
const hold = (count: number) =>
  store(count).then(() =>
    database.owner.query(
      "UPDATE deliveries SET run_at = now() + interval '1 min', lease = $1, is_leased = true",
      [lease],
    ),
  );

const fence = ({ idBytes }: { readonly idBytes: Buffer }) => ({ tenantId, idBytes, lease });
const ATTEMPT = {
  attempt: 1,
  status: 204,
  startedAtMs: Date.now(),
  durationUs: 1,
  timing: NO_TIMING,
  responseBody: Buffer.alloc(0),
  responseHeaders: undefined,
  batchSize: 0,
};

test('what is claimed is in no way of the walk, and is due again once its lease has run out', async () => {
  await store(3);
  expect(await claimSome()).toHaveLength(3);
  expect([await walked(), (await held()).count]).toEqual([[], 3]);
  expect(await putBack(db.claims, 0)).toMatchObject({ queues: [], count: 0, nextInMs: undefined });
  await passes(55);
  const before = await putBack(db.claims, 0);
  expect([before.queues, before.count]).toEqual([[], 0]);
  expect(before.nextInMs).toBeGreaterThan(0);
  expect(before.nextInMs).toBeLessThan(5_001);
  expect(await claimSome()).toEqual([]);
  await passes(5);
  const after = await putBack(db.claims, 0);
  expect(after).toMatchObject({ queues: [queue], count: 3, nextInMs: undefined });
  const [{ dueAtMs, dueInMs }] = after.queues as [QueueHead];
  expect(after.nowUs / 1000 - dueAtMs).toBeCloseTo(-dueInMs, 1);
  expect(dueInMs).toBeLessThanOrEqual(0);
  expect(dueInMs).toBeGreaterThan(-5_000);
  expect(await walked()).toMatchObject([queue]);
  expect(await claimSome()).toHaveLength(3);
  expect((await held()).count).toBe(3);
});

test('lines and leftovers of a queue with an order are held in the same way', async () => {
  await store(4);
  await database.owner.query(
    "UPDATE deliveries SET order_key = 'k', order_seq = 1 WHERE id = (SELECT id FROM deliveries ORDER BY id LIMIT 1)",
  );
  const which = { after: '', room: 10, perLine: 10 };
  expect((await claimLines(db.claims, queue, which, lease, LEASE_MS, 0)).deliveries).toHaveLength(1);
  expect((await held()).count).toBe(1);
  expect((await claimLeftovers(db.claims, queue, 10, lease, LEASE_MS, 0)).deliveries).toHaveLength(3);
  expect([await walked(), (await held()).count]).toEqual([[], 4]);
});

test('what is given back or comes again is in its queue at once', async () => {
  await store(2);
  const [first, second] = await claimSome();
  const failure = { errorClass: 'http_status', message: 'no' } as const;
  const records: DeliveryRecord[] = [
    { ...fence(first!), kind: 'retry', attempt: { ...ATTEMPT, status: 500 }, failure, delayMs: 0 },
    { ...fence(second!), kind: 'release', delayMs: 0 },
  ];
  expect((await writeRecords(db.records, records, 'durable')).count).toBe(2);
  expect((await held()).count).toBe(0);
  expect(await claimSome()).toHaveLength(2);
});

test('a result is good under a lease that has run out, until somebody else claims the delivery', async () => {
  await store(2);
  const [first, second] = await claimSome();
  await passes(60);
  expect((await putBack(db.claims, 0)).count).toBe(2);
  const record = (of: { readonly idBytes: Buffer }): DeliveryRecord => ({
    ...fence(of),
    kind: 'succeeded',
    attempt: ATTEMPT,
  });
  expect((await writeRecords(db.records, [record(first!)], 'durable')).count).toBe(1);
  const others = await claim(
    db.claims,
    [{ ...queue, room: 10, after: undefined }],
    Buffer.alloc(16, 8),
    LEASE_MS,
    0,
  );
  expect(others.deliveries.map((d) => d.deliveryId)).toEqual([second!.deliveryId]);
  expect((await writeRecords(db.records, [record(second!)], 'durable')).count).toBe(0);
});

test('one call puts back so many, and two at once put back each once', async () => {
  await hold(MAX_PUT_BACK + 2_000);
  await passes(60);
  expect((await putBack(db.claims, 0)).count).toBe(MAX_PUT_BACK);
  const both = await Promise.all([putBack(db.claims, 0), putBack(db.claims, 0)]);
  expect(both[0].count + both[1].count).toBe(2_000);
  expect((await held()).count).toBe(0);
});

test('what the version before makes due again of a lease of this one is put back once it is due', async () => {
  await store(2);
  await claimSome();
  const retry = `UPDATE deliveries SET run_at = now() + $1::interval, is_parked = $2, lease = NULL, attempt_count = 1
    WHERE id = (SELECT id FROM deliveries WHERE lease IS NOT NULL ORDER BY id LIMIT 1)`;
  await database.owner.query(retry, ['0 s', false]);
  expect((await putBack(db.claims, 0)).count).toBe(1);
  expect(await claimSome()).toMatchObject([{ attemptCount: 1 }]);
  await database.owner.query(retry, ['1 h', true]);
  expect((await putBack(db.claims, 0)).count).toBe(0);
  await passes(3_600);
  expect((await unpark(db.claims, parkedFrom(0))).count).toBe(1);
  expect((await putBack(db.claims, 0)).count).toBe(2);
  expect(await claimSome()).toHaveLength(2);
});

test('a look without a time begins ten minutes ago', async () => {
  await hold(2);
  await passes(650);
  expect((await putBack(db.claims, undefined)).count).toBe(2);
  await database.owner.query('UPDATE deliveries SET is_leased = true');
  await passes(10);
  expect((await putBack(db.claims, undefined)).count).toBe(0);
});

test('a look goes on after a time, and one from the front finds what lies before it', async () => {
  await hold(2);
  const { nowUs } = await held();
  await passes(120);
  expect(await putBack(db.claims, nowUs - 30_000_000)).toMatchObject({ queues: [], count: 0 });
  const { count, nowUs: nextUs } = await putBack(db.claims, nowUs - 90_000_000);
  expect(count).toBe(2);
  expect(nextUs).toBeGreaterThan(nowUs);
});

test('what is being written to is passed over', async () => {
  await hold(3);
  await passes(60);
  const { owner } = database;
  await owner.query('BEGIN');
  await owner.query('SELECT FROM deliveries ORDER BY id LIMIT 1 FOR UPDATE');
  expect((await putBack(db.claims, 0)).count).toBe(2);
  await owner.query('COMMIT');
  expect((await putBack(db.claims, 0)).count).toBe(1);
});

test('cancelling what waits for a subscription, and removing a deleted one, reaches what is held', async () => {
  await hold(3);
  expect(await cancelDeliveries(db, tenantId, subscriptionId)).toBe(3);
  await database.owner.query('TRUNCATE events, closed_deliveries');
  await hold(3);
  await database.owner.query('UPDATE subscriptions SET deleted_at = now()');
  expect(await purgeSubscription(db, tenantId, uuidOf(subscriptionId))).toBe(3);
  expect((await database.owner.query('SELECT FROM deliveries')).rowCount).toBe(0);
});

test('what was handed over to a process that died reaches its endpoint through another, once its lease has run out', async () => {
  await using receiver = await startReceiver();
  await using own = await cloneDatabase();
  {
    await using api = await startTestInstance({ DISPATCH_ROLES: 'api' }, own);
    const { tenants, subscriptions, publish } = api.clients();
    await tenants.createTenant({ tenant: { tenantId } });
    await subscriptions.createSubscription({
      tenantId,
      subscription: { url: receiver.url, eventTypes: ['order.*'] },
    });
    await publish.publish({ tenantId, event: { type: 'order.created', body: { case: 'data', value: {} } } });
  }
  // As a process leaves it that was killed between the commit and the request, its lease about to end.
  await own.owner.query(
    "UPDATE deliveries SET run_at = now() + interval '2 s', lease = $1, is_leased = true",
    [lease],
  );
  await using _ = await startTestInstance({ DISPATCH_ROLES: 'worker' }, own);
  await eventually(() => expect(receiver.received).toHaveLength(1));
  await eventually(async () => expect((await own.owner.query('SELECT FROM deliveries')).rowCount).toBe(0));
});
