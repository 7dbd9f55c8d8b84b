// Of a configuration that changed only the changes are read, and what comes of it is what reading all of it gives.
import { randomBytes, randomUUID } from 'node:crypto';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { idFromUuid, type SubscriptionId, type TenantId, uuidOf } from '../../src/domain/ids.ts';
import { DEFAULT_QUOTA } from '../../src/domain/quota.ts';
import { type MasterKeys, seal } from '../../src/domain/sealing.ts';
import { signatureHeader } from '../../src/domain/signature.ts';
import type { SubscriptionSettings } from '../../src/domain/subscription.ts';
import { writeBreaker } from '../../src/storage/breakers.ts';
import { type Database, openDatabase } from '../../src/storage/database.ts';
import { purgeSubscription } from '../../src/storage/purges.ts';
import type { TenantConfig } from '../../src/storage/read-config.ts';
import {
  createSubscription,
  deleteSubscription,
  disableSubscriptions,
  type NewSecret,
  rotateSecret,
  setSubscriptionState,
  setVerified,
  updateSubscription,
} from '../../src/storage/subscriptions.ts';
import { createTenantConfigs } from '../../src/storage/tenant-configs.ts';
import { createTenant, setOwnQuota, setTenantState } from '../../src/storage/tenants.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

const MASTER_KEYS: MasterKeys = [{ id: 'k1', key: Buffer.alloc(32, 7) }];
const TYPES = ['order.created', 'order.updated', 'invoice.paid', 'a.b.c'];

const SETTINGS: SubscriptionSettings = {
  url: 'https://example.com/0',
  eventTypes: ['order.*'],
  description: '',
  headers: {},
  retryPolicy: undefined,
  attemptTimeoutMs: 1_000,
  metadata: {},
  signatureSchemes: ['v1'],
  compatibilityHeaders: false,
  maxPerSecond: undefined,
  maxInFlight: undefined,
  ordering: 'none',
  onDeadLetter: 'skip',
  batch: undefined,
};

const sealed = (tenantId: TenantId, subscriptionId: SubscriptionId, column: string, plain: Buffer) =>
  seal(MASTER_KEYS, { tenantId, resourceId: subscriptionId, column }, plain, randomBytes(12));

const newSecret = (tenantId: TenantId, subscriptionId: SubscriptionId): NewSecret => ({
  uuid: randomUUID(),
  scheme: 'v1',
  sealed: sealed(tenantId, subscriptionId, 'secret', randomBytes(32)),
  publicKey: undefined,
});

const credentials = (tenantId: TenantId, subscriptionId: SubscriptionId, token: string) => ({
  sealed: sealed(tenantId, subscriptionId, 'credentials', Buffer.from(JSON.stringify({ token }))),
});

/** All that a configuration says, but for times on the clock of its process. */
function told(config: TenantConfig | undefined) {
  if (config === undefined) return undefined;
  const { targets, matches, serial, ...rest } = config;
  const all = [...targets.values()].map(({ secrets, lastingKeys, breaker, ...target }) => ({
    ...target,
    breaker: breaker && { phase: breaker.phase, openCount: breaker.openCount, at: breaker.writtenAtMs },
    signs: secrets.map(({ key, liveUntilMs }) => [
      signatureHeader([key], 'id', 1, Buffer.from('x')),
      liveUntilMs === Number.POSITIVE_INFINITY,
    ]),
    lasting: lastingKeys && signatureHeader(lastingKeys, 'id', 1, Buffer.from('x')),
  }));
  const matched = TYPES.map((type) =>
    matches.match(type).map((target) => [target.subscriptionId, target.url]),
  );
  const byId = (a: { subscriptionId: string }, b: { subscriptionId: string }) =>
    a.subscriptionId < b.subscriptionId ? -1 : 1;
  return { ...rest, targets: all.sort(byId), matched };
}

/** A cache, what it asked the database, and all of the configuration as it is read without one. */
function cacheOf(afterPage: () => Promise<unknown> = async () => {}) {
  const asked: string[] = [];
  let passedMs = 0;
  let shiftMs = 0;
  const query = (async (statement: { name: string; text: string; values: unknown[] }) => {
    asked.push(statement.name);
    const page = await db.claims.query(statement);
    for (const row of page.rows as { read_at_ms: number }[]) row.read_at_ms += shiftMs;
    await afterPage();
    return page;
  }) as typeof db.claims.query;
  const create = (claims: typeof db.claims) =>
    createTenantConfigs(
      { many: db.many, claims },
      MASTER_KEYS,
      DEFAULT_QUOTA,
      () => performance.now() + passedMs,
      (error) => expect.fail(`${error}`),
    );
  const configs = create({ ...db.claims, query });
  return {
    configs,
    /** Time passes, on the process's clock and, but for `here`, on the database's. */
    pass: (ms: number, where: 'here' | 'everywhere' = 'everywhere') => {
      passedMs += ms;
      if (where === 'everywhere') shiftMs += ms;
    },
    /** The statements since the last time. */
    asked: () => asked.splice(0),
    /** As if a notification had come. */
    anew: (tenantId: TenantId) => {
      configs.forget(tenantId);
      return configs.get(tenantId);
    },
    all: (tenantId: TenantId) => create(db.claims).get(tenantId),
  };
}

async function create(
  tenantId: TenantId,
  settings: Partial<SubscriptionSettings> = {},
  uuid: string = randomUUID(),
) {
  const subscriptionId = idFromUuid('sub', uuid) as SubscriptionId;
  const secrets = [newSecret(tenantId, subscriptionId)];
  const all = { ...SETTINGS, ...settings };
  await createSubscription(db, tenantId, subscriptionId, all, secrets, 'unchanged', 1_000, 'active');
  return subscriptionId;
}

let tenantCount = 0;
const newTenantId = () => `tenant-${tenantCount++}` as TenantId;

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await cloneDatabase();
  db = await openDatabase(database.url, 2, () => {});
});
afterAll(async () => {
  await db[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

const openTenant = (tenantId: TenantId) =>
  createTenant(db, tenantId, { displayName: '', metadata: {}, policy: {} });

type Change = (tenantId: TenantId, id: SubscriptionId, n: number) => Promise<unknown>;

const updated =
  (settings: (n: number) => Partial<SubscriptionSettings>): Change =>
  (tenantId, id, n) =>
    updateSubscription(db, tenantId, id, undefined, (before) => ({
      settings: { ...before, ...settings(n) },
      credentials:
        n % 3 === 0 ? credentials(tenantId, id, `t${n}`) : n % 3 === 1 ? 'unchanged' : { sealed: undefined },
      secrets: [],
      mustVerify: false,
    }));

/** Everything that a caller, or dispatch itself, can do to a subscription. */
const MARKED: Readonly<Record<string, Change>> = {
  create: (tenantId, _, n) => create(tenantId, { eventTypes: [TYPES[n % TYPES.length]!] }),
  url: updated((n) => ({ url: `https://example.com/${n}` })),
  types: updated((n) => ({ eventTypes: TYPES.slice(n % TYPES.length) })),
  ordering: updated((n) => ({ ordering: n % 2 === 0 ? 'none' : 'subscription' })),
  batch: updated((n) => ({
    batch: n % 2 === 0 ? undefined : { maxEvents: n + 2, maxBytes: 1e5, maxWaitMs: 10, format: 'json_array' },
  })),
  rotate: (tenantId, id, n) =>
    rotateSecret(db, tenantId, id, n % 2 === 0 ? 0 : 60_000, newSecret(tenantId, id)).catch((error) => {
      if (error.reason !== 'TOO_MANY_SECRETS') throw error;
    }),
  pause: (tenantId, id) => setSubscriptionState(db, tenantId, id, 'paused'),
  resume: (tenantId, id) => setSubscriptionState(db, tenantId, id, 'active'),
  disable: (tenantId, id) => disableSubscriptions(db, tenantId, new Map([[id, 'gone']])),
  verify: async (tenantId, id) => {
    const { rows } = await db.claims.query<{ url: string }>({
      name: 'url-of',
      text: 'SELECT url FROM subscriptions WHERE id = $1',
      values: [uuidOf(id)],
    });
    await setVerified(db, tenantId, id, rows[0]!.url);
  },
  delete: (tenantId, id) => deleteSubscription(db, tenantId, id, undefined),
  opens: (tenantId, id, n) =>
    writeBreaker(db, tenantId, id, { phase: 'open', reason: 'failure_rate', openCount: n, openForMs: 1_000 }),
  closes: (tenantId, id) =>
    writeBreaker(db, tenantId, id, { phase: 'closed', reason: '', openCount: 0, openForMs: 0 }),
};

async function live(tenantId: TenantId): Promise<SubscriptionId[]> {
  const { rows } = await database.owner.query<{ id: string }>(
    'SELECT id FROM subscriptions WHERE tenant_id = $1 AND deleted_at IS NULL ORDER BY created_at, id',
    [tenantId],
  );
  return rows.map(({ id }) => idFromUuid('sub', id) as SubscriptionId);
}

test('after any changes, what was read of them and what was known before are the configuration that is there', async () => {
  const cache = cacheOf();
  const change = fc.tuple(fc.constantFrom(...Object.keys(MARKED)), fc.nat(20));
  const steps = fc.array(fc.array(change, { maxLength: 3 }), { minLength: 1, maxLength: 5 });
  const property = fc.asyncProperty(steps, async (all) => {
    const tenantId = newTenantId();
    await openTenant(tenantId);
    for (let i = 0; i < 3; i++) await create(tenantId);
    await cache.anew(tenantId);
    cache.asked();
    for (const changes of all) {
      for (const [name, n] of changes) {
        const ids = await live(tenantId);
        if (ids.length > 0 || name === 'create') await MARKED[name]!(tenantId, ids[n % ids.length]!, n);
      }
      expect(told(await cache.anew(tenantId))).toEqual(told(await cache.all(tenantId)));
      expect(cache.asked()).toEqual(['tenant-config-changes']);
    }
  });
  await fc.assert(property, { numRuns: 40 });
}, 60_000);

test.each(Object.keys(MARKED))(
  '%s: seen by who reads only changes, and nothing else is read',
  async (name) => {
    const tenantId = newTenantId();
    const cache = cacheOf();
    await openTenant(tenantId);
    for (let i = 0; i < 3; i++) await create(tenantId);
    const [, id] = await live(tenantId);
    if (name === 'resume') await MARKED.pause!(tenantId, id!, 0);
    if (name === 'closes') await MARKED.opens!(tenantId, id!, 1);
    // So that it is no change of just now that is read once more.
    await database.owner.query("UPDATE breakers SET changed_at = changed_at - interval '10 min'");
    const before = await cache.anew(tenantId);
    await MARKED[name]!(tenantId, id!, 3);
    const after = await cache.anew(tenantId);
    expect(told(after)).toEqual(told(await cache.all(tenantId)));
    const kept = [...before!.targets.values()].filter(
      (target) => after!.targets.get(target.subscriptionId) === target,
    );
    expect(kept.length).toBe(name === 'create' ? 3 : 2); // the very objects
    expect(before!.targets.size).toBe(3);
  },
);

/** What says nothing of which subscriptions it changed. */
const UNMARKED: Readonly<Record<string, (tenantId: TenantId, id: SubscriptionId) => Promise<unknown>>> = {
  'a quota': (tenantId) => setOwnQuota(db, tenantId, () => ({ allowHttpEndpoints: true })),
  'a state of the tenant': (tenantId) => setTenantState(db, tenantId, 'suspended'),
  'a change by the version before': async (tenantId, id) => {
    await database.owner.query(
      'UPDATE tenants SET config_version = config_version + 1 WHERE tenant_id = $1',
      [tenantId],
    );
    await database.owner.query("UPDATE subscriptions SET url = 'https://example.com/new' WHERE id = $1", [
      uuidOf(id),
    ]);
  },
  'a deletion whose row is gone': async (tenantId, id) => {
    await deleteSubscription(db, tenantId, id, undefined);
    expect(await purgeSubscription(db, tenantId, uuidOf(id))).toBe(1);
  },
  'changes that the database lost': async (tenantId) => {
    await database.owner.query(
      'UPDATE tenants SET config_version = config_version - 1, marked_changes = marked_changes - 1 WHERE tenant_id = $1',
      [tenantId],
    );
    await database.owner.query(
      "UPDATE subscriptions SET url = 'https://example.com/old' WHERE tenant_id = $1",
      [tenantId],
    );
  },
  'the same tenant, made anew': async (tenantId) => {
    for (const table of ['subscriptions', 'subscription_secrets', 'tenants']) {
      await database.owner.query(`DELETE FROM ${table} WHERE tenant_id = $1`, [tenantId]);
    }
    await openTenant(tenantId);
    for (let i = 0; i < 3; i++) await create(tenantId, { url: 'https://example.com/anew' });
  },
};

test.each(Object.keys(UNMARKED))('%s: all is read', async (name) => {
  const tenantId = newTenantId();
  const cache = cacheOf();
  await openTenant(tenantId);
  for (let i = 0; i < 3; i++) await create(tenantId);
  const before = told(await cache.anew(tenantId));
  cache.asked();
  await UNMARKED[name]!(tenantId, (await live(tenantId))[1]!);
  const after = told(await cache.anew(tenantId));
  expect(after).toEqual(told(await cache.all(tenantId)));
  expect(after).not.toEqual(before);
  expect(cache.asked()).toEqual(['tenant-config-changes', 'tenant-config']);
});

test('more changes than a page holds are read in pages', async () => {
  const tenantId = newTenantId();
  const cache = cacheOf();
  await openTenant(tenantId);
  for (let i = 0; i < 401; i++) await create(tenantId);
  await cache.anew(tenantId);
  cache.asked();
  await disableSubscriptions(db, tenantId, new Map((await live(tenantId)).map((id) => [id, 'gone'])));
  expect(told(await cache.anew(tenantId))).toEqual(told(await cache.all(tenantId)));
  expect(cache.asked()).toEqual(Array(3).fill('tenant-config-changes'));
});

test('after a connection was lost nothing is built on what was known: the database may be another one', async () => {
  const tenantId = newTenantId();
  const cache = cacheOf();
  await openTenant(tenantId);
  const reading = cache.configs.get(tenantId);
  cache.configs.clear(); // also overtakes what is being read
  await reading;
  await cache.configs.get(tenantId);
  expect(cache.asked()).toEqual(['tenant-config', 'tenant-config']);
  cache.configs.clear();
  await cache.configs.get(tenantId);
  expect(cache.asked()).toEqual(['tenant-config']);
});

test('a configuration that changed while it was read is what the next one is read from', async () => {
  const tenantId = newTenantId();
  const cache = cacheOf();
  await openTenant(tenantId);
  const id = await create(tenantId);
  const reading = cache.configs.get(tenantId);
  cache.configs.forget(tenantId); // a notification overtakes it
  expect((await reading)?.targets.size).toBe(1);
  expect(cache.configs.peek(tenantId)).toBeUndefined();
  await MARKED.url!(tenantId, id, 5);
  expect(told(await cache.configs.get(tenantId))).toEqual(told(await cache.all(tenantId)));
  expect(cache.asked()).toEqual(['tenant-config', 'tenant-config-changes']);
});

test('nor is what was being read then given to anybody', async () => {
  const tenantId = newTenantId();
  const cache = cacheOf();
  await openTenant(tenantId);
  await create(tenantId);
  await cache.configs.get(tenantId);
  // Another database, with the same version of something else.
  await database.owner.query("UPDATE subscriptions SET url = 'https://example.com/x' WHERE tenant_id = $1", [
    tenantId,
  ]);
  const reading = cache.anew(tenantId);
  cache.configs.clear();
  expect((await reading)!.targets.values().next().value!.path).toBe('/x');
  expect(cache.configs.peek(tenantId)).toBe(await reading);
});

test('a clock of the database that went back is no measure of what was written since', async () => {
  const { tenantId, ids } = await openLarge(1);
  const cache = cacheOf();
  cache.pass(300_000);
  await cache.configs.get(tenantId);
  cache.pass(-300_000);
  await MARKED.opens!(tenantId, ids[0]!, 1);
  expect((await cache.anew(tenantId))!.targets.get(ids[0]!)?.breaker?.phase).toBe('open');
});

test('when any tenant may have changed, each is read anew from what is known of it', async () => {
  const tenantId = newTenantId();
  const cache = cacheOf();
  await openTenant(tenantId);
  const id = await create(tenantId);
  await cache.configs.get(tenantId);
  await MARKED.url!(tenantId, id, 7);
  cache.configs.forget(undefined);
  expect(told(await cache.configs.get(tenantId))).toEqual(told(await cache.all(tenantId)));
  expect(cache.asked()).toEqual(['tenant-config', 'tenant-config-changes']);
});

/** A tenant with as many subscriptions, and their ids. */
async function openLarge(count: number) {
  const tenantId = newTenantId();
  await openTenant(tenantId);
  await database.owner.query(
    `INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, attempt_timeout_ms, metadata, state)
     SELECT $1, gen_random_uuid(), 'https://example.com/', '{order.*}', '', '{}', 1000, '{}', 'active'
     FROM generate_series(1, $2::int4)`,
    [tenantId, count],
  );
  return { tenantId, ids: await live(tenantId) };
}

test('breakers of more subscriptions than a page holds are read in pages, and of what did not change nothing is made anew', async () => {
  const { tenantId } = await openLarge(450);
  const cache = cacheOf();
  await cache.configs.get(tenantId);
  cache.asked();
  await database.owner.query(
    `INSERT INTO breakers (tenant_id, subscription_id, phase, reason, open_count, until)
     SELECT tenant_id, id, 'open', 'failure_rate', 1, now() FROM subscriptions WHERE tenant_id = $1`,
    [tenantId],
  );
  const opened = await cache.anew(tenantId);
  expect(told(opened)).toEqual(told(await cache.all(tenantId)));
  expect([...opened!.targets.values()].filter(({ breaker }) => breaker?.phase === 'open').length).toBe(450);
  const again = await cache.anew(tenantId); // they are read once more
  expect(
    [...again!.targets.values()].filter((target) => opened!.targets.get(target.subscriptionId) === target)
      .length,
  ).toBe(450);
  expect(cache.asked()).toEqual(Array(6).fill('tenant-config-changes'));
});

test('a breaker that was being written while a configuration was read is seen by the next', async () => {
  const { tenantId, ids } = await openLarge(1);
  const cache = cacheOf();
  await using writer = await openDatabase(database.url, 1, () => {});
  const entered = Promise.withResolvers<void>();
  const wasRead = Promise.withResolvers<void>();
  const writing = writer.inTenant(tenantId, async (tx) => {
    const many = {
      query: (statement: Parameters<typeof tx.query>[0]) => tx.query(statement),
    } as Database['many'];
    await writeBreaker({ many }, tenantId, ids[0]!, {
      phase: 'open',
      reason: 'failure_rate',
      openCount: 1,
      openForMs: 1,
    });
    entered.resolve();
    await wasRead.promise;
  });
  await entered.promise;
  expect((await cache.anew(tenantId))!.targets.get(ids[0]!)?.breaker).toBeUndefined();
  wasRead.resolve();
  await writing;
  expect((await cache.anew(tenantId))!.targets.get(ids[0]!)?.breaker?.phase).toBe('open');
});

test('a breaker whose subscription is gone does not end the pages', async () => {
  const { tenantId, ids } = await openLarge(400);
  const cache = cacheOf();
  await cache.configs.get(tenantId);
  cache.asked();
  await database.owner.query(
    `INSERT INTO breakers (tenant_id, subscription_id, phase, reason, open_count)
     SELECT $1, '00000000-0000-0000-0000-000000000001', 'closed', '', 0`,
    [tenantId],
  );
  await disableSubscriptions(db, tenantId, new Map(ids.map((id) => [id, 'gone'])));
  expect(told(await cache.anew(tenantId))).toEqual(told(await cache.all(tenantId)));
  expect(cache.asked()).toEqual(Array(3).fill('tenant-config-changes'));
});

test('a purge removes what workers wrote of a subscription after its deletion', async () => {
  const { tenantId, ids } = await openLarge(1);
  await deleteSubscription(db, tenantId, ids[0]!, undefined);
  await database.owner.query(
    `INSERT INTO breakers (tenant_id, subscription_id, phase, reason, open_count) VALUES ($1, $2, 'closed', '', 0)`,
    [tenantId, uuidOf(ids[0]!)],
  );
  await purgeSubscription(db, tenantId, uuidOf(ids[0]!));
  const { rows } = await database.owner.query('SELECT FROM breakers WHERE tenant_id = $1', [tenantId]);
  expect(rows.length).toBe(0);
});

test('more changes than are worth it are not read one by one', async () => {
  const { tenantId, ids } = await openLarge(1_300);
  const cache = cacheOf();
  await cache.configs.get(tenantId);
  cache.asked();
  await disableSubscriptions(db, tenantId, new Map(ids.map((id) => [id, 'gone'])));
  expect(told(await cache.anew(tenantId))).toEqual(told(await cache.all(tenantId)));
  expect(cache.asked()).toEqual([
    ...Array(6).fill('tenant-config-changes'),
    ...Array(7).fill('tenant-config'),
  ]);
});

test('breakers that are the same as before are no changes, however many were written just now', async () => {
  const { tenantId } = await openLarge(1_100);
  await database.owner.query(
    `INSERT INTO breakers (tenant_id, subscription_id, phase, reason, open_count, until)
     SELECT tenant_id, id, 'open', 'failure_rate', 1, now() FROM subscriptions WHERE tenant_id = $1`,
    [tenantId],
  );
  const cache = cacheOf();
  const before = await cache.configs.get(tenantId);
  cache.asked();
  const after = await cache.anew(tenantId);
  expect(
    [...after!.targets.values()].every((target) => before!.targets.get(target.subscriptionId) === target),
  ).toBe(true);
  expect(cache.asked()).toEqual(Array(6).fill('tenant-config-changes'));
});

test.each(['create', 'delete'])('a change between two pages (%s) is no reason to read all', async (name) => {
  const { tenantId, ids } = await openLarge(450);
  let between: (() => Promise<unknown>) | undefined;
  const cache = cacheOf(async () => {
    const work = between;
    between = undefined;
    await work?.();
  });
  await cache.configs.get(tenantId);
  cache.asked();
  await disableSubscriptions(db, tenantId, new Map(ids.map((id) => [id, 'gone'])));
  const last = [...ids].sort().at(-1)!;
  between = async () => {
    if (name === 'delete') await deleteSubscription(db, tenantId, last, undefined);
    else await create(tenantId, {}, 'ffffffff-ffff-7fff-bfff-ffffffffffff');
  };
  const overtaken = await cache.anew(tenantId);
  expect(overtaken!.targets.size).toBe(name === 'delete' ? 449 : 451); // with the version from before
  expect(cache.asked()).toEqual(Array(3).fill('tenant-config-changes'));
  expect(told(await cache.anew(tenantId))).toEqual(told(await cache.all(tenantId)));
  expect(cache.asked()).toEqual(['tenant-config-changes']);
});

test('ten minutes after all was read it is read again: what was wrong with it does not stay', async () => {
  const { tenantId } = await openLarge(2);
  const cache = cacheOf();
  await cache.configs.get(tenantId);
  await cache.anew(tenantId);
  cache.asked();
  // Unseen by any mark.
  await database.owner.query("UPDATE subscriptions SET url = 'https://example.com/x' WHERE tenant_id = $1", [
    tenantId,
  ]);
  expect((await cache.anew(tenantId))!.targets.values().next().value!.path).toBe('/');
  cache.pass(10 * 60_000 + 1);
  expect((await cache.anew(tenantId))!.targets.values().next().value!.path).toBe('/x');
  expect(cache.asked()).toEqual(['tenant-config-changes', 'tenant-config-changes', 'tenant-config']);
});

test('a change that nobody told of is seen within 5 s of use, and a tenant that is gone is forgotten', async () => {
  const { tenantId, ids } = await openLarge(1);
  const cache = cacheOf();
  const [version] = [(await cache.configs.get(tenantId))!.version];
  await setSubscriptionState(db, tenantId, ids[0]!, 'paused');
  expect(cache.configs.peek(tenantId)?.version).toBe(version);
  cache.pass(5_001);
  await eventually(() => expect(cache.configs.peek(tenantId)).toBeUndefined());
  expect((await cache.configs.get(tenantId))?.targets.get(ids[0]!)?.state).toBe('paused');
  expect(cache.asked()).toEqual(['tenant-config', 'tenant-config-changes']);
  await database.owner.query('DELETE FROM tenants WHERE tenant_id = $1', [tenantId]);
  cache.pass(5_001);
  await eventually(() => expect(cache.configs.peek(tenantId)).toBeUndefined());
  expect(await cache.configs.get(tenantId)).toBeUndefined();
  expect(cache.asked()).toEqual(['tenant-config']);
});

test('of two reads that overtook each other the newer one is kept', async () => {
  const { tenantId, ids } = await openLarge(1);
  const held: (() => void)[] = [];
  const cache = cacheOf(() => new Promise<void>((done) => held.push(done)));
  const older = cache.configs.get(tenantId);
  await eventually(() => expect(held.length).toBe(1)); // it was read, and is not there yet
  await setSubscriptionState(db, tenantId, ids[0]!, 'paused');
  const newer = cache.anew(tenantId);
  await eventually(() => expect(held.length).toBe(2));
  held[1]!();
  const kept = await newer;
  held[0]!();
  expect((await older)!.version).toBeLessThan(kept!.version);
  expect(cache.configs.peek(tenantId)).toBe(kept);
});

test('what was forgotten and is not asked for again is not kept for long', async () => {
  const [gone, other] = [await openLarge(1), await openLarge(1)];
  const cache = cacheOf();
  await cache.configs.get(gone.tenantId);
  cache.configs.forget(gone.tenantId);
  cache.pass(10 * 60_000 + 1, 'here');
  await cache.configs.get(other.tenantId);
  cache.asked();
  await cache.configs.get(gone.tenantId);
  expect(cache.asked()).toEqual(['tenant-config']); // there was nothing to build on
});
