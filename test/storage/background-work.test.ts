// Replay jobs, retention and partitions: what goes on in the background, step by step.
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  createIdSource,
  deliveryIdOf,
  encodeId,
  lowestUuidAt,
  type ReplayId,
  type TenantId,
  uuidOf,
} from '../../src/domain/ids.ts';
import { createHistoryTasks } from '../../src/maintenance/history.ts';
import { runReplaysOnce } from '../../src/publishing/replay.ts';
import { type Database, openDatabase } from '../../src/storage/database.ts';
import { stopLeading, tryLead } from '../../src/storage/leaders.ts';
import { dropHistory, ensurePartitions } from '../../src/storage/partitions.ts';
import { databaseNowMs, expireDeliveries, purgeBefore } from '../../src/storage/purges.ts';
import { createReplay, getReplay, runningReplays, stepReplay } from '../../src/storage/replays.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';

let database: TestDatabase;
let db: Database;
const ids = createIdSource(Date.now, randomBytes);
const tenantId = 'acme' as TenantId;
const SUBSCRIPTION = '01990000-0000-7000-8000-000000000001';
const DAY_MS = 24 * 3600 * 1000;

beforeAll(async () => {
  database = await cloneDatabase();
  db = await openDatabase(database.url, 4, () => {});
  await database.owner.query(
    `INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ('acme', '', '{}', 'active')`,
  );
  await database.owner.query(
    `INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, attempt_timeout_ms, metadata, state)
     VALUES ('acme', $1, 'http://127.0.0.1/', '{a}', '', '{}', 1000, '{}', 'active')`,
    [SUBSCRIPTION],
  );
});
afterAll(async () => {
  await db[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

const count = async (table: string) =>
  Number((await database.owner.query(`SELECT count(*) AS n FROM ${table}`)).rows[0].n);

async function addDeadLetters(n: number, type: string): Promise<void> {
  const uuids = Array.from({ length: n }, () => uuidOf(encodeId('dlv', deliveryIdOf(ids.eventBytes(), 1))));
  await database.owner.query(
    `INSERT INTO dead_letters (tenant_id, id, subscription_id, event_type, reason, last_error_class, last_error_message, attempt_count)
     SELECT 'acme', id, $2, $3, 'attempts_exhausted', 'http_status', 'x', 3 FROM unnest($1::uuid[]) AS id`,
    [uuids, SUBSCRIPTION, type],
  );
}

describe('a replay job', () => {
  test('survives restarts between its steps and replays each dead letter once', async () => {
    await addDeadLetters(2_500, 'order.a');
    await addDeadLetters(500, 'user.b');
    const replayId = ids.next<ReplayId>('rpl');
    const what = { kind: 'dead_letters', filter: { eventType: 'order.*' } } as const;
    expect((await createReplay(db, tenantId, replayId, what, undefined)).totalCount).toBe(2_500);
    await addDeadLetters(10, 'order.later'); // given up after the call: not part of the job
    await database.owner.query(
      "UPDATE dead_letters SET dead_at = now() + interval '1 s' WHERE event_type = 'order.later'",
    );
    const finished: number[] = [];
    for (let restarts = 0; ; restarts++) {
      // Each step on a database of its own opening, as a new process would.
      const fresh = await openDatabase(database.url, 2, () => {});
      const deps = {
        running: () => runningReplays(fresh),
        step: (r: Parameters<typeof stepReplay>[1]) => stepReplay(fresh, r),
        readyAny: () => {},
        onFinished: (replay: { readonly replayedCount: number }) => finished.push(replay.replayedCount),
        onError: (e: unknown) => {
          throw e;
        },
      };
      const { nextInMs } = await runReplaysOnce(deps);
      await fresh[Symbol.asyncDispose]();
      if (nextInMs === undefined) {
        expect(finished).toEqual([2_500]);
        expect(restarts).toBeGreaterThanOrEqual(2);
        break;
      }
    }
    expect(await getReplay(db, tenantId, replayId)).toMatchObject({
      state: 'finished',
      replayedCount: 2_500,
    });
    expect([await count('deliveries'), await count('dead_letters')]).toEqual([2_500, 510]);
    const { rows } = await database.owner.query(
      'SELECT DISTINCT attempt_count, retry_base, lease FROM deliveries',
    );
    expect(rows).toEqual([{ attempt_count: 3, retry_base: 3, lease: null }]);
  });

  test('two leaders at once move nothing twice', async () => {
    await database.owner.query('TRUNCATE deliveries, dead_letters');
    await addDeadLetters(3_000, 'order.a');
    const replayId = ids.next<ReplayId>('rpl');
    const what = { kind: 'dead_letters', filter: {} } as const;
    const job = await createReplay(db, tenantId, replayId, what, undefined);
    await Promise.all(
      [1, 2, 3].map(async () => {
        while (!(await stepReplay(db, job)).isOver);
      }),
    );
    expect((await getReplay(db, tenantId, replayId)).replayedCount).toBe(3_000);
    expect(await count('deliveries')).toBe(3_000);
  });

  test('a job that fails does not hold up the others', async () => {
    const failed: unknown[] = [];
    const jobs = ['bad', 'good'] as const;
    const stepped: string[] = [];
    const deps = {
      running: async () => jobs.map((replayId) => ({ replayId, tenantId, waitMs: 0 }) as never),
      step: async (r: { replayId: string }) => {
        if (r.replayId === 'bad') throw new Error('no');
        stepped.push(r.replayId);
        return { movedCount: 1, isOver: true, finished: undefined };
      },
      readyAny: () => {},
      onFinished: () => {},
      onError: (e: unknown) => failed.push(e),
    };
    expect(await runReplaysOnce(deps)).toEqual({ movedCount: 1, nextInMs: undefined });
    expect([stepped, failed.length]).toEqual([['good'], 1]);
  });
});

describe('retention', () => {
  test('making partitions again makes none, and mends one that is missing', async () => {
    expect(await ensurePartitions(database.owner)).toBe(0);
    const { rows } = await database.owner.query(
      "SELECT relname FROM pg_class WHERE relname ~ '^events_h0_[0-9]+$' ORDER BY 1 DESC LIMIT 1",
    );
    await database.owner.query(
      `ALTER TABLE events_h0 DETACH PARTITION ${rows[0].relname}; DROP TABLE ${rows[0].relname}`,
    );
    expect(await ensurePartitions(database.owner)).toBe(1);
  });

  test('there are partitions for at least 7 days to come', async () => {
    const id = lowestUuidAt(Date.now() + 7 * DAY_MS);
    await database.owner.query(
      "INSERT INTO events (tenant_id, id, type, payload) VALUES ('acme', $1, 'x', 'x')",
      [id],
    );
    await database.owner.query('DELETE FROM events WHERE id = $1', [id]);
  });

  test('drops old history, gives up what is still unfinished from then, and keeps the rest', async () => {
    await database.owner.query('TRUNCATE deliveries, dead_letters, events');
    const now = await databaseNowMs(db);
    // The oldest partition is of the week before this one; "now" is put where that is out of the history.
    const oldId = lowestUuidAt(now - 7 * DAY_MS);
    const newId = lowestUuidAt(now);
    for (const id of [oldId, newId]) {
      await database.owner.query(
        "INSERT INTO events (tenant_id, id, type, payload) VALUES ('acme', $1, 'x', 'x')",
        [id],
      );
      await database.owner.query(
        "INSERT INTO deliveries (tenant_id, id, subscription_id, run_at) VALUES ('acme', $1, $2, now())",
        [id, SUBSCRIPTION],
      );
    }
    const leaves = async () =>
      (
        await database.owner.query(
          "SELECT relname FROM pg_class WHERE relname ~ '^(events|attempts)_h[0-9]+_[0-9]+$' AND relkind = 'r'",
        )
      ).rowCount!;
    const before = await leaves();
    const tasks = createHistoryTasks({
      makePartitions: () => ensurePartitions(database.owner),
      dropHistory: (keepFromMs) => dropHistory(database.owner, keepFromMs),
      purgeBefore: (beforeMs) => purgeBefore(db, beforeMs),
      expireDeliveries: (beforeMs) => expireDeliveries(db, beforeMs),
      databaseNowMs: async () => now,
      shorterHistories: async () => [],
      purgeHistoryOf: async () => 0,
      historyDays: (now % (7 * DAY_MS)) / DAY_MS, // the border between the two partitions
    });
    expect(await tasks.dropExpired()).toBe(8); // events and attempts, 4 hash partitions each
    expect(await leaves()).toBe(before - 8);
    expect((await database.owner.query('SELECT id FROM events')).rows).toEqual([{ id: newId }]);
    expect((await database.owner.query('SELECT id FROM deliveries')).rows).toEqual([{ id: newId }]);
    expect((await database.owner.query('SELECT id, reason FROM dead_letters')).rows).toEqual([
      { id: oldId, reason: 'event_expired' },
    ]);
    expect(await tasks.dropExpired()).toBe(0);
  });
});

test('one leader at a time, until it stops or its lease ends', async () => {
  const [a, b] = ['00000000-0000-0000-0000-00000000000a', '00000000-0000-0000-0000-00000000000b'];
  expect(await tryLead(db, 'x', a, 60_000)).toBe(true);
  expect(await tryLead(db, 'x', b, 60_000)).toBe(false);
  expect(await tryLead(db, 'x', a, 60_000)).toBe(true);
  await stopLeading(db, 'x', b);
  expect(await tryLead(db, 'x', b, 60_000)).toBe(false);
  await stopLeading(db, 'x', a);
  expect(await tryLead(db, 'x', b, 60_000)).toBe(true);
  await database.owner.query('UPDATE leaders SET expires_at = now()');
  expect(await tryLead(db, 'x', a, 60_000)).toBe(true);
});
