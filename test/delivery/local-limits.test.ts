// What an instance keeps of shared limits: leased tokens, paced slots, copies of breakers. The store is the real one in
// memory; the clock is the test's.
import { describe, expect, test } from 'vitest';
import { pace } from '../../src/domain/bucket.ts';
import type { DeliveryId, SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import { DEFAULT_QUOTA } from '../../src/domain/quota.ts';
import { createBreakers } from '../../src/limits/breakers.ts';
import { createMemoryStore } from '../../src/limits/memory-store.ts';
import { createPacer } from '../../src/limits/pacer.ts';
import { createPublishRate } from '../../src/limits/publish-rate.ts';
import type { BreakerView, LimitStore } from '../../src/limits/store.ts';

const tenantId = 'acme' as TenantId;
const subscriptionId = 'sub_1' as SubscriptionId;
const delivery = (n: number) => `dlv_${n}` as DeliveryId;
/** Lets everything that was promised come about; nothing here waits for I/O. */
const settle = () => new Promise((done) => setImmediate(done));

const rateBy = (now: () => number) =>
  createPublishRate(
    createMemoryStore(now, () => 1),
    now,
  );

describe('leased tokens', () => {
  test('are all there are: 2,000 publishes one after the other, and lanes of 500 at once, are let in by a rate of 10,000', async () => {
    let nowMs = 1_790_000_000_000;
    const rate = rateBy(() => nowMs);
    for (let i = 0; i < 2_000; i++) {
      expect(await rate.take(tenantId, DEFAULT_QUOTA, 1), `publish ${i}`).toMatchObject({ granted: 1 });
      nowMs += 0.5;
    }
    const lanes = await Promise.all([1, 2, 3].map(() => rate.take(tenantId, DEFAULT_QUOTA, 500)));
    expect(lanes.map((l) => l.granted)).toEqual([500, 500, 500]);
  });

  test('of several lanes together are not more than the bucket had', async () => {
    const nowMs = 1_790_000_000_000;
    const rate = rateBy(() => nowMs);
    const quota = { ...DEFAULT_QUOTA, publishPerSecond: 10, publishBurst: 700 };
    const lanes = await Promise.all([1, 2, 3].map(() => rate.take(tenantId, quota, 500)));
    let granted = lanes.reduce((sum, l) => sum + l.granted, 0);
    granted += (await rate.take(tenantId, quota, 500)).granted;
    expect(granted).toBeLessThanOrEqual(700);
    expect(granted).toBeGreaterThanOrEqual(500);
  });
});

describe('a rate that is changed', () => {
  test('holds for the very next publish: nothing that was leased at the one before it is good', async () => {
    let nowMs = 1_790_000_000_000;
    const rate = rateBy(() => nowMs);
    expect(await rate.take(tenantId, DEFAULT_QUOTA, 1)).toMatchObject({ granted: 1 });
    const slow = { ...DEFAULT_QUOTA, publishPerSecond: 1, publishBurst: 1 };
    const { granted } = await rate.take(tenantId, slow, 1_000);
    expect(granted).toBeLessThanOrEqual(1);
    expect(await rate.take(tenantId, slow, 1_000)).toMatchObject({ granted: 0 });
    nowMs += 1_020; // the slot that was just taken, and what comes in 20 ms
    expect(await rate.take(tenantId, DEFAULT_QUOTA, 100)).toMatchObject({ granted: 100 });
  });
});

describe('paced slots', () => {
  test('a slot that is kept while something else is waited for is still there long after, once', async () => {
    let nowMs = 1_790_000_000_000;
    const store = createMemoryStore(
      () => nowMs,
      () => 1,
    );
    const pacer = createPacer(
      (spec, want) => store.take({ tenantId, kind: 'deliver' }, spec, want),
      () => pace(0.5),
      () => nowMs,
      () => {},
    );
    expect(pacer.waitMs(nowMs, 1)).toBe(Number.POSITIVE_INFINITY);
    await settle();
    expect(pacer.waitMs(nowMs, 1)).toBe(0);
    pacer.keep();
    nowMs += 1_500;
    expect(pacer.waitMs(nowMs, 1)).toBe(0);
    pacer.use();
    expect(pacer.waitMs(nowMs, 1)).toBeGreaterThan(0);
  });

  test('slots that nobody used in time do not add up to a burst', async () => {
    let nowMs = 1_790_000_000_000;
    const store = createMemoryStore(
      () => nowMs,
      () => 1,
    );
    const pacer = createPacer(
      (spec, want) => store.take({ tenantId, kind: 'deliver' }, spec, want),
      () => pace(100),
      () => nowMs,
      () => {},
    );
    let used = 0;
    pacer.waitMs(nowMs, 50);
    await settle();
    nowMs += 60_000; // a minute in which nothing was sent
    for (let step = 0; step < 100; step++) {
      if (pacer.waitMs(nowMs, 50) === 0) {
        pacer.use();
        used++;
      } else {
        await settle();
        if (pacer.waitMs(nowMs, 50) > 0) break;
      }
    }
    expect(used).toBeLessThanOrEqual(12); // 0.1 s of catching up
  });
});

describe('copies of breakers', () => {
  function setUp(
    store: LimitStore = createMemoryStore(
      () => clock.ms,
      () => 1,
    ),
  ) {
    const transitions: BreakerView[] = [];
    const breakers = createBreakers({
      store,
      holder: 'w1',
      probeLeaseMs: 60_000,
      now: () => clock.ms,
      onTransition: (_t, _s, view) => transitions.push(view),
      onReady: () => {},
      onError: (error) => expect.unreachable(String(error)),
    });
    const end = (n: number, outcome: 'succeeded' | 'failed' | 'none') =>
      breakers.ended(tenantId, subscriptionId, delivery(n), outcome);
    const admits = () => breakers.admits(tenantId, subscriptionId, undefined);
    const probe = async (n: number, outcome: 'succeeded' | 'failed') => {
      expect(await breakers.claimable(tenantId, subscriptionId, undefined)).toBe(1);
      expect(admits()).toBe('probe');
      breakers.probeGoes(subscriptionId, delivery(n));
      expect(admits()).toBe('open');
      end(n, outcome);
      await settle();
    };
    return { breakers, transitions, end, admits, probe };
  }
  const clock = { ms: 1_000_000 };

  test('what was in flight when one opened does not open it again after it closed', async () => {
    const { breakers, transitions, end, admits, probe } = setUp();
    for (let i = 0; i < 5; i++) end(i, 'failed');
    await settle();
    expect(admits()).toBe('open');
    for (let i = 5; i < 64; i++) end(i, 'failed'); // they were on the wire
    clock.ms += 31_000;
    for (let i = 100; i < 103; i++) await probe(i, 'succeeded');
    expect(admits()).toBe('closed');
    for (let i = 200; i < 250; i++) end(i, 'succeeded');
    end(300, 'failed');
    await settle();
    expect(admits()).toBe('closed');
    expect(transitions.map((t) => t.phase)).toEqual(['open', 'closed']);
    expect(breakers.ramp(subscriptionId, clock.ms)).toBe(10);
  });

  test('a probe that fails after the shared state was lost leaves it open, and the next one goes on from there', async () => {
    let store = createMemoryStore(
      () => clock.ms,
      () => 1,
    );
    const late: LimitStore = {
      take: (...a) => store.take(...a),
      report: (...a) => store.report(...a),
      askProbe: (...a) => store.askProbe(...a),
      endProbe: (...a) => store.endProbe(...a),
    };
    const { breakers, end, admits } = setUp(late);
    for (let i = 0; i < 5; i++) end(i, 'failed');
    await settle();
    clock.ms += 31_000;
    expect(await breakers.claimable(tenantId, subscriptionId, undefined)).toBe(1);
    breakers.probeGoes(subscriptionId, delivery(9));
    store = createMemoryStore(
      () => clock.ms,
      () => 1,
    ); // flushed
    end(9, 'failed');
    await settle();
    expect(admits()).toBe('open');
    expect(await breakers.claimable(tenantId, subscriptionId, undefined)).toBe(1);
    breakers.probeGoes(subscriptionId, delivery(10));
    end(10, 'failed');
    await settle();
    expect(await breakers.claimable(tenantId, subscriptionId, undefined)).toBe(0);
    clock.ms += 59_000; // the second time it is 60 s, not 30
    expect(await breakers.claimable(tenantId, subscriptionId, undefined)).toBe(0);
  });

  test('a probe that was granted and found nothing to send is given back', async () => {
    const { breakers, end } = setUp();
    for (let i = 0; i < 5; i++) end(i, 'failed');
    await settle();
    clock.ms += 31_000;
    expect(await breakers.claimable(tenantId, subscriptionId, undefined)).toBe(1);
    breakers.unused(subscriptionId);
    await settle();
    expect(await breakers.claimable(tenantId, subscriptionId, undefined)).toBe(0); // not again at once
    clock.ms += 1_001;
    expect(await breakers.claimable(tenantId, subscriptionId, undefined)).toBe(1);
  });

  test('one that another worker opened or closed is taken over from what it wrote', () => {
    const { breakers } = setUp();
    const open = { phase: 'open' as const, openCount: 2, changedAtMs: clock.ms, untilMs: clock.ms + 60_000 };
    expect(breakers.admits(tenantId, subscriptionId, open)).toBe('open');
    const closed = { ...open, phase: 'closed' as const, changedAtMs: clock.ms + 60_000 };
    clock.ms += 60_500;
    expect(breakers.admits(tenantId, subscriptionId, closed)).toBe('closed');
    expect(breakers.ramp(subscriptionId, clock.ms)).toBe(10);
    expect(breakers.admits(tenantId, subscriptionId, open)).toBe('closed'); // old news
  });
});
