// Replay jobs: dead letters and events of the history, counted first, at a rate, cut short, cancelled.
import { setTimeout as wait } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { ReplayState } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { Ordering } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { uuidOf } from '../../src/domain/ids.ts';
import { DEFAULT_POLICY } from '../../src/domain/policy.ts';
import { openDatabase } from '../../src/storage/database.ts';
import { expireDeadLetters } from '../../src/storage/health.ts';
import { eventually } from '../support/eventually.ts';
import { startFleet, storeBacklog } from '../support/fleet.ts';
import { type Clients, newTenant, startTestInstance, type TestInstance } from '../support/instance.ts';
import { spawnDispatch } from '../support/processes.ts';
import { type Receiver, startReceiver } from '../support/receiver.ts';
import { SCALE, scaled } from '../support/scale.ts';

const one = (ms: number) => ({
  schedule: { case: 'list' as const, value: { delays: [{ seconds: 0n, nanos: ms * 1e6 }] } },
});

describe('a job over many dead letters', () => {
  const count = scaled(50_000);
  const rate = 500;
  // Each kill costs the lease of the leader and of what was under way: half a minute and more.
  const killsAt = SCALE === 1 ? [0.3, 0.6] : [0.4];

  test(`replays ${count} at ${rate} a second, each once, over ${killsAt.length} kills of the process that carries it out`, async () => {
    await using fleet = await startFleet({ apis: 1, workers: 1, redis: false });
    await using receiver = await startReceiver();
    await fleet.admin.tenants.createTenant({ tenant: { tenantId: 'acme' } });
    const { subscription } = await fleet.admin.subscriptions.createSubscription({
      tenantId: 'acme',
      subscription: { url: receiver.url, eventTypes: ['**'] },
    });
    await fleet.admin.subscriptions.pauseSubscription({
      tenantId: 'acme',
      subscriptionId: subscription!.subscriptionId,
    });
    await storeBacklog(fleet.database, 'acme', uuidOf(subscription!.subscriptionId), count);
    await fleet.database.owner.query(
      `WITH gone AS (DELETE FROM deliveries RETURNING *)
       INSERT INTO dead_letters (tenant_id, id, subscription_id, event_type, reason, last_error_class, last_error_message,
         attempt_count) SELECT tenant_id, id, subscription_id, 'order.created', 'attempts_exhausted', 'http_status', 'x', 3
       FROM gone`,
    );
    await fleet.admin.subscriptions.resumeSubscription({
      tenantId: 'acme',
      subscriptionId: subscription!.subscriptionId,
    });
    const dry = await fleet.admin.deadLetters.replayDeadLetters({ tenantId: 'acme', dryRun: true });
    expect([dry.replay!.totalCount, dry.replay!.replayId]).toEqual([BigInt(count), '']);
    const { replay } = await fleet.admin.deadLetters.replayDeadLetters({
      tenantId: 'acme',
      maxPerSecond: rate,
    });
    const { replayId, totalCount } = replay!;
    expect(totalCount).toBe(BigInt(count));
    const progress = async () =>
      (await fleet.admin.deadLetters.getReplay({ tenantId: 'acme', replayId })).replay!;
    for (const part of killsAt) {
      await eventually(() => expect(receiver.received.length).toBeGreaterThan(count * part), 240_000);
      await fleet.workers.pop()!.kill('SIGKILL');
      const { replayedCount, state } = await progress();
      expect(state).toBe(ReplayState.RUNNING);
      expect(Number(replayedCount)).toBeLessThan(count);
      // Nobody carries it out now: it stands still.
      await wait(200);
      expect((await progress()).replayedCount).toBe(replayedCount);
      fleet.workers.push(await spawnDispatch(fleet.environment, ['--roles=worker,maintenance']));
    }
    const ids = () => new Set(receiver.received.map((r) => r.headers['dispatch-delivery-id']));
    await eventually(() => expect(ids().size).toBe(count), 300_000);
    const done = await eventually(async () => {
      const now = await progress();
      expect(now.state).toBe(ReplayState.FINISHED);
      return now;
    });
    expect(done.replayedCount).toBe(BigInt(count));
    await eventually(async () => {
      const { rows } = await fleet.database.owner.query(
        `SELECT (SELECT count(*) FROM dead_letters) + (SELECT count(*) FROM deliveries) AS n,
           (SELECT count(*) FROM attempts WHERE attempt <> 4) AS odd, (SELECT count(*) FROM attempts) AS attempts`,
      );
      // One attempt each, the fourth of its delivery: what was sent twice (under way at a kill) is recorded once.
      expect(rows[0]).toEqual({ n: '0', odd: '0', attempts: String(count) });
    });
    const perSecond = new Map<number, number>();
    for (const { atMs } of receiver.received) {
      const second = Math.floor(atMs / 1000);
      perSecond.set(second, (perSecond.get(second) ?? 0) + 1);
    }
    const times = receiver.received.map((r) => r.atMs).sort((a, b) => a - b);
    let fullest = 0;
    for (let i = 0, from = 0; i < times.length; i++) {
      while (times[from]! <= times[i]! - 10_000) from++;
      fullest = Math.max(fullest, i - from + 1);
    }
    const full = [...perSecond.values()].sort((a, b) => a - b);
    console.log(
      `replay of ${count} at ${rate}/s: fullest 10 s ${fullest}, median second ${full[full.length >> 1]}, ` +
        `${receiver.received.length - count} sent twice`,
    );
    // What was made pending ahead of the kill and could not be sent then comes on top once it can.
    expect(fullest).toBeLessThanOrEqual(rate * 10 + 2 * rate * 2);
    expect(receiver.received.length - count).toBeLessThanOrEqual(2 * 512);
  }, 700_000);
});

describe('a replay', () => {
  let dispatch: TestInstance;
  let receiver: Receiver;
  let clients: Clients;
  let serial = 0;

  beforeAll(async () => {
    dispatch = await startTestInstance();
    receiver = await startReceiver();
  });
  afterAll(async () => {
    await dispatch[Symbol.asyncDispose]();
    await receiver[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    const { key } = await newTenant(dispatch.clients(), `replay-${++serial}`);
    clients = dispatch.clients(key);
    receiver.received.length = 0;
    receiver.answer = () => ({ status: 204 });
  });

  const subscribe = async (path: string, fields: object = {}) => {
    const { subscription } = await clients.subscriptions.createSubscription({
      subscription: { url: `${new URL(receiver.url).origin}/${path}`, eventTypes: ['order.*'], ...fields },
    });
    return subscription!.subscriptionId;
  };
  const publish = async (type: string, n: number) =>
    (
      await clients.publish.publish({
        event: { type, orderingKey: 'k', body: { case: 'data', value: { n } } },
      })
    ).eventId;
  const got = (path: string) => receiver.received.filter((r) => r.path === `/${path}`);
  const start = { seconds: BigInt(Math.floor(Date.now() / 1000) - 60) };
  const finished = (replayId: string) =>
    eventually(async () => {
      const { replay } = await clients.deadLetters.getReplay({ replayId });
      expect(replay!.state).not.toBe(ReplayState.RUNNING);
      return replay!;
    });

  test('of a time range delivers again what matches the subscription, as new deliveries with the events’ own ids', async () => {
    const eventIds = [await publish('order.a', 0), await publish('other.b', 1), await publish('order.c', 2)];
    const subscriptionId = await subscribe('late'); // it was not there when they were published
    const filter = { startTime: start };
    const dry = await clients.events.replayEvents({ subscriptionId, filter, dryRun: true });
    expect(dry.replay!.totalCount).toBe(2n);
    expect(got('late')).toHaveLength(0);
    const { replay } = await clients.events.replayEvents({ subscriptionId, filter });
    expect((await finished(replay!.replayId)).replayedCount).toBe(2n);
    await eventually(() => expect(got('late')).toHaveLength(2));
    expect(new Set(got('late').map((r) => r.headers['webhook-id']))).toEqual(
      new Set([eventIds[0], eventIds[2]]),
    );
    const again = await clients.events.replayEvents({ subscriptionId, filter: { eventIds: [eventIds[1]!] } });
    expect((await finished(again.replay!.replayId)).replayedCount).toBe(1n);
    await eventually(() => expect(got('late')).toHaveLength(3));
    expect(got('late')[2]!.headers['webhook-id']).toBe(eventIds[1]);
    expect(got('late')[2]!.headers['dispatch-attempt']).toBe('1');
  });

  test('of what is missing passes over what was delivered, is pending or is a dead letter', async () => {
    const subscriptionId = await subscribe('hook', { retryPolicy: one(1) });
    await publish('order.delivered', 0);
    await eventually(() => expect(got('hook')).toHaveLength(1));
    receiver.answer = () => ({ status: 500 });
    await publish('order.dead', 1);
    await eventually(async () =>
      expect((await clients.deadLetters.listDeadLetters({})).deadLetters).toHaveLength(1),
    );
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    await publish('order.cancelled', 2);
    expect((await clients.events.cancelDeliveries({ subscriptionId })).cancelledCount).toBe(1);
    expect((await clients.events.cancelDeliveries({ subscriptionId })).cancelledCount).toBe(0);
    await publish('order.pending', 3);
    receiver.answer = () => ({ status: 204 });
    const before = receiver.received.length;
    const filter = { startTime: start, missing: true };
    const { replay } = await clients.events.replayEvents({ subscriptionId, filter });
    expect(replay!.totalCount).toBe(1n);
    await finished(replay!.replayId);
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    await eventually(() => expect(receiver.received).toHaveLength(before + 2));
    const types = receiver.received.slice(before).map((r) => r.headers['dispatch-event-type']);
    expect(types.sort()).toEqual(['order.cancelled', 'order.pending']);
  });

  test('to an ordered subscription keeps the order of the events', async () => {
    for (let n = 0; n < 60; n++) await publish('order.x', n);
    const subscriptionId = await subscribe('ordered', { ordering: Ordering.KEY });
    await clients.events.replayEvents({ subscriptionId, filter: { startTime: start } });
    await eventually(() => expect(got('ordered')).toHaveLength(60));
    const ns = got('ordered').map((r) => (JSON.parse(r.body.toString()) as { n: number }).n);
    expect(ns).toEqual(Array.from({ length: 60 }, (_, n) => n));
  });

  test('can be cancelled, and is listed', async () => {
    for (let n = 0; n < 20; n++) await publish('order.x', n);
    const subscriptionId = await subscribe('slow');
    const { replay } = await clients.events.replayEvents({
      subscriptionId,
      filter: { startTime: start },
      maxPerSecond: 1,
    });
    const { replayId } = replay!;
    await eventually(() => expect(got('slow').length).toBeGreaterThanOrEqual(1));
    const cancelled = await clients.deadLetters.cancelReplay({ replayId });
    expect(cancelled.replay!.state).toBe(ReplayState.CANCELLED);
    const { replayedCount } = cancelled.replay!;
    expect(Number(replayedCount)).toBeLessThan(20);
    const { replays } = await clients.deadLetters.listReplays({});
    expect(replays.map((r) => [r.replayId, r.state, r.replayedCount])).toEqual([
      [replayId, ReplayState.CANCELLED, replayedCount],
    ]);
    await eventually(() => expect(got('slow')).toHaveLength(Number(replayedCount)));
  });

  test('says what is wrong with a request', async () => {
    const subscriptionId = await subscribe('x');
    const ask = (request: object) => clients.events.replayEvents({ subscriptionId, ...request });
    await expect(ask({})).rejects.toThrow('filter: is required');
    await expect(ask({ filter: {} })).rejects.toThrow('filter.start_time: is required');
    await expect(ask({ filter: { eventIds: ['evt_x'] } })).rejects.toThrow(
      'filter.event_ids[0]: is malformed',
    );
    const inverted = { filter: { startTime: start, endTime: start } };
    const isInverted = 'filter.end_time: must be after filter.start_time';
    await expect(ask(inverted)).rejects.toThrow(isInverted);
    await expect(clients.deadLetters.replayDeadLetters(inverted)).rejects.toThrow(isInverted);
    await expect(clients.events.listEvents(inverted.filter)).rejects.toThrow('end_time: must be after');
    await expect(ask({ filter: { startTime: start }, maxPerSecond: -1 })).rejects.toThrow('max_per_second');
    await expect(
      clients.events.replayEvents({
        subscriptionId: 'sub_01h0000000e0080000000000zz',
        filter: { startTime: start },
        dryRun: true,
      }),
    ).rejects.toThrow(/no subscription/);
    const filter = { lastStatus: 42 };
    await expect(clients.deadLetters.listDeadLetters({ filter })).rejects.toThrow('filter.last_status');
  });
});

describe('dead letters that are old', () => {
  test('are archived or discarded, as the tenant’s policy says; archived ones can be listed and replayed', async () => {
    await using dispatch = await startTestInstance();
    await using receiver = await startReceiver();
    const admin = dispatch.clients();
    receiver.answer = () => ({ status: 500 });
    for (const [tenantId, expiry] of [
      ['keeps', 1],
      ['drops', 2],
    ] as const) {
      const policy = { deadLetterDays: 7, deadLetterExpiry: expiry };
      await admin.tenants.createTenant({ tenant: { tenantId, policy } });
      await admin.subscriptions.createSubscription({
        tenantId,
        subscription: { url: receiver.url, eventTypes: ['**'], retryPolicy: one(1) },
      });
      const body = { case: 'data' as const, value: {} };
      await admin.publish.publish({ tenantId, event: { type: 'a', body } });
      await eventually(async () =>
        expect((await admin.deadLetters.listDeadLetters({ tenantId })).deadLetters).toHaveLength(1),
      );
    }
    // A week goes by: their times and ids move back, as those of their events do.
    await dispatch.database.owner.query(
      `UPDATE dead_letters SET dead_at = now() - interval '8 days', id =
         (lpad(to_hex(((extract(epoch FROM now()) - 9 * 86400) * 1000)::int8), 12, '0')
           || substr(replace(id::text, '-', ''), 13))::uuid`,
    );
    await using db = await openDatabase(dispatch.database.url, 1, () => {});
    expect(await expireDeadLetters(db, DEFAULT_POLICY)).toBe(2);
    expect(await expireDeadLetters(db, DEFAULT_POLICY)).toBe(0);
    const listed = async (tenantId: string, archived: boolean) =>
      (await admin.deadLetters.listDeadLetters({ tenantId, filter: { archived } })).deadLetters.length;
    expect([await listed('keeps', false), await listed('keeps', true)]).toEqual([0, 1]);
    expect([await listed('drops', false), await listed('drops', true)]).toEqual([0, 0]);
    const { rows } = await dispatch.database.owner.query('SELECT tenant_id, state FROM closed_deliveries');
    expect(rows).toEqual([{ tenant_id: 'drops', state: 'discarded' }]);
  }, 60_000);
});
