// Instances that start at the same moment, on a real server: who has which part of what the limits let pass.
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Database, openDatabase } from '../../src/storage/database.ts';
import { beat, join } from '../../src/storage/instances.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';

const ROLES = new Set(['api', 'worker'] as const);
const AT_ONCE = 4; // as many as there are connections for it

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await cloneDatabase();
  db = await openDatabase(database.url, 4, () => {});
});
afterAll(async () => {
  await db[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

test('of instances that start at the same moment one has all of a limit, and the others nothing yet', async () => {
  for (let round = 0; round < 20; round++) {
    await database.owner.query('TRUNCATE instances');
    const joined = await Promise.all(Array.from({ length: AT_ONCE }, () => join(db, randomUUID(), ROLES)));
    expect(joined.map(({ worker }) => worker.count).sort()).toEqual([1, 2, 3, 4]);
    expect(joined.filter(({ worker }) => worker.isSettled).map(({ worker }) => worker.count)).toEqual([1]);
  }
});

test('each hears of all when it says again that it is alive', async () => {
  await database.owner.query('TRUNCATE instances');
  const ids = Array.from({ length: AT_ONCE }, () => randomUUID());
  await Promise.all(ids.map((id) => join(db, id, ROLES)));
  await database.owner.query("UPDATE instances SET started_at = now() - interval '10 s'");
  const heard = await Promise.all(ids.map((id) => beat(db.many, id, ROLES)));
  expect(heard.map(({ worker }) => worker.count)).toEqual([4, 4, 4, 4]);
  expect(heard.map(({ worker }) => worker.rank).sort()).toEqual([0, 1, 2, 3]);
  expect(heard.every(({ worker }) => worker.isSettled)).toBe(true);
});
