// Rate limits, caps and breakers over four worker processes with a real Redis, and what is left of them without it.
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { BreakerState } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { rampPerSecond } from '../../src/domain/breaker.ts';
import { uuidOf } from '../../src/domain/ids.ts';
import { attemptsAtMs } from '../support/attempts.ts';
import { eventually } from '../support/eventually.ts';
import { type Fleet, startFleet, storeBacklog } from '../support/fleet.ts';
import { startReceiver } from '../support/receiver.ts';

/** The most that any window of a width holds. */
function fullestWindow(times: readonly number[], widthMs: number): number {
  let most = 0;
  let from = 0;
  for (const [i, at] of times.entries()) {
    while (times[from]! <= at - widthMs) from++;
    most = Math.max(most, i - from + 1);
  }
  return most;
}

/** When all requests began that the receiver has by now. */
async function attemptsSoFar(
  fleet: Fleet,
  { received }: { received: readonly unknown[] },
): Promise<number[]> {
  const count = received.length;
  return eventually(async () => {
    const times = await attemptsAtMs(fleet.database.owner);
    expect(times.length).toBeGreaterThanOrEqual(count);
    return times;
  });
}

async function newSubscription(fleet: Fleet, tenantId: string, fields: object): Promise<string> {
  await fleet.admin.tenants.createTenant({ tenant: { tenantId } }).catch(() => {}); // of an earlier call
  const { subscription } = await fleet.admin.subscriptions.createSubscription({
    tenantId,
    subscription: { eventTypes: ['**'], ...fields },
  });
  return subscription!.subscriptionId;
}

describe.each([
  { name: 'shared through Redis', redis: true },
  { name: 'divided between the workers, without Redis', redis: false },
])('a rate limit $name', ({ redis }) => {
  test('of 50 a second holds over four workers with a backlog of 5,000, and is used', async () => {
    await using fleet = await startFleet({ apis: 1, workers: 4, redis });
    await using receiver = await startReceiver();
    const id = await newSubscription(fleet, 'acme', { url: receiver.url, maxPerSecond: 50 });
    // Without Redis each has its part once all have heard of each other.
    if (!redis) await wait(11_000);
    const storedAtMs = Date.now();
    await storeBacklog(fleet.database, 'acme', uuidOf(id), 5_000);
    await eventually(() => expect(receiver.received.length).toBeGreaterThan(50), 30_000);
    const fromMs = Date.now();
    await wait(20_000); // the figure is about a span of time
    // Whatever the processes say of themselves: what is late on its way makes this less, never more.
    const seenSeconds = (Date.now() - storedAtMs) / 1000;
    expect(receiver.received.length).toBeLessThanOrEqual(50 * (seenSeconds + 0.5));
    const times = await attemptsSoFar(fleet, receiver);
    const measured = times.filter((at) => at >= fromMs);
    const seconds = (measured[measured.length - 1]! - measured[0]!) / 1000;
    const mean = (measured.length - 1) / seconds;
    const most = fullestWindow(times, 10_000);
    console.log(`rate limit of 50/s, Redis ${redis}: fullest 10 s ${most}, mean ${mean.toFixed(2)}/s`);
    expect(most).toBeLessThanOrEqual(525);
    expect(mean).toBeGreaterThanOrEqual(47);
    // Waiting wrote nothing and charged nothing: what was not sent was not touched, but for what is claimed ahead.
    const { rows } = await fleet.database.owner.query<{ claimed: string; charged: string }>(
      `SELECT count(*) FILTER (WHERE lease IS NOT NULL) AS claimed, count(*) FILTER (WHERE attempt_count > 0) AS charged
       FROM deliveries`,
    );
    expect(Number(rows[0]!.charged)).toBe(0);
    expect(Number(rows[0]!.claimed)).toBeLessThanOrEqual(4 * 26);
  }, 120_000);
});

test('a tenant’s rate limit holds over its subscriptions together', async () => {
  await using fleet = await startFleet({ apis: 1, workers: 2, redis: true });
  await using receiver = await startReceiver();
  const ids = [];
  for (const path of ['a', 'b', 'c']) {
    ids.push(await newSubscription(fleet, 'acme', { url: `${receiver.url}/${path}` }));
  }
  await fleet.admin.tenants.setQuota({ tenantId: 'acme', quota: { deliveriesPerSecond: 60 } });
  for (const [i, id] of ids.entries()) {
    if (i === 0) await storeBacklog(fleet.database, 'acme', uuidOf(id), 600);
    else
      await fleet.database.owner.query(
        `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at)
         SELECT tenant_id, overlay(id::text PLACING $2 FROM 31)::uuid, $1, now() FROM events`,
        [uuidOf(id), `00000${i + 1}`],
      );
  }
  await eventually(() => expect(receiver.received.length).toBeGreaterThan(60), 30_000);
  await wait(10_000); // the figure is about a span of time
  const times = await attemptsSoFar(fleet, receiver);
  const most = fullestWindow(times, 10_000);
  const paths = new Set(receiver.received.slice(-60).map((r) => r.path));
  console.log(`tenant's rate limit of 60/s: fullest 10 s ${most}, of ${paths.size} subscriptions`);
  expect(most).toBeLessThanOrEqual(630);
  expect(most).toBeGreaterThanOrEqual(540);
  expect(paths.size).toBe(3);
}, 120_000);

test('caps on attempts under way hold over four workers, of a subscription and of a tenant', async () => {
  await using fleet = await startFleet({ apis: 1, workers: 4, redis: false });
  await using receiver = await startReceiver();
  let underWay = 0;
  let most = 0;
  receiver.answer = async () => {
    most = Math.max(most, ++underWay);
    await wait(30);
    underWay--;
    return { status: 204 };
  };
  // All workers have heard of each other: until then a new one sends nothing that is capped.
  const id = await newSubscription(fleet, 'acme', { url: receiver.url, maxInFlight: 6 });
  await storeBacklog(fleet.database, 'acme', uuidOf(id), 600);
  await eventually(() => expect(receiver.received.length).toBe(600), 60_000);
  expect(most).toBeLessThanOrEqual(6);
  expect(most).toBeGreaterThanOrEqual(4);
  most = 0;
  receiver.received.length = 0;
  const other = await newSubscription(fleet, 'globex', { url: receiver.url });
  await fleet.admin.tenants.setQuota({ tenantId: 'globex', quota: { maxInFlight: 3 } });
  await storeBacklog(fleet.database, 'globex', uuidOf(other), 200);
  await eventually(() => expect(receiver.received.length).toBe(200), 60_000);
  expect(most).toBeLessThanOrEqual(3);
  expect(most).toBeGreaterThanOrEqual(1);
}, 180_000);

test('what workers hold when their part of a cap becomes none goes on at once, with others', async () => {
  const settings = { DISPATCH_LEASE_SECONDS: '600' }; // longer than anybody waits here
  await using fleet = await startFleet({ apis: 1, workers: 4, redis: false }, settings);
  await using receiver = await startReceiver();
  receiver.answer = async () => {
    await wait(30);
    return { status: 204 };
  };
  const id = await newSubscription(fleet, 'acme', { url: receiver.url });
  await storeBacklog(fleet.database, 'acme', uuidOf(id), 400);
  for (const [i, maxInFlight] of [8, 1, 8, 2, 8, 1].entries()) {
    await fleet.admin.tenants.setQuota({ tenantId: 'acme', quota: { maxInFlight } });
    await eventually(() => expect(receiver.received.length).toBeGreaterThan(40 * (i + 1)), 60_000);
  }
  await eventually(() => expect(receiver.received.length).toBe(400), 60_000);
}, 180_000);

describe('an endpoint that dies under a backlog of 100,000', () => {
  test('is left alone by four workers but for one probe a window; its backlog is not touched, others do not notice; then it is ramped up', async () => {
    await using fleet = await startFleet({ apis: 1, workers: 4, redis: true });
    await using receiver = await startReceiver();
    await using healthy = await startReceiver();
    const { owner } = fleet.database;
    let isDead = false;
    const deaths: number[] = [];
    receiver.answer = (r) => {
      if (!isDead) return { status: 204 };
      deaths.push(r.atMs);
      return { status: 503 };
    };
    const id = await newSubscription(fleet, 'acme', { url: receiver.url });
    const otherId = await newSubscription(fleet, 'acme', {
      url: healthy.url,
      eventTypes: ['healthy.*'],
    });
    await fleet.admin.subscriptions.updateSubscription({
      tenantId: 'acme',
      subscription: { subscriptionId: id, eventTypes: ['order.*'] },
      updateMask: { paths: ['event_types'] },
    });
    const lag = async (): Promise<number> => {
      const before = healthy.received.length;
      const lags: number[] = [];
      for (let i = 0; i < 40; i++) {
        const sentAt = Date.now();
        const body = { case: 'data' as const, value: { i } };
        await fleet.admin.publish.publish({ tenantId: 'acme', event: { type: 'healthy.x', body } });
        await eventually(() => expect(healthy.received.length).toBe(before + i + 1));
        lags.push(healthy.received[before + i]!.atMs - sentAt);
      }
      return lags.sort((a, b) => a - b)[20]!;
    };
    const idleLag = await lag();
    await storeBacklog(fleet.database, 'acme', uuidOf(id), 100_000);
    await eventually(() => expect(receiver.received.length).toBeGreaterThan(500), 30_000);
    isDead = true;
    const opened = await eventually(async () => {
      const { rows } = await owner.query(
        "SELECT extract(epoch FROM changed_at) * 1000 AS at FROM breakers WHERE phase = 'open'",
      );
      expect(rows).toHaveLength(1);
      return Number(rows[0].at);
    });
    const tookMs = opened - deaths[4]!;
    console.log(`breaker open ${tookMs.toFixed(0)} ms after the fifth failure`);
    expect(tookMs).toBeLessThanOrEqual(1_000);
    const shown = await fleet.admin.subscriptions.getSubscription({ tenantId: 'acme', subscriptionId: id });
    expect(shown.subscription!.breaker!.state).toBe(BreakerState.OPEN);
    expect(shown.subscription!.breaker!.reason).toMatch(/consecutive_failures|failure_rate/);
    expect(shown.subscription!.breaker!.untilTime).toBeDefined();

    // What was on the wire comes back and is recorded; then it is quiet.
    const quiet = await eventually(async () => {
      const before = deaths.length;
      await wait(2_000);
      expect(deaths.length).toBe(before);
      return before;
    });
    const updates = async () => {
      await owner.query('SELECT pg_stat_force_next_flush()').catch(() => {}); // PostgreSQL 15 and later
      const { rows } = await owner.query(
        "SELECT sum(n_tup_upd + n_tup_del) AS n FROM pg_stat_user_tables WHERE relname LIKE 'deliveries_h%'",
      );
      return Number(rows[0].n);
    };
    const backlog = async () =>
      (
        await owner.query(
          `SELECT count(*) AS n, sum(hashtext(xmin::text || ctid::text)) AS print FROM deliveries
           WHERE subscription_id = $1`,
          [uuidOf(id)],
        )
      ).rows[0];
    /** Which version of each row there is, and whether a worker holds it. */
    const versions = async () => {
      const { rows } = await owner.query<{ id: string; version: string }>(
        `SELECT id, concat_ws(' ', xmin, ctid, CASE WHEN is_leased THEN 'held' END) AS version FROM deliveries
         WHERE subscription_id = $1`,
        [uuidOf(id)],
      );
      return new Map(rows.map((row) => [row.id, row.version]));
    };
    const heldIn = (all: ReadonlyMap<string, string>) =>
      new Set([...all].filter(([, version]) => version.endsWith('held')).map(([id]) => id));
    const rowsBefore = await backlog();
    const deadLag = await lag();
    console.log(`lag of another subscription: ${idleLag} ms idle, ${deadLag} ms beside the dead one`);
    expect(deadLag).toBeLessThanOrEqual(Math.max(idleLag * 1.5, idleLag + 25));
    expect(await backlog()).toEqual(rowsBefore);
    expect(deaths.length).toBe(quiet);

    // The window of 30 s ends: exactly one probe, of all four workers, and the next window is 60 s.
    await eventually(() => expect(deaths.length).toBe(quiet + 1), 40_000);
    // Sessions that are idle report what they did within 10 s.
    await wait(12_000);
    const [writesBefore, before] = [await updates(), await versions()];
    await wait(20_000); // the figure is about a span of time
    // Meanwhile the leases ended of what had been claimed as it opened: that is put back, each once, and nothing else is written.
    await eventually(async () => expect(heldIn(await versions()).size).toBe(0));
    const after = await versions();
    expect([...after.keys()].filter((id) => after.get(id) !== before.get(id)).sort()).toEqual(
      [...heldIn(before)].sort(),
    );
    expect(after.size).toBe(before.size);
    expect(await updates()).toBeLessThanOrEqual(writesBefore + heldIn(before).size);
    const rowsPutBack = await backlog();
    await wait(10_000); // the figure is about a span of time
    expect(await backlog()).toEqual(rowsPutBack);
    expect(deaths.length).toBe(quiet + 1);
    isDead = false;
    const from = receiver.received.length;
    await eventually(() => expect(receiver.received.length).toBeGreaterThan(from + 3), 60_000);
    const closedAt = receiver.received[from + 2]!.atMs;
    await wait(11_000); // the figure is about a span of time
    const ramp = receiver.received.slice(from + 3).map((r) => r.atMs - closedAt);
    let allowed = 0;
    for (let second = 0; second < 10; second++) {
      allowed += rampPerSecond(second * 1000)!;
      const sent = ramp.filter((at) => at < (second + 1) * 1000).length;
      // What is paced ahead of a step, and a tenth of a second that may be caught up.
      const slack = rampPerSecond(second * 1000)! * 0.3 + 2;
      expect(sent, `after ${second + 1} s`).toBeLessThanOrEqual(allowed + slack);
    }
    const sent = ramp.filter((at) => at < 10_000).length;
    console.log(`ramp: ${sent} deliveries in 10 s, of at most ${allowed}`);
    expect(sent).toBeGreaterThanOrEqual(allowed * 0.8);
    const later = await fleet.admin.subscriptions.getSubscription({ tenantId: 'acme', subscriptionId: id });
    expect(later.subscription!.breaker!.state).toBe(BreakerState.RAMPING);
    expect(otherId).not.toBe(id);
  }, 300_000);
});
