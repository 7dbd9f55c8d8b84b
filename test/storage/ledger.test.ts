// The judge of the fault runs is judged itself: each kind of broken promise is seen.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { idFromUuid, lowestUuidAt } from '../../src/domain/ids.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { type Arrival, BROKEN, checkLedger, hashOf } from '../support/ledger.ts';

let database: TestDatabase;
const uuid = lowestUuidAt(Date.now());
const eventId = idFromUuid('evt', uuid);
const body = Buffer.from('{}');
const acked = new Map([[eventId, { bodyHash: hashOf(body), deliveryCount: 1 }]]);
const arrival = (event = eventId, delivery = 'dlv_1', of = body): Arrival => ({
  eventId: event,
  deliveryId: delivery,
  bodyHash: hashOf(of),
});
const judge = (arrivals: readonly Arrival[], ledger = acked) =>
  checkLedger(database.owner, { acked: ledger, unackedHashes: new Set(), arrivals });
const succeeded = (attempt: number) =>
  database.owner.query(
    `INSERT INTO attempts (tenant_id, delivery_id, attempt, subscription_id, outcome, started_at, duration_us)
     VALUES ('a', $1, $2, $1, 'succeeded', now(), 1)`,
    [uuid, attempt],
  );

beforeAll(async () => {
  database = await cloneDatabase();
  await database.owner.query(
    "INSERT INTO events (tenant_id, id, type, payload) VALUES ('a', $1, 'x', '{}')",
    [uuid],
  );
  await succeeded(1);
});
afterAll(() => database[Symbol.asyncDispose]());

const clean = { duplicated: 0, ...Object.fromEntries(BROKEN.map((name) => [name, 0])) };

test('a clean run is clean', async () => {
  expect(await judge([arrival()])).toMatchObject(clean);
});
test('a delivery that never came is lost', async () => {
  expect(await judge([])).toMatchObject({ ...clean, lost: 1 });
});
test('a second request for a delivery is a duplicate', async () => {
  expect(await judge([arrival(), arrival()])).toMatchObject({ ...clean, duplicated: 1 });
});
test('a second delivery of an event that was acked with one was fanned out twice', async () => {
  expect(await judge([arrival(), arrival(eventId, 'dlv_2')])).toMatchObject({ ...clean, fannedOutTwice: 1 });
});
test('an event that nobody published, or with another body, is unexpected', async () => {
  expect(await judge([arrival(), arrival('evt_other', 'dlv_2')])).toMatchObject({ ...clean, unexpected: 1 });
  expect(await judge([arrival(eventId, 'dlv_1', Buffer.from('x'))])).toMatchObject({
    ...clean,
    unexpected: 1,
  });
});
test('an acked event that the database does not have is missing, and has no ending', async () => {
  const ghost = new Map([...acked, ['evt_ghost', { bodyHash: '', deliveryCount: 1 }]]);
  expect(await judge([arrival()], ghost)).toMatchObject({
    ...clean,
    missingEvents: 1,
    lost: 1,
    misrecorded: 1,
  });
});
test('a stored event that nobody was acked for is unknown, unless its publish may have failed', async () => {
  const arrivals: Arrival[] = [];
  const nobody = { acked: new Map(), arrivals };
  const of = (hashes: string[]) => checkLedger(database.owner, { ...nobody, unackedHashes: new Set(hashes) });
  expect(await of([])).toMatchObject({ ...clean, unknownEvents: 1 });
  expect(await of([hashOf(body)])).toMatchObject(clean);
});
test('a success that was recorded twice is misrecorded, and so is one that was not', async () => {
  await succeeded(2);
  expect(await judge([arrival()])).toMatchObject({ ...clean, misrecorded: 1 });
  await database.owner.query('DELETE FROM attempts');
  expect(await judge([arrival()])).toMatchObject({ ...clean, misrecorded: 1 });
  await succeeded(1);
});
test('a row that is still there is unfinished', async () => {
  await database.owner.query(
    "INSERT INTO deliveries (tenant_id, id, subscription_id, run_at) VALUES ('a', $1, $1, now())",
    [uuid],
  );
  expect(await judge([arrival()])).toMatchObject({ ...clean, unfinished: 1 });
});
