// Order: per key and per subscription, through failures, restarts, crashes, dead letters and replays.

import { setTimeout as wait } from 'node:timers/promises';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Jitter, OnDeadLetter, Ordering } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { eventually } from '../support/eventually.ts';
import { startFleet } from '../support/fleet.ts';
import { type Clients, newTenant, startTestInstance, type TestInstance } from '../support/instance.ts';
import { spawnDispatch } from '../support/processes.ts';
import { type Received, type Receiver, startReceiver } from '../support/receiver.ts';
import { scaled } from '../support/scale.ts';
import { createSequenceJudge, placeOf } from '../support/sequences.ts';

const retries = (count: number, ms: number) => ({
  schedule: {
    case: 'list' as const,
    value: { delays: Array.from({ length: count }, () => durationFromMs(ms)) },
  },
  jitter: Jitter.NONE,
});

const placed = (key: string, n: number) => ({
  type: 'order.changed',
  orderingKey: key,
  body: { case: 'payload' as const, value: Buffer.from(JSON.stringify({ key, n })) },
});

async function publish(clients: Clients, tenantId: string, events: ReturnType<typeof placed>[]) {
  const { results } = await clients.publish.publishBatch({ tenantId, events });
  for (const { result } of results) expect(result.case).toBe('ok');
}

describe('across four workers', () => {
  const keyCount = 200;
  const perKey = scaled(500);
  const subscriptionCount = 20;
  const failing = 0.2;
  /**
   * An endpoint that was left alone for so long has an open breaker (five failures in a row), and is well from then on:
   * breakers that open again stay open for minutes, and this is not about them.
   */
  const leftAloneMs = 10_000;

  test(`${keyCount} keys × ${perKey} events arrive in order while ${failing * 100} % of attempts fail and a worker is killed each 5 s`, async () => {
    await using fleet = await startFleet(
      { apis: 1, workers: 4, redis: true },
      { DISPATCH_LEASE_SECONDS: '10' },
    );
    await using receiver = await startReceiver();
    const judge = createSequenceJudge();
    const seed = Date.now() >>> 0;
    let state = seed;
    const random = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32;
    };
    const endpoints = new Map<string, { askedAt: number; isWell: boolean }>();
    receiver.answer = async (request) => {
      const place = placeOf(request);
      judge.begins(place);
      await wait(1);
      const now = performance.now();
      const endpoint = endpoints.get(request.path) ?? { askedAt: now, isWell: false };
      endpoints.set(request.path, endpoint);
      if (now - endpoint.askedAt > leftAloneMs) endpoint.isWell = true;
      endpoint.askedAt = now;
      const fails = !endpoint.isWell && random() < failing;
      judge.ends(place, !fails);
      return { status: fails ? 500 : 204 };
    };
    await fleet.admin.tenants.createTenant({ tenant: { tenantId: 'acme' } });
    for (let s = 0; s < subscriptionCount; s++) {
      await fleet.admin.subscriptions.createSubscription({
        tenantId: 'acme',
        subscription: {
          url: `${receiver.url}/${s}`,
          eventTypes: [`changed.s${s}`],
          ordering: Ordering.KEY,
          retryPolicy: retries(50, 50),
          attemptTimeout: { seconds: 2n, nanos: 0 },
        },
      });
    }
    const keys = Array.from({ length: keyCount }, (_, k) => `k${k}`);
    let isDone = false;
    let killed = 0;
    const killer = (async () => {
      for (;;) {
        await wait(5_000); // the figure: one each 5 s
        if (isDone) return;
        const [victim] = fleet.workers.splice(killed % fleet.workers.length, 1);
        await victim!.kill('SIGKILL');
        killed++;
        fleet.workers.push(await spawnDispatch(fleet.environment, ['--roles=worker,maintenance']));
      }
    })();
    for (let n = 0; n < perKey; n++) {
      const events = keys.map((key, k) => ({ ...placed(key, n), type: `changed.s${k % subscriptionCount}` }));
      await publish(fleet.admin, 'acme', events);
    }
    await eventually(
      () => expect(keys.filter((key) => judge.last(key) < perKey - 1)).toEqual([]),
      120_000 + scaled(900_000),
    ).finally(() => {
      isDone = true;
    });
    await killer;
    const verdict = judge.verdict();
    console.log(
      `order (seed ${seed}): ${keyCount} keys × ${perKey} events, ${receiver.received.length} requests, ${killed} workers ` +
        `killed: ${verdict.outOfOrder.length} out of order, ${verdict.overlapping} at once, ` +
        `${verdict.repeated} repeats of a last one`,
    );
    expect(verdict.outOfOrder).toEqual([]);
    // Only what a killed worker had under way comes again.
    expect(verdict.repeated).toBeLessThanOrEqual(killed * keyCount);
    expect(killed).toBeGreaterThanOrEqual(1);
  }, 1_600_000);
});

describe('in one process', () => {
  let dispatch: TestInstance;
  let receiver: Receiver;
  let clients: Clients;
  let serial = 0;
  let tenantId: string;

  beforeAll(async () => {
    dispatch = await startTestInstance();
    receiver = await startReceiver();
  });
  afterAll(async () => {
    await dispatch[Symbol.asyncDispose]();
    await receiver[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    tenantId = `order-${++serial}`;
    const { key } = await newTenant(dispatch.clients(), tenantId);
    clients = dispatch.clients(key);
    receiver.received.length = 0;
    receiver.answer = () => ({ status: 204 });
  });

  const subscribe = async (fields: object) => {
    const { subscription } = await clients.subscriptions.createSubscription({
      subscription: { url: receiver.url, eventTypes: ['**'], ...fields },
    });
    return subscription!.subscriptionId;
  };
  const got = () => receiver.received.map((r) => placeOf(r));
  const places = (key: string) =>
    got()
      .filter((p) => p.key === key)
      .map((p) => p.n);

  test('a subscription in order sends one request at a time, in the order of acceptance, whatever the keys', async () => {
    await subscribe({ ordering: Ordering.SUBSCRIPTION });
    let underWay = 0;
    let most = 0;
    receiver.answer = async () => {
      most = Math.max(most, ++underWay);
      await wait(1);
      underWay--;
      return { status: 204 };
    };
    const count = 300;
    for (let n = 0; n < count; n += 50) {
      const events = Array.from({ length: 50 }, (_, i) => placed(`k${i % 3}`, n + i));
      await publish(clients, tenantId, events);
    }
    await eventually(() => expect(receiver.received).toHaveLength(count));
    expect(got().map((p) => p.n)).toEqual(Array.from({ length: count }, (_, n) => n));
    expect(most).toBe(1);
  });

  test('events without a key wait for nothing', async () => {
    await subscribe({ ordering: Ordering.KEY, retryPolicy: retries(3, 60_000) });
    receiver.answer = (r) => ({ status: placeOf(r).n === 0 ? 500 : 204 });
    await publish(clients, tenantId, [placed('', 0), placed('', 1), placed('a', 1), placed('', 2)]);
    await eventually(() => expect(receiver.received).toHaveLength(4));
  });

  test('a failing head holds its own key only, and its retries keep their place and their count', async () => {
    await subscribe({ ordering: Ordering.KEY, retryPolicy: retries(20, 200) });
    let isBroken = true;
    receiver.answer = (r) => ({ status: placeOf(r).key === 'bad' && isBroken ? 500 : 204 });
    const events = Array.from({ length: 20 }, (_, n) => [placed('bad', n), placed('good', n)]).flat();
    await publish(clients, tenantId, events);
    await eventually(() => expect(places('good')).toEqual(Array.from({ length: 20 }, (_, n) => n)));
    await eventually(() => expect(places('bad').length).toBeGreaterThanOrEqual(2));
    expect(new Set(places('bad'))).toEqual(new Set([0]));
    isBroken = false;
    await eventually(() => expect(places('bad').at(-1)).toBe(19));
    const attempts = receiver.received
      .filter((r) => placeOf(r).key === 'bad')
      .map((r) => [placeOf(r).n, Number(r.headers['dispatch-attempt'])]);
    const failures = attempts.filter(([n]) => n === 0).length;
    // Only the head was charged; what waited behind it was not.
    expect(attempts.slice(failures)).toEqual(Array.from({ length: 19 }, (_, i) => [i + 1, 1]));
    expect(attempts.slice(0, failures).map(([, attempt]) => attempt)).toEqual(
      Array.from({ length: failures }, (_, i) => i + 1),
    );
  });

  test('a pause and a resume keep the order and charge nothing', async () => {
    const subscriptionId = await subscribe({ ordering: Ordering.SUBSCRIPTION });
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    await publish(
      clients,
      tenantId,
      Array.from({ length: 250 }, (_, n) => placed('a', n)),
    );
    expect(receiver.received).toHaveLength(0);
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    await eventually(() => expect(receiver.received).toHaveLength(250));
    expect(got().map((p) => p.n)).toEqual(Array.from({ length: 250 }, (_, n) => n));
    expect(new Set(receiver.received.map((r) => r.headers['dispatch-attempt']))).toEqual(new Set(['1']));
  });

  test('an order that is asked for later holds from then on, and what was published before still goes out', async () => {
    const subscriptionId = await subscribe({});
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    await publish(clients, tenantId, [placed('old', 0), placed('old', 1)]);
    await clients.subscriptions.updateSubscription({
      subscription: { subscriptionId, ordering: Ordering.KEY },
      updateMask: { paths: ['ordering'] },
    });
    await publish(
      clients,
      tenantId,
      Array.from({ length: 50 }, (_, n) => placed('new', n)),
    );
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    await eventually(() => expect(receiver.received).toHaveLength(52));
    expect(places('new')).toEqual(Array.from({ length: 50 }, (_, n) => n));
  });

  describe('when a delivery is given up', () => {
    const dead = { ordering: Ordering.KEY, retryPolicy: retries(1, 10) };
    const deadLetters = async () => (await clients.deadLetters.listDeadLetters({})).deadLetters;
    const failFirst = (r: Received) => ({ status: placeOf(r).n === 0 ? 500 : 204 });

    test('the next one goes, if it is to be skipped', async () => {
      await subscribe(dead);
      receiver.answer = failFirst;
      await publish(clients, tenantId, [placed('a', 0), placed('a', 1), placed('a', 2)]);
      await eventually(() => expect(places('a')).toEqual([0, 0, 1, 2]));
      expect(await deadLetters()).toHaveLength(1);
    });

    test('its key stops, and goes on where it stood when the dead letter is replayed', async () => {
      await subscribe({ ...dead, onDeadLetter: OnDeadLetter.STOP });
      receiver.answer = failFirst;
      await publish(clients, tenantId, [placed('a', 0), placed('a', 1), placed('b', 1), placed('b', 2)]);
      await eventually(() => expect(places('b')).toEqual([1, 2]));
      const [letter] = await eventually(async () => {
        const letters = await deadLetters();
        expect(letters).toHaveLength(1);
        return letters;
      });
      await publish(clients, tenantId, [placed('a', 2), placed('b', 3)]);
      await eventually(() => expect(places('b')).toEqual([1, 2, 3]));
      expect(places('a')).toEqual([0, 0]);
      const { deliveryId } = letter!;
      const shown = await clients.events.getDelivery({ deliveryId });
      expect(shown.delivery!.state).toBe(4); // DEAD_LETTERED
      await expect(clients.events.cancelDelivery({ deliveryId })).rejects.toThrow(/dead-lettered/);
      receiver.answer = () => ({ status: 204 });
      await clients.deadLetters.replayDeadLetter({ deliveryId });
      await eventually(() => expect(places('a')).toEqual([0, 0, 0, 1, 2]));
      expect(await deadLetters()).toEqual([]);
    });

    test('its key goes on without it when the dead letter is discarded, or the subscription skips from now on', async () => {
      const subscriptionId = await subscribe({ ...dead, onDeadLetter: OnDeadLetter.STOP });
      receiver.answer = failFirst;
      await publish(clients, tenantId, [placed('a', 0), placed('a', 1), placed('b', 0), placed('b', 1)]);
      const letters = await eventually(async () => {
        const found = await deadLetters();
        expect(found).toHaveLength(2);
        return found;
      });
      await clients.deadLetters.discardDeadLetters({ deliveryIds: [letters[0]!.deliveryId] });
      await eventually(() => expect(places('a').includes(1) || places('b').includes(1)).toBe(true));
      expect(places('a').includes(1) && places('b').includes(1)).toBe(false);
      await clients.subscriptions.updateSubscription({
        subscription: { subscriptionId, onDeadLetter: OnDeadLetter.SKIP },
        updateMask: { paths: ['on_dead_letter'] },
      });
      await eventually(() => expect([places('a').at(-1), places('b').at(-1)]).toEqual([1, 1]));
    });
  });
});
