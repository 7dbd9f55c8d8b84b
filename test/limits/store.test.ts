// One suite for every store: Redis 7 on one node, a cluster of three masters, and this process's memory.
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { askProbe, type BreakerState, endProbe, PRISTINE, reportAttempts } from '../../src/domain/breaker.ts';
import { type BucketSpec, pace, takeSlots, tokenBucket } from '../../src/domain/bucket.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import { createMemoryStore } from '../../src/limits/memory-store.ts';
import { connectRedis } from '../../src/limits/redis-client.ts';
import { createRedisStore } from '../../src/limits/redis-store.ts';
import { breakerName, bucketName, type LimitStore } from '../../src/limits/store.ts';
import { randomFrom } from '../support/random.ts';
import { redisTarget, someRedis, startRedisCluster } from '../support/redis.ts';

const OPERATIONS = 10_000;

type Opened = AsyncDisposable & { readonly store: LimitStore };
const kinds: readonly { readonly name: string; readonly open: (now: () => number) => Promise<Opened> }[] = [
  { name: 'Redis, one node', open: async (now) => onRedis(await someRedis(), now) },
  { name: 'Redis Cluster, three masters', open: async (now) => onRedis(await startRedisCluster(), now) },
  {
    name: 'memory',
    open: async (now) => ({ store: createMemoryStore(now, () => 1), [Symbol.asyncDispose]: async () => {} }),
  },
];

async function onRedis(
  server: AsyncDisposable & { readonly url: string },
  now: () => number,
): Promise<Opened> {
  // These are about what Redis answers, not when: 50 ms are not much on a machine that runs other tests, too.
  const client = connectRedis(redisTarget(server.url), () => {}, 10_000);
  await client.ready(10_000);
  return {
    store: createRedisStore(client, now),
    async [Symbol.asyncDispose]() {
      await client[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

const subscriptionId = (n: number) => `sub_${String(n).padStart(26, '0')}` as SubscriptionId;

describe.each(kinds)('limits on $name', ({ open }) => {
  let clockMs = 1_790_000_000_000;
  let opened: Opened;
  beforeAll(async () => {
    opened = await open(() => clockMs);
  });
  afterAll(() => opened[Symbol.asyncDispose]());
  const tenant = () => `t-${randomUUID()}` as TenantId;

  test('a token bucket gives its burst at once, then its rate, and says how long to wait', async () => {
    const key = { tenantId: tenant(), kind: 'publish' } as const;
    const spec = tokenBucket(10, 5);
    expect(await opened.store.take(key, spec, 7)).toMatchObject({ granted: 5, waitUs: 100_000 });
    expect(await opened.store.take(key, spec, 1)).toMatchObject({ granted: 0, waitUs: 100_000 });
    clockMs += 100;
    expect(await opened.store.take(key, spec, 2)).toMatchObject({ granted: 1, waitUs: 100_000 });
    clockMs += 10_000;
    expect(await opened.store.take(key, spec, 9)).toMatchObject({ granted: 5 });
  });

  test('tenants, kinds and subscriptions have buckets of their own', async () => {
    const tenantId = tenant();
    const spec = tokenBucket(1, 1);
    for (const key of [
      { tenantId, kind: 'publish' },
      { tenantId, kind: 'deliver' },
      { tenantId, kind: 'deliver', subscriptionId: subscriptionId(1) },
      { tenantId, kind: 'deliver', subscriptionId: subscriptionId(2) },
      { tenantId: tenant(), kind: 'publish' },
    ] as const) {
      expect(await opened.store.take(key, spec, 1)).toMatchObject({ granted: 1 });
      expect(await opened.store.take(key, spec, 1)).toMatchObject({ granted: 0 });
    }
  });

  test('of many that ask at once for a probe exactly one gets it', async () => {
    const key = { tenantId: tenant(), subscriptionId: subscriptionId(1) };
    await opened.store.report(key, { attempts: 5, failures: 5, trailing: 5 });
    clockMs += 30_000;
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, i) => opened.store.askProbe(key, `worker ${i}`, 10_000, 0)),
    );
    expect(answers.filter((a) => a.granted)).toHaveLength(1);
  });

  test('a breaker that was forgotten is taken up where its worker knows it to be', async () => {
    const key = { tenantId: tenant(), subscriptionId: subscriptionId(1) };
    expect(await opened.store.askProbe(key, 'a', 1_000, 3)).toMatchObject({ granted: true, openCount: 3 });
    expect(await opened.store.endProbe(key, 'a', 'failed')).toMatchObject({
      phase: 'open',
      changed: true,
      openForMs: 240_000,
    });
  });

  test(`buckets agree with the model over ${OPERATIONS} random operations`, async () => {
    const seed = Math.floor(Math.random() * 2 ** 32);
    const random = randomFrom(seed);
    const specs: BucketSpec[] = [
      tokenBucket(7, 20),
      tokenBucket(0.3, 3),
      pace(50),
      pace(3_333),
      tokenBucket(1e5, 1),
    ];
    const keys = Array.from({ length: 8 }, () => ({ tenantId: tenant(), kind: 'deliver' }) as const);
    const model = new Map<string, number>();
    for (let i = 0; i < OPERATIONS; i++) {
      if (random() < 0.7) clockMs += Math.floor(random() ** 4 * 5_000);
      const key = keys[Math.floor(random() * keys.length)]!;
      const spec = specs[Math.floor(random() * specs.length)]!;
      const want = Math.floor(random() * 30);
      const expected = takeSlots(model.get(bucketName(key)) ?? 0, spec, clockMs * 1000, want);
      // Nothing taken changes nothing: Redis then leaves the key alone.
      if (expected.taken.granted > 0) model.set(bucketName(key), expected.nextUs);
      expect(await opened.store.take(key, spec, want), `seed ${seed}, operation ${i}`).toEqual(
        expected.taken,
      );
    }
  });

  test(`breakers agree with the model over ${OPERATIONS} random operations`, async () => {
    const seed = Math.floor(Math.random() * 2 ** 32);
    const random = randomFrom(seed);
    const tenantId = tenant();
    const keys = Array.from({ length: 6 }, (_, i) => ({ tenantId, subscriptionId: subscriptionId(i) }));
    const model = new Map<string, BreakerState>();
    const phases = new Set<string>();
    for (let i = 0; i < OPERATIONS; i++) {
      clockMs += Math.floor(random() ** 6 * 60_000);
      const key = keys[Math.floor(random() * keys.length)]!;
      const before = model.get(breakerName(key)) ?? PRISTINE;
      const holder = `w${Math.floor(random() * 3)}`;
      let after: BreakerState;
      let answer: { readonly phase: string; readonly openCount: number };
      const dice = random();
      if (dice < 0.4) {
        const attempts = 1 + Math.floor(random() * 6);
        const failures = Math.floor(random() * (attempts + 1));
        const report = { attempts, failures, trailing: Math.floor(random() * (failures + 1)) };
        after = reportAttempts(before, report, clockMs);
        answer = await opened.store.report(key, report);
      } else if (dice < 0.7) {
        const asked = askProbe(before, holder, 5_000, 0, clockMs);
        after = asked.state;
        answer = await opened.store.askProbe(key, holder, 5_000, 0);
        const { granted, waitMs } = asked;
        expect(answer, `seed ${seed}, operation ${i}`).toMatchObject({ granted, waitMs });
      } else {
        const outcome = random() < 0.7 ? 'succeeded' : random() < 0.6 ? 'failed' : 'none';
        const asHolder = random() < 0.8 ? before.probeHolder : holder;
        after = endProbe(before, asHolder, outcome, clockMs);
        answer = await opened.store.endProbe(key, asHolder, outcome);
      }
      model.set(breakerName(key), after);
      phases.add(after.phase);
      expect(answer, `seed ${seed}, operation ${i}`).toMatchObject({
        phase: after.phase,
        openCount: after.openCount,
        openForMs: after.phase === 'open' ? Math.max(0, after.openUntilMs - clockMs) : 0,
        closedAgoMs: after.closedAtMs > 0 ? clockMs - after.closedAtMs : -1,
        reason: after.reason,
        changed:
          after.phase !== 'half_open' &&
          (after.phase !== before.phase || after.openCount !== before.openCount),
      });
    }
    expect([...phases].sort()).toEqual(['closed', 'half_open', 'open']);
  });
});

test('a script that Redis has forgotten is sent again', async () => {
  await using server = await someRedis();
  await using client = connectRedis(redisTarget(server.url), () => {});
  await client.ready(10_000);
  const store = createRedisStore(client);
  const key = { tenantId: `t-${randomUUID()}` as TenantId, kind: 'publish' } as const;
  await store.take(key, tokenBucket(1, 10), 1);
  const flush = client.script('flushScripts', "return redis.call('PING')"); // any script: the next line forgets it
  await flush('{x}', []);
  const { Redis } = await import('ioredis');
  const admin = new Redis(server.url);
  await admin.script('FLUSH');
  admin.disconnect();
  expect(await store.take(key, tokenBucket(1, 10), 20)).toMatchObject({ granted: 9 });
});
