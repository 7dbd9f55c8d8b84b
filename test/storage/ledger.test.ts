// The judge of the fault runs is judged itself: each kind of broken promise is seen.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { idFromUuid, lowestUuidAt } from '../../src/domain/ids.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { checkLedger, hashOf } from '../support/ledger.ts';
import type { Received } from '../support/receiver.ts';

let database: TestDatabase;
const uuid = lowestUuidAt(Date.now());
const eventId = idFromUuid('evt', uuid);
const body = Buffer.from('{}');
const acked = new Map([[eventId, { bodyHash: hashOf(body), deliveryCount: 1 }]]);
const request = (event = eventId, delivery = 'dlv_1', of = body): Received => ({
  path: '/',
  headers: { 'webhook-id': event, 'dispatch-delivery-id': delivery },
  body: of,
  atMs: 0,
});
const judge = (received: readonly Received[], ledger = acked) =>
  checkLedger(database.owner, { acked: ledger, unackedHashes: new Set(), received });

beforeAll(async () => {
  database = await cloneDatabase();
  await database.owner.query(
    "INSERT INTO events (tenant_id, id, type, payload) VALUES ('a', $1, 'x', '{}')",
    [uuid],
  );
});
afterAll(() => database[Symbol.asyncDispose]());

const clean = { lost: 0, unexpected: 0, duplicated: 0, unfinished: 0, missingEvents: 0 };

test('a clean run is clean', async () => {
  expect(await judge([request()])).toMatchObject(clean);
});
test('a delivery that never came is lost', async () => {
  expect(await judge([])).toMatchObject({ ...clean, lost: 1 });
});
test('a second request for a delivery is a duplicate', async () => {
  expect(await judge([request(), request()])).toMatchObject({ ...clean, duplicated: 1 });
});
test('an event that nobody published, or with another body, is unexpected', async () => {
  expect(await judge([request(), request('evt_other', 'dlv_2')])).toMatchObject({ ...clean, unexpected: 1 });
  expect(await judge([request(eventId, 'dlv_1', Buffer.from('x'))])).toMatchObject({
    ...clean,
    unexpected: 1,
  });
});
test('an acked event that the database does not have is missing', async () => {
  const ghost = new Map([...acked, ['evt_ghost', { bodyHash: '', deliveryCount: 0 }]]);
  expect(await judge([request()], ghost)).toMatchObject({ ...clean, missingEvents: 1 });
});
test('a row that is still there is unfinished', async () => {
  await database.owner.query(
    "INSERT INTO deliveries (tenant_id, id, subscription_id, run_at) VALUES ('a', $1, $1, now())",
    [uuid],
  );
  expect(await judge([request()])).toMatchObject({ ...clean, unfinished: 1 });
});
