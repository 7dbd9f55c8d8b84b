import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { NewEvent } from '../../src/domain/event.ts';
import {
  createIdSource,
  deliveryIdOf,
  encodeId,
  type SubscriptionId,
  type TenantId,
} from '../../src/domain/ids.ts';
import { type ClaimPosition, claim } from '../../src/storage/claims.ts';
import { type Database, openDatabase } from '../../src/storage/database.ts';
import { type IngestBatch, type IngestEvent, ingest } from '../../src/storage/ingest.ts';
import { putBack } from '../../src/storage/leases.ts';
import { type DeliveryRecord, writeRecords } from '../../src/storage/records.ts';
import { createWalk, type QueueHead, type WalkPosition } from '../../src/storage/walk.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { explaining, openReader } from '../support/plans.ts';

let database: TestDatabase;
let db: Database;
const ids = createIdSource(Date.now, randomBytes);
const LEASE_MS = 60_000;
const a = 'a' as TenantId;
const b = 'b' as TenantId;

beforeAll(async () => {
  database = await cloneDatabase();
  db = await openDatabase(database.url, 4, () => {});
  for (const t of [a, b]) {
    await database.owner.query(
      `INSERT INTO tenants (tenant_id, display_name, metadata, state, config_version) VALUES ($1, '', '{}', 'active', 1)`,
      [t],
    );
  }
});
beforeEach(async () => {
  await database.owner.query(
    'TRUNCATE deliveries, events, attempts, dead_letters, closed_deliveries, idempotency_keys',
  );
});
afterAll(async () => {
  await db[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

const newSubscription = () => ids.bytes();
const subId = (bytes: Buffer) => encodeId('sub', bytes) as SubscriptionId;

function event(
  tenantId: TenantId,
  subscriptions: readonly Buffer[],
  more: Partial<NewEvent> & { owned?: boolean; orderKey?: string } = {},
): IngestEvent {
  const { owned = false, orderKey, ...fields } = more;
  const eventId = ids.eventBytes();
  return {
    eventId,
    event: {
      tenantId,
      type: 'order.created',
      payload: Buffer.from('{"a":1}'),
      contentType: 'application/json',
      source: '',
      subject: '',
      idempotencyKey: '',
      orderingKey: '',
      deliverAfterMs: undefined,
      metadata: {},
      ...fields,
    },
    deliveries: subscriptions.map((subscriptionId, i) => ({
      deliveryId: deliveryIdOf(eventId, i + 1),
      subscriptionId,
      owned,
      orderKey,
    })),
  };
}

async function store(
  events: readonly IngestEvent[],
  versions: Partial<Record<string, number>> = {},
  lease = randomBytes(16),
) {
  const tenantOf = ({ event: { tenantId } }: IngestEvent) =>
    [tenantId, { version: versions[tenantId] ?? 1, eventsPerDay: 0, eventsPerMonth: 0 }] as const;
  const tenants = new Map(events.map(tenantOf));
  const batch: IngestBatch = {
    tenants,
    events,
    lease,
    leaseMs: LEASE_MS,
    slot: 1,
    margin: 0,
    isUsage: true,
    onFar: () => {},
  };
  return ingest(db.engine, batch);
}

const written = async (records: readonly DeliveryRecord[]) =>
  (await writeRecords(db.records, records, 'durable')).count;
const count = async (table: string) =>
  Number((await database.owner.query(`SELECT count(*) AS n FROM ${table}`)).rows[0].n);
const claimAll = (
  queues: { tenantId: TenantId; subscriptionId: SubscriptionId; room: number }[],
  lease = randomBytes(16),
  after?: ClaimPosition,
) =>
  claim(
    db.claims,
    queues.map((queue) => ({ ...queue, after })),
    lease,
    LEASE_MS,
    performance.now(),
  );

describe('ingest', () => {
  test('stores a tenant’s rows beside each other and its lines in the order of the batch, however tenants are mixed', async () => {
    const tenants = ['a', 'b', 'mixed-1', 'mixed-2', 'mixed-3'] as TenantId[]; // of five, two are in one of four leaves
    const s = newSubscription();
    await database.owner.query(
      `INSERT INTO tenants (tenant_id, display_name, metadata, state, config_version)
       SELECT id, '', '{}', 'active', 1 FROM unnest($1::text[]) AS id WHERE id LIKE 'mixed-%'`,
      [tenants],
    );
    const mixed = Array.from({ length: 6 }, (_, i) =>
      tenants.map((t) => event(t, [s], { type: `order.n${i}`, orderKey: 'line' })),
    ).flat();
    expect(await store(mixed)).toEqual(mixed.map(() => ({ kind: 'stored' })));
    for (const table of ['events', 'deliveries']) {
      const { rows } = await database.owner.query(
        `SELECT tableoid::regclass::text AS leaf, tenant_id FROM ${table} ORDER BY tableoid, ctid`,
      );
      const changes = rows.filter((row, i) => row.tenant_id !== rows[i - 1]?.tenant_id);
      expect(changes, table).toHaveLength(tenants.length);
      expect(new Set(rows.map((row) => row.leaf)).size, table).toBeLessThan(tenants.length);
    }
    const { rows: lines } = await database.owner.query(
      `SELECT d.tenant_id, string_agg(e.type, ' ' ORDER BY d.order_seq) AS types FROM deliveries d
       JOIN events e ON e.tenant_id = d.tenant_id AND e.id = overlay(d.id::text PLACING '000000' FROM 31)::uuid GROUP BY 1`,
    );
    const types = 'order.n0 order.n1 order.n2 order.n3 order.n4 order.n5';
    expect(lines).toHaveLength(tenants.length);
    expect(lines).toEqual(lines.map(({ tenant_id }) => ({ tenant_id, types })));
  });

  test('stores events of several tenants with their deliveries in one statement', async () => {
    const s = newSubscription();
    expect(await store([event(a, [s]), event(b, [s, newSubscription()]), event(a, [])])).toEqual([
      { kind: 'stored' },
      { kind: 'stored' },
      { kind: 'stored' },
    ]);
    expect([await count('events'), await count('deliveries')]).toEqual([3, 3]);
  });

  test('stores nothing of a tenant whose configuration changed, and the others all the same', async () => {
    expect(await store([event(a, [newSubscription()]), event(b, [newSubscription()])], { a: 7 })).toEqual([
      { kind: 'stale' },
      { kind: 'stored' },
    ]);
    const { rows } = await database.owner.query(
      'SELECT tenant_id FROM deliveries UNION ALL SELECT tenant_id FROM events',
    );
    expect(rows).toEqual([{ tenant_id: 'b' }, { tenant_id: 'b' }]);
  });

  test('answers a used key with its first event, tells another body apart, and stores nothing twice', async () => {
    const s = newSubscription();
    const first = event(a, [s], { idempotencyKey: 'k' });
    expect(await store([first, event(a, [s])])).toEqual([{ kind: 'stored' }, { kind: 'stored' }]);
    const again = event(a, [s], { idempotencyKey: 'k' });
    const other = event(a, [s], { idempotencyKey: 'k', payload: Buffer.from('{"a":2}') });
    const eventId = encodeId('evt', first.eventId);
    expect(await store([again, event(a, [s])])).toEqual([
      { kind: 'duplicate', eventId, deliveryCount: 1, same: true },
      { kind: 'stored' },
    ]);
    expect(await store([other])).toEqual([{ kind: 'duplicate', eventId, deliveryCount: 1, same: false }]);
    expect([await count('events'), await count('deliveries'), await count('idempotency_keys')]).toEqual([
      3, 3, 1,
    ]);
  });

  test('gives the same key to another tenant, and to a new event once it has expired', async () => {
    const s = newSubscription();
    await store([event(a, [s], { idempotencyKey: 'k' })]);
    expect(await store([event(b, [s], { idempotencyKey: 'k' })])).toEqual([{ kind: 'stored' }]);
    await database.owner.query("UPDATE idempotency_keys SET expires_at = now() WHERE tenant_id = 'a'");
    expect(await store([event(a, [s], { idempotencyKey: 'k', payload: Buffer.from('2') })])).toEqual([
      { kind: 'stored' },
    ]);
    expect(await count('events')).toBe(3);
  });

  test('lets one of two concurrent publishes with a key win', async () => {
    const s = newSubscription();
    const events = Array.from({ length: 8 }, () => event(a, [s], { idempotencyKey: 'race' }));
    const results = (await Promise.all(events.map((e) => store([e])))).flat();
    expect(results.filter((r) => r.kind === 'stored')).toHaveLength(1);
    expect(results.filter((r) => r.kind === 'duplicate' && r.same)).toHaveLength(7);
    expect([await count('events'), await count('deliveries')]).toEqual([1, 1]);
  });
});

describe('claims', () => {
  test('two workers never get the same delivery', async () => {
    const s = newSubscription();
    await store(Array.from({ length: 400 }, () => event(a, [s])));
    const queue = { tenantId: a, subscriptionId: subId(s), room: 50 };
    const claimed = (await Promise.all(Array.from({ length: 8 }, () => claimAll([queue])))).flatMap(
      (c) => c.deliveries,
    );
    expect(new Set(claimed.map((c) => c.deliveryId)).size).toBe(claimed.length);
    expect(claimed.length).toBeGreaterThan(50);
  });

  test('bring the oldest first, at most as many as there is room for, with their events', async () => {
    const s = newSubscription();
    const events = Array.from({ length: 5 }, (_, i) => event(a, [s], { payload: Buffer.from(`${i}`) }));
    for (const e of events) await store([e]);
    const { deliveries } = await claimAll([{ tenantId: a, subscriptionId: subId(s), room: 3 }]);
    expect(deliveries.map((d) => d.event.payload.toString())).toEqual(['0', '1', '2']);
    expect(deliveries[0]).toMatchObject({ tenantId: 'a', attemptCount: 0, event: { type: 'order.created' } });
  });

  test('bring every body byte for byte: JSON in any script, other types, and what is no text although it says so', async () => {
    const s = newSubscription();
    const large = JSON.stringify('ö'.repeat(300_000));
    const json = ['{"a":"\\u0000 \\\\ \\n"}', '"Größe 🎉 \u2028 \ufeff"', '\ufeff[]', large].map((text) =>
      Buffer.from(text),
    );
    const other = [Buffer.from([0, 255, 92, 120, 10]), Buffer.alloc(0), randomBytes(300_000)];
    await store([
      ...json.map((payload) => event(a, [s], { payload })),
      ...other.map((payload) => event(a, [s], { payload, contentType: 'application/octet-stream' })),
    ]);
    const claimed = async () => {
      const { deliveries } = await claimAll([{ tenantId: a, subscriptionId: subId(s), room: 10 }]);
      return deliveries.map((d) => d.event);
    };
    const first = await claimed();
    expect(first.map((e) => e.payload)).toEqual([...json, ...other]);
    const contentTypes = first.map((e) => e.contentType);
    expect(new Set(contentTypes.slice(0, json.length))).toEqual(new Set(['application/json']));
    expect(new Set(contentTypes.slice(json.length))).toEqual(new Set(['application/octet-stream']));
    // dispatch refuses these; somebody else may have written them.
    const wrong = [Buffer.from([34, 0xc3, 0x28, 34]), Buffer.from([0]), Buffer.from('{"b":1}')];
    await store(wrong.map((payload) => event(a, [s], { payload })));
    expect((await claimed()).map((e) => e.payload)).toEqual(wrong);
    // This one is JSON, and looks like what pg makes of something that is not.
    const replaced = ['{"c":1}', '"\ufffd"', '{"d":1}'].map((text) => Buffer.from(text));
    await store(replaced.map((payload) => event(a, [s], { payload })));
    expect((await claimed()).map((e) => e.payload)).toEqual(replaced);
  });

  test('leave alone what is leased, delayed, or of another queue', async () => {
    const s = newSubscription();
    await store([
      event(a, [s], { owned: true }),
      event(a, [s], { deliverAfterMs: Date.now() + 60_000 }),
      event(b, [s]),
      event(a, [newSubscription()]),
    ]);
    expect((await claimAll([{ tenantId: a, subscriptionId: subId(s), room: 10 }])).deliveries).toEqual([]);
  });

  test('what was handed over is not in the way of the walk either', async () => {
    const held = newSubscription();
    const waiting = newSubscription();
    await store([event(a, [held], { owned: true }), event(a, [waiting])]);
    const { heads } = await createWalk(db.claims)(undefined, 10);
    expect(heads.map(({ subscriptionId }) => subscriptionId)).toEqual([subId(waiting)]);
  });

  test('take over what another worker held, once its lease has ended', async () => {
    const s = newSubscription();
    await store([event(a, [s])]);
    const queue = { tenantId: a, subscriptionId: subId(s), room: 10 };
    const [first] = (await claimAll([queue])).deliveries;
    expect((await claimAll([queue])).deliveries).toEqual([]);
    await database.owner.query('UPDATE deliveries SET run_at = now()');
    await putBack(db.claims, 0);
    const [second] = (await claimAll([queue])).deliveries;
    expect(second!.deliveryId).toBe(first!.deliveryId);
    expect(second!.lease.equals(first!.lease)).toBe(false);
  });

  test('the walk finds each queue once, in pages, with when it is due', async () => {
    const subs = Array.from({ length: 7 }, newSubscription);
    await store(subs.flatMap((s) => [event(a, [s]), event(b, [s], { deliverAfterMs: Date.now() + 60_000 })]));
    const walk = createWalk(db.claims);
    const { heads: all } = await walk(undefined, 100);
    expect(all).toHaveLength(14);
    expect(all.filter((q) => q.tenantId === 'a').every((q) => q.dueInMs <= 0)).toBe(true);
    expect(
      all.filter((q) => q.tenantId === 'b').every((q) => q.dueInMs > 50_000 && q.dueInMs <= 60_000),
    ).toBe(true);
    const pages: QueueHead[] = [];
    for (let from: WalkPosition | undefined; ; ) {
      const { heads, next } = await walk(from, 4);
      pages.push(...heads);
      if (next === undefined) break;
      from = next;
    }
    expect(pages.map((q) => `${q.tenantId}/${q.subscriptionId}`)).toEqual(
      all.map((q) => `${q.tenantId}/${q.subscriptionId}`),
    );
  });
});

const ATTEMPT = {
  attempt: 1,
  status: 500,
  startedAtMs: Date.now(),
  durationUs: 1234,
  responseBody: Buffer.from('no'),
  timing: { connectUs: 1_000, firstByteUs: 2_000 },
  responseHeaders: { 'content-type': 'text/plain' },
  batchSize: 0,
};
const FAILURE = { errorClass: 'http_status', message: 'the endpoint answered 500' } as const;

describe('records', () => {
  async function claimOne() {
    const s = newSubscription();
    await store([event(a, [s])]);
    const { deliveries } = await claimAll([{ tenantId: a, subscriptionId: subId(s), room: 1 }]);
    const { tenantId, idBytes, lease } = deliveries[0]!;
    return { tenantId, idBytes, lease };
  }

  function allKinds(fence: Awaited<ReturnType<typeof claimOne>>): DeliveryRecord[] {
    return [
      { ...fence, kind: 'succeeded', attempt: ATTEMPT },
      { ...fence, kind: 'retry', attempt: ATTEMPT, failure: FAILURE, delayMs: 1000 },
      {
        ...fence,
        kind: 'dead',
        reason: 'attempts_exhausted',
        attempt: ATTEMPT,
        failure: FAILURE,
        eventType: 'order.created',
        attemptCount: 1,
        stopsLine: false,
      },
      { ...fence, kind: 'release', delayMs: 0 },
      { ...fence, kind: 'cancelled' },
    ];
  }

  test('a worker that lost its lease writes nothing, whatever it wants to write', async () => {
    const fence = await claimOne();
    await database.owner.query(
      'UPDATE deliveries SET lease = gen_random_uuid(), run_at = now() + $1::interval',
      ['1 min'],
    );
    const before = (await database.owner.query('SELECT * FROM deliveries')).rows;
    for (const record of allKinds(fence)) expect(await written([record]), record.kind).toBe(0);
    expect((await database.owner.query('SELECT * FROM deliveries')).rows).toEqual(before);
    expect([await count('attempts'), await count('dead_letters'), await count('closed_deliveries')]).toEqual([
      0, 0, 0,
    ]);
  });

  test('a success leaves an attempt and no delivery', async () => {
    const fence = await claimOne();
    expect(await written([allKinds(fence)[0]!])).toBe(1);
    expect([await count('deliveries'), await count('attempts')]).toEqual([0, 1]);
    expect(await written([allKinds(fence)[0]!])).toBe(0);
  });

  test('a retry frees the lease, counts the attempt and moves the due time', async () => {
    expect(await written([allKinds(await claimOne())[1]!])).toBe(1);
    const { rows } = await database.owner.query(
      'SELECT attempt_count, lease, run_at > now() AS later, run_at <= now() + $1::interval AS soon FROM deliveries',
      ['1 s'],
    );
    expect(rows).toEqual([{ attempt_count: 1, lease: null, later: true, soon: true }]);
  });

  test('a release charges nothing and leaves no attempt', async () => {
    expect(await written([allKinds(await claimOne())[3]!])).toBe(1);
    const { rows } = await database.owner.query(
      'SELECT attempt_count, lease, run_at <= now() AS due FROM deliveries',
    );
    expect(rows).toEqual([{ attempt_count: 0, lease: null, due: true }]);
    expect(await count('attempts')).toBe(0);
  });

  test('a dead letter carries its reason and the last answer', async () => {
    expect(await written([allKinds(await claimOne())[2]!])).toBe(1);
    const { rows } = await database.owner.query(
      'SELECT reason, last_status, last_error_class, last_response_body, attempt_count FROM dead_letters',
    );
    expect(rows).toEqual([
      {
        reason: 'attempts_exhausted',
        last_status: 500,
        last_error_class: 'http_status',
        last_response_body: Buffer.from('no'),
        attempt_count: 1,
      },
    ]);
    expect([await count('deliveries'), await count('attempts')]).toEqual([0, 1]);
  });
});

test('a claim that goes on behind a position takes what follows it, also of the same time, and leaves what is in front', async () => {
  const s = newSubscription();
  await database.owner.query(
    `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at)
     SELECT $1, ('01990000-0000-7000-8000-00000000000' || i)::uuid, $2, now() - interval '1 hour'
     FROM generate_series(1, 6) AS i`,
    [a, s],
  );
  const queue = { tenantId: a, subscriptionId: encodeId('sub', s) as SubscriptionId };
  // There are no events here: what is claimed comes back without one.
  const [first, second] = (await claimAll([{ ...queue, room: 2 }])).withoutEvent;
  const last = (c: { idBytes: Buffer }) => c.idBytes[15];
  expect([first, second].map((c) => last(c!))).toEqual([1, 2]);
  await database.owner.query(
    "UPDATE deliveries SET run_at = run_at - interval '1 day' WHERE id::text LIKE '%3'",
  );
  const behind = await claimAll([{ ...queue, room: 2 }], randomBytes(16), second);
  expect(behind.withoutEvent.map(last)).toEqual([4, 5]);
  const rest = await claimAll([{ ...queue, room: 5 }]);
  expect(rest.withoutEvent.map(last)).toEqual([3, 6]);
});

test('a claim looks rows up by key, however long the queue beside it is', async () => {
  const [big, small] = [newSubscription(), newSubscription()];
  await database.owner.query(
    `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at)
     SELECT $1, gen_random_uuid(), $2, now() FROM generate_series(1, 50000)`,
    [a, big],
  );
  await store([event(a, [small])]);
  await database.owner.query('ANALYZE deliveries');
  const { pool, plans } = explaining(db.claims);
  const queue = {
    tenantId: a,
    subscriptionId: encodeId('sub', small) as SubscriptionId,
    room: 5,
    after: undefined,
  };
  const claimed = await claim(pool, [queue], randomBytes(16), LEASE_MS, performance.now());
  expect(claimed.deliveries).toHaveLength(1);
  expect(plans.get('claim')).toContain('Conflict Resolution: UPDATE');
  expect(plans.get('claim')).not.toMatch(/Hash Join|Seq Scan/);
});

test('no statement of a delivery reads through a queue that the planner takes for empty', async () => {
  await database.owner.query('DELETE FROM deliveries');
  await database.owner.query('VACUUM ANALYZE deliveries');
  const s = newSubscription();
  await store([event(a, [s]), event(a, [s]), event(a, [s])]);
  const claiming = explaining(db.claims);
  const queue = {
    tenantId: a,
    subscriptionId: encodeId('sub', s) as SubscriptionId,
    room: 3,
    after: undefined,
  };
  const lease = randomBytes(16);
  const { deliveries } = await claim(claiming.pool, [queue], lease, LEASE_MS, performance.now());
  const recording = explaining(db.records);
  const [first, second, third] = deliveries.map((d) => ({ tenantId: a, idBytes: d.idBytes, lease }));
  const { count } = await writeRecords(
    recording.pool,
    [
      { ...first!, kind: 'succeeded', attempt: { ...ATTEMPT, status: 204 } },
      { ...second!, kind: 'retry', attempt: ATTEMPT, failure: FAILURE, delayMs: 1_000 },
      { ...third!, kind: 'release', delayMs: 0 },
    ],
    'soon',
  );
  expect(count).toBe(3);
  const plans = [...claiming.plans, ...recording.plans];
  expect(plans.map(([name]) => name).sort()).toEqual([
    'claim',
    'claimed-events',
    'record-release',
    'record-retry-soon',
    'record-succeeded-soon',
  ]);
  for (const [name, plan] of plans) {
    expect(plan, name).not.toMatch(/(?:Hash|Merge) Join|Seq Scan|Join Filter/);
    // Each scan of an index says which of it, and records look up by key.
    const scans = plan.match(/Index Scan (?:using|on) \w*/g) ?? [];
    const conditions = plan.match(/Index Cond: /g) ?? [];
    expect(conditions, `${name}\n${plan}`).toHaveLength(scans.length);
    if (name.startsWith('record')) expect(scans.filter((scan) => !scan.endsWith('_pkey'))).toEqual([]);
  }
});

test('a claim that goes on in a queue reads nothing of what was delivered in front of it and is not vacuumed', async () => {
  const { owner, url } = database;
  const s = newSubscription();
  await using _ = await openReader(url); // from here on nothing that is deleted is forgotten
  await owner.query(
    `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at)
      SELECT $1, gen_random_uuid(), $2, now() - interval '1 min' FROM generate_series(1, 20000)`,
    [a, s],
  );
  await owner.query('DELETE FROM deliveries WHERE tenant_id = $1 AND subscription_id = $2', [a, s]);
  await store([event(a, [s])]);
  const { rows } = await owner.query('SELECT extract(epoch FROM now())::float8 * 1000 AS now_ms');
  const queue = {
    tenantId: a,
    subscriptionId: encodeId('sub', s) as SubscriptionId,
    room: 3,
    after: { dueAtMs: rows[0].now_ms - 30_000, idBytes: Buffer.alloc(16) },
  };
  const claiming = explaining(db.claims, 'ANALYZE, BUFFERS, TIMING OFF');
  await claim(claiming.pool, [queue], randomBytes(16), LEASE_MS, performance.now());
  const plan = claiming.plans.get('claim')!;
  const pages = plan.match(
    /Index Scan using \w*_run_at_id_idx\d* .*rows=1\.00.*\n(?:.*\n)*? *Buffers: (.*)/,
  )?.[1];
  const read = [...(pages ?? '').matchAll(/(?:hit|read)=(\d+)/g)].reduce((sum, [, n]) => sum + Number(n), 0);
  expect(read, plan).toBeGreaterThan(0);
  expect(read, plan).toBeLessThan(20); // all that was delivered has some 200 pages in this index
});

test('a look for leases that ended reads nothing of what was recorded before it goes on, and by no table', async () => {
  const { owner, url } = database;
  const s = newSubscription();
  await using _ = await openReader(url);
  await owner.query(
    `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at, lease, is_leased)
      SELECT $1, gen_random_uuid(), $2, now() + i * interval '1 min', $3, true
      FROM generate_series(-20000, 20000) AS i WHERE abs(i) > 1`,
    [a, s, randomBytes(16)],
  );
  await owner.query('DELETE FROM deliveries WHERE tenant_id = $1 AND subscription_id = $2', [a, s]);
  await store([event(a, [s], { owned: true })]);
  await owner.query("UPDATE deliveries SET run_at = now() - interval '1 s' WHERE subscription_id = $1", [s]);
  const { rows } = await owner.query('SELECT extract(epoch FROM now())::float8 * 1000000 AS now_us');
  const looking = explaining(db.claims, 'ANALYZE, BUFFERS, TIMING OFF');
  // What EXPLAIN ANALYZE put back is not there any more.
  expect((await putBack(looking.pool, rows[0].now_us - 5_000_000)).count).toBe(0);
  const plan = looking.plans.get('put-back')!;
  expect(plan).not.toMatch(/Seq Scan/);
  expect(plan).toMatch(/Conflicting Tuples: 1\n/);
  const read = Number(/Buffers: shared hit=(\d+)/.exec(plan)?.[1]); // of the first line: of all that reads
  expect(read, plan).toBeGreaterThan(0);
  expect(read, plan).toBeLessThan(300); // all that was recorded has some 700 pages in the table
});
