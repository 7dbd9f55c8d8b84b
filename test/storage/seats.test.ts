import pg from 'pg';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { createSeats } from '../../src/storage/seats.ts';
import { listen } from '../../src/storage/wakeups.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await cloneDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

/** A process of a host: its session listens, and its seats are asked for there. */
async function join(hostId: string, count: number) {
  const listener = { onConnection() {}, onReady() {}, onChanged() {}, onError() {} };
  const listening = listen(database.url, hostId, listener);
  let isEnded = false;
  const leave = async () => {
    if (!isEnded) await listening[Symbol.asyncDispose]();
    isEnded = true;
  };
  onTestFinished(leave);
  await eventually(() => expect(listening.session()).toBeDefined());
  const errors: unknown[] = [];
  const seats = createSeats(listening.session, hostId, count, (error) => errors.push(error));
  return { ...seats, leave, listening, errors };
}

test('a host has so many seats, each for one of its processes', async () => {
  const all = await Promise.all([1, 2, 3].map(() => join('host-a', 2)));
  expect(all.map(({ holds }) => holds())).toEqual([false, false, false]);
  const taken = [];
  for (const one of all) taken.push(await one.take());
  expect(taken).toEqual([true, true, false]);
  expect(all.map(({ holds }) => holds())).toEqual([true, true, false]);
  expect(await (await join('host-b', 1)).take()).toBe(true);
});

test('a seat that is given back is another’s', async () => {
  const [one, other] = [await join('host-c', 1), await join('host-c', 1)];
  expect(await one.take()).toBe(true);
  expect(await other.take()).toBe(false);
  await one.giveBack();
  expect(one.holds()).toBe(false);
  expect(await other.take()).toBe(true);
  expect(await one.take()).toBe(false);
});

test('a seat ends with the session that took it, however that ends, and is not held in the next session', async () => {
  const [one, other] = [await join('host-d', 1), await join('host-d', 1)];
  expect(await one.take()).toBe(true);
  const before = one.listening.session();
  const { rows } = await database.owner.query<{ ended: boolean }>(
    `SELECT pg_terminate_backend(pid) AS ended FROM pg_locks WHERE locktype = 'advisory' AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
  );
  expect(rows.length).toBeGreaterThan(0);
  await eventually(() => {
    expect(one.listening.session()).toBeDefined();
    expect(one.listening.session()).not.toBe(before);
  });
  expect(one.holds()).toBe(false);
  expect(await other.take()).toBe(true);
  expect(await one.take()).toBe(false);
  await other.leave();
  await eventually(async () => expect(await one.take()).toBe(true));
});

test('without a session nobody is asked', async () => {
  const { take, leave, holds, giveBack, errors } = await join('host-e', 1);
  await leave();
  expect(await take()).toBe(undefined);
  expect(holds()).toBe(false);
  await giveBack();
  expect(errors).toEqual([]);
});

test('a session that does not answer in time is ended, so that what it may have taken is free', async () => {
  const [one, other] = [await join('host-g', 1), await join('host-g', 1)];
  const before = one.listening.session()!;
  const query = before.query.bind(before);
  // The answer is lost after the seat was taken.
  Object.assign(before, {
    query: async (...args: Parameters<typeof query>) => {
      await query(...args);
      throw new Error('Query read timeout');
    },
  });
  expect(await one.take()).toBe(undefined);
  expect(one.errors).toHaveLength(1);
  await eventually(async () => expect(await other.take()).toBe(true));
  await eventually(() => {
    expect(one.listening.session()).toBeDefined();
    expect(one.listening.session()).not.toBe(before);
  });
});

test('a session that cannot answer is told of, and is as none', async () => {
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  await client.end();
  const errors: unknown[] = [];
  const { take, holds } = createSeats(
    () => client,
    'host-f',
    1,
    (error) => errors.push(error),
  );
  expect(await take()).toBe(undefined);
  expect(holds()).toBe(false);
  expect(errors).toHaveLength(1);
});
