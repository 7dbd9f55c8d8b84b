// Signed delivery, retries at their times, dead letters, replay, pause, 410, cancel: over a real receiver.
import { durationFromMs, timestampMs } from '@bufbuild/protobuf/wkt';
import { Webhook } from 'standardwebhooks';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { DeadLetterReason, ReplayState } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { AttemptOutcome, DeliveryState } from '../../gen/dispatch/v1/event_pb.ts';
import { Jitter, SubscriptionState } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { eventually } from '../support/eventually.ts';
import { type Clients, newTenant, startTestInstance, type TestInstance } from '../support/instance.ts';
import { type Received, type Receiver, startReceiver } from '../support/receiver.ts';

let dispatch: TestInstance;
let receiver: Receiver;
let clients: Clients;
let tenantNumber = 0;
let tenantId: string;

beforeAll(async () => {
  dispatch = await startTestInstance();
});
afterAll(() => dispatch[Symbol.asyncDispose]());
beforeEach(async () => {
  receiver = await startReceiver();
  tenantId = `t${++tenantNumber}`;
  const { key } = await newTenant(dispatch.clients(), tenantId);
  clients = dispatch.clients(key);
});
afterEach(() => receiver[Symbol.asyncDispose]());

const listOf = (...delaysMs: number[]) => ({
  schedule: { case: 'list' as const, value: { delays: delaysMs.map(durationFromMs) } },
  jitter: Jitter.NONE,
});

async function subscribe(delaysMs: readonly number[] = [], more: object = {}) {
  const retryPolicy = delaysMs.length === 0 ? {} : { retryPolicy: listOf(...delaysMs) };
  const { subscription, secret } = await clients.subscriptions.createSubscription({
    subscription: { url: receiver.url, eventTypes: ['order.**'], ...retryPolicy, ...more },
  });
  return { subscriptionId: subscription!.subscriptionId, secret };
}

async function publish(n = 0) {
  const event = { type: 'order.created', body: { case: 'data' as const, value: { n } } };
  return (await clients.publish.publish({ event })).eventId;
}

async function deliveryOf(eventId: string) {
  const { deliveries } = await clients.events.listDeliveries({ eventId });
  expect(deliveries).toHaveLength(1);
  return deliveries[0]!;
}

const reaches = (eventId: string, state: DeliveryState) =>
  eventually(async () => {
    const delivery = await deliveryOf(eventId);
    expect(delivery.state).toBe(state);
    return delivery;
  });

const headersOf = (r: Received) => ({
  'webhook-id': String(r.headers['webhook-id']),
  'webhook-timestamp': String(r.headers['webhook-timestamp']),
  'webhook-signature': String(r.headers['webhook-signature']),
});

describe('signatures', () => {
  test('1,000 deliveries verify with the official library before, during and after a rotation', async () => {
    const { subscriptionId, secret: first } = await subscribe();
    const publishMany = async (count: number) => {
      const from = receiver.received.length;
      for (let sent = 0; sent < count; sent += 100) {
        const events = Array.from({ length: 100 }, (_, i) => ({
          type: 'order.created',
          body: { case: 'data' as const, value: { n: from + sent + i } },
        }));
        await clients.publish.publishBatch({ events });
      }
      await eventually(() => expect(receiver.received).toHaveLength(from + count));
      return receiver.received.slice(from);
    };
    const verifies = (r: Received, secret: string) => {
      try {
        new Webhook(secret).verify(r.body.toString(), headersOf(r));
        return true;
      } catch {
        return false;
      }
    };
    const before = await publishMany(300);
    const { secret: second } = await clients.subscriptions.rotateSecret({
      subscriptionId,
      overlap: durationFromMs(3_600_000),
    });
    const during = await publishMany(400);
    const { secret: third } = await clients.subscriptions.rotateSecret({
      subscriptionId,
      overlap: durationFromMs(0),
    });
    const after = await publishMany(300);
    expect(before.filter((r) => verifies(r, first))).toHaveLength(300);
    expect(during.filter((r) => verifies(r, first))).toHaveLength(400);
    expect(during.filter((r) => verifies(r, second))).toHaveLength(400);
    expect(after.filter((r) => verifies(r, third))).toHaveLength(300);
    expect([...before, ...during].filter((r) => verifies(r, third))).toHaveLength(0);
    expect(after.filter((r) => verifies(r, first) || verifies(r, second))).toHaveLength(0);
    expect(new Set(receiver.received.map((r) => r.headers['webhook-id'])).size).toBe(1_000);
  });

  test('the request carries what the contract says, and the custom headers', async () => {
    await subscribe([], { headers: { 'X-Api-Key': 'abc' } });
    const eventId = await publish(1);
    await eventually(() => expect(receiver.received).toHaveLength(1));
    expect(receiver.received[0]!.headers).toMatchObject({
      'content-type': 'application/json',
      'content-length': '7',
      'user-agent': 'dispatch/test',
      'webhook-id': eventId,
      'dispatch-event-type': 'order.created',
      'dispatch-attempt': '1',
      'dispatch-delivery-id': (await deliveryOf(eventId)).deliveryId,
      'x-api-key': 'abc',
    });
  });
});

describe('retries', () => {
  test('an endpoint that answers 500 three times and then 200 gets 4 attempts at the scheduled times', async () => {
    await subscribe([100, 200, 300, 400]);
    receiver.answer = () => ({ status: receiver.received.length <= 3 ? 500 : 200, body: 'x' });
    const eventId = await publish();
    const { deliveryId, attemptCount } = await reaches(eventId, DeliveryState.SUCCEEDED);
    expect(attemptCount).toBe(4);
    const { attempts } = await clients.events.listAttempts({ deliveryId });
    expect(attempts.map((a) => [a.attempt, a.status, a.outcome])).toEqual([
      [1, 500, AttemptOutcome.RETRY_SCHEDULED],
      [2, 500, AttemptOutcome.RETRY_SCHEDULED],
      [3, 500, AttemptOutcome.RETRY_SCHEDULED],
      [4, 200, AttemptOutcome.SUCCEEDED],
    ]);
    for (const [i, delayMs] of [100, 200, 300].entries()) {
      const scheduled = timestampMs(attempts[i]!.nextAttemptTime!);
      const next = timestampMs(attempts[i + 1]!.startTime!);
      const ended = timestampMs(attempts[i]!.startTime!);
      // Never before its time: the delay from the policy, counted from the failed attempt.
      expect(next).toBeGreaterThanOrEqual(scheduled - 2);
      expect(scheduled - ended).toBeGreaterThanOrEqual(delayMs - 2);
    }
    expect(receiver.received.map((r) => r.headers['dispatch-attempt'])).toEqual(['1', '2', '3', '4']);
    expect(new Set(receiver.received.map((r) => r.headers['webhook-id']))).toEqual(new Set([eventId]));
    expect((await clients.events.listAttempts({ deliveryId, pageSize: 3 })).attempts).toHaveLength(3);
  });

  test('one that always fails ends as a dead letter with its reason, and a replay delivers it', async () => {
    const { subscriptionId } = await subscribe([10, 10]);
    receiver.answer = () => ({ status: 503, body: 'broken today' });
    const eventId = await publish();
    const { deliveryId } = await reaches(eventId, DeliveryState.DEAD_LETTERED);
    const { deadLetter } = await clients.deadLetters.getDeadLetter({ deliveryId });
    expect(deadLetter).toMatchObject({
      eventId,
      subscriptionId,
      eventType: 'order.created',
      reason: DeadLetterReason.ATTEMPTS_EXHAUSTED,
      lastStatus: 503,
      lastErrorClass: 'http_status',
      attemptCount: 3,
    });
    expect(Buffer.from(deadLetter!.lastResponseBody).toString()).toBe('broken today');
    expect(
      (await clients.deadLetters.listDeadLetters({ filter: { eventType: 'order.*' } })).deadLetters,
    ).toHaveLength(1);
    expect(
      (await clients.deadLetters.listDeadLetters({ filter: { eventType: 'user.*' } })).deadLetters,
    ).toHaveLength(0);
    await expect(clients.events.retryDelivery({ deliveryId })).rejects.toThrow('failed_precondition');
    receiver.answer = () => ({ status: 200 });
    await clients.deadLetters.replayDeadLetter({ deliveryId });
    expect((await reaches(eventId, DeliveryState.SUCCEEDED)).attemptCount).toBe(4);
    expect((await clients.deadLetters.listDeadLetters({})).deadLetters).toHaveLength(0);
    await expect(clients.deadLetters.getDeadLetter({ deliveryId })).rejects.toThrow('not_found');
  });

  test('a replayed delivery has its whole schedule again', async () => {
    await subscribe([10]);
    receiver.answer = () => ({ status: 500 });
    const eventId = await publish();
    const { deliveryId } = await reaches(eventId, DeliveryState.DEAD_LETTERED);
    await clients.deadLetters.replayDeadLetter({ deliveryId });
    await eventually(() => expect(receiver.received).toHaveLength(4));
    expect((await reaches(eventId, DeliveryState.DEAD_LETTERED)).attemptCount).toBe(4);
  });

  test('a paused subscription’s deliveries wait, uncharged, and go out on resume', async () => {
    const { subscriptionId } = await subscribe();
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    const events = [];
    for (let n = 0; n < 5; n++) events.push(await publish(n));
    const other = await clients.subscriptions.createSubscription({
      subscription: { url: `${receiver.url}/other`, eventTypes: ['user.*'] },
    });
    // The other subscription of the same tenant goes on: by the time it has delivered, these had their chance.
    await clients.publish.publish({ event: { type: 'user.x', body: { case: 'data', value: {} } } });
    await eventually(() => expect(receiver.received.map((r) => r.path)).toEqual(['/hook/other']));
    for (const eventId of events)
      expect(await deliveryOf(eventId)).toMatchObject({ state: DeliveryState.PENDING, attemptCount: 0 });
    expect(other.subscription!.state).toBe(SubscriptionState.ACTIVE);
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    for (const eventId of events)
      expect((await reaches(eventId, DeliveryState.SUCCEEDED)).attemptCount).toBe(1);
    expect(receiver.received).toHaveLength(6);
  });

  test('410 disables the subscription, parks its queue and can be resumed', async () => {
    const { subscriptionId } = await subscribe([10, 10, 10]);
    receiver.answer = () => ({ status: 410 });
    const eventId = await publish();
    const disabled = await eventually(async () => {
      const { subscription } = await clients.subscriptions.getSubscription({ subscriptionId });
      expect(subscription!.state).toBe(SubscriptionState.DISABLED);
      return subscription!;
    });
    expect(disabled.disabledReason).toContain('410');
    const parked = await publish();
    expect(await deliveryOf(parked)).toMatchObject({ state: DeliveryState.PENDING, attemptCount: 0 });
    const asked = receiver.received.length;
    receiver.answer = () => ({ status: 200 });
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    await reaches(parked, DeliveryState.SUCCEEDED);
    await reaches(eventId, DeliveryState.SUCCEEDED);
    expect(receiver.received).toHaveLength(asked + 2);
  });

  test('a refused connection, a hanging endpoint, a redirect and a private address have their error classes', async () => {
    const hang = await startReceiver();
    hang.answer = () => new Promise(() => {});
    receiver.answer = () => ({ status: 302, headers: { location: hang.url } });
    const targets = {
      connect_refused: 'http://127.0.0.1:1/',
      timeout: hang.url,
      redirect: receiver.url,
    };
    for (const [errorClass, url] of Object.entries(targets)) {
      await clients.subscriptions.createSubscription({
        subscription: {
          url,
          eventTypes: [`${errorClass}.x`],
          retryPolicy: listOf(60_000),
          attemptTimeout: durationFromMs(1_000),
        },
      });
      const { eventId } = await clients.publish.publish({
        event: { type: `${errorClass}.x`, body: { case: 'data', value: {} } },
      });
      await eventually(async () => {
        const { deliveryId } = await deliveryOf(eventId);
        const { attempts } = await clients.events.listAttempts({ deliveryId });
        expect(attempts.map((a) => a.errorClass)).toEqual([errorClass]);
      });
    }
    expect(hang.received).toHaveLength(1);
    await hang[Symbol.asyncDispose]();
  });

  test('RetryDelivery makes a waiting delivery due now; CancelDelivery ends it', async () => {
    await subscribe([3_600_000]);
    receiver.answer = () => ({ status: receiver.received.length === 1 ? 500 : 200 });
    const eventId = await publish();
    const { deliveryId } = await eventually(async () => {
      const delivery = await deliveryOf(eventId);
      expect(delivery).toMatchObject({ state: DeliveryState.PENDING, attemptCount: 1 });
      return delivery;
    });
    await clients.events.retryDelivery({ deliveryId });
    await reaches(eventId, DeliveryState.SUCCEEDED);
    receiver.answer = () => ({ status: 500 });
    const second = await publish();
    const waiting = await eventually(async () => {
      const delivery = await deliveryOf(second);
      expect(delivery).toMatchObject({ state: DeliveryState.PENDING, attemptCount: 1 });
      return delivery;
    });
    const { delivery } = await clients.events.cancelDelivery({ deliveryId: waiting.deliveryId });
    expect(delivery!.state).toBe(DeliveryState.CANCELLED);
    expect((await clients.events.cancelDelivery({ deliveryId: waiting.deliveryId })).delivery!.state).toBe(
      DeliveryState.CANCELLED,
    );
    await expect(clients.events.retryDelivery({ deliveryId: waiting.deliveryId })).rejects.toThrow(
      'failed_precondition',
    );
    await expect(clients.events.cancelDelivery({ deliveryId })).rejects.toThrow('failed_precondition');
  });

  test('a full queue that is paused is given back, uncharged, and goes out on resume; nothing is lost', async () => {
    const { subscriptionId } = await subscribe();
    let open = false;
    const held: (() => void)[] = [];
    receiver.answer = async () => {
      if (!open) await new Promise<void>((done) => held.push(done));
      return { status: 200 };
    };
    for (let batch = 0; batch < 4; batch++) {
      await clients.publish.publishBatch({
        events: Array.from({ length: 1_000 }, (_, n) => ({
          type: 'order.x',
          body: { case: 'data' as const, value: { n } },
        })),
      });
    }
    await eventually(() => expect(held.length).toBeGreaterThan(50));
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    open = true;
    for (const release of held) release();
    const pending = () =>
      dispatch.database.owner.query(
        'SELECT count(*)::int AS n, max(attempt_count)::int AS tried FROM deliveries WHERE tenant_id = $1 AND lease IS NULL',
        [tenantId],
      );
    await eventually(async () => {
      const { rows } = await dispatch.database.owner.query(
        'SELECT count(*)::int AS n FROM deliveries WHERE tenant_id = $1 AND lease IS NOT NULL',
        [tenantId],
      );
      expect(rows).toEqual([{ n: 0 }]);
    });
    const waiting = (await pending()).rows[0];
    expect(waiting).toEqual({ n: 4_000 - receiver.received.length, tried: 0 });
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    await eventually(() => expect(receiver.received).toHaveLength(4_000));
    expect(new Set(receiver.received.map((r) => r.headers['webhook-id'])).size).toBe(4_000);
  });

  test('many queues with a backlog all get their turn', async () => {
    for (let i = 0; i < 30; i++) {
      await clients.subscriptions.createSubscription({
        subscription: { url: `${receiver.url}/${i}`, eventTypes: ['many'] },
      });
    }
    const { subscriptions } = await clients.subscriptions.listSubscriptions({});
    for (const s of subscriptions)
      await clients.subscriptions.pauseSubscription({ subscriptionId: s.subscriptionId });
    await clients.publish.publishBatch({
      events: Array.from({ length: 100 }, (_, n) => ({
        type: 'many',
        body: { case: 'data' as const, value: { n } },
      })),
    });
    for (const s of subscriptions)
      await clients.subscriptions.resumeSubscription({ subscriptionId: s.subscriptionId });
    await eventually(() => expect(receiver.received).toHaveLength(3_000));
    expect(new Set(receiver.received.map((r) => `${r.path} ${r.headers['webhook-id']}`)).size).toBe(3_000);
  });

  test('a publish that waits in the database keeps nobody’s deliveries waiting', async () => {
    const { subscriptionId } = await subscribe();
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    const event = { type: 'order.x', body: { case: 'data' as const, value: {} } };
    await clients.publish.publishBatch({ events: Array.from({ length: 500 }, () => event) });
    const { owner } = dispatch.database;
    let isStored = false;
    await owner.query('BEGIN; LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE');
    try {
      const published = publish().then(() => {
        isStored = true;
      });
      await eventually(async () => {
        const { rowCount } = await owner.query(
          "SELECT FROM pg_locks WHERE NOT granted AND relation = 'events'::regclass",
        );
        expect(rowCount).toBe(1);
      });
      await clients.subscriptions.resumeSubscription({ subscriptionId });
      await eventually(() => expect(receiver.received).toHaveLength(500));
      expect(isStored).toBe(false);
      await owner.query('COMMIT');
      await published;
    } finally {
      await owner.query('ROLLBACK');
    }
    await eventually(() => expect(receiver.received).toHaveLength(501));
    await eventually(async () => {
      const { rowCount } = await owner.query('SELECT FROM deliveries WHERE tenant_id = $1', [tenantId]);
      expect(rowCount).toBe(0);
    });
  });

  test('an event that is delayed waits for its time', async () => {
    await subscribe();
    const dueMs = Date.now() + 1_500;
    const { eventId } = await clients.publish.publish({
      event: {
        type: 'order.later',
        body: { case: 'data', value: {} },
        deliverAfter: { seconds: BigInt(Math.floor(dueMs / 1000)), nanos: (dueMs % 1000) * 1_000_000 },
      },
    });
    expect((await deliveryOf(eventId)).state).toBe(DeliveryState.PENDING);
    await reaches(eventId, DeliveryState.SUCCEEDED);
    expect(receiver.received[0]!.atMs).toBeGreaterThanOrEqual(dueMs - 5);
  });
});

describe('replay by filter', () => {
  test('a job replays what matches and nothing else, and tells its progress', async () => {
    const { subscriptionId } = await subscribe([1]);
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    const types = ['order.a', 'order.b'];
    for (let batch = 0; batch < 3; batch++) {
      const events = Array.from({ length: 1_000 }, (_, i) => ({
        type: types[i % 2]!,
        body: { case: 'data' as const, value: { i } },
      }));
      await clients.publish.publishBatch({ events });
    }
    // As if each had used up its retries: an endpoint that fails 3,000 times would meet its breaker first.
    await dispatch.database.owner.query(
      `WITH gone AS (DELETE FROM deliveries WHERE tenant_id = $1 RETURNING *)
       INSERT INTO dead_letters (tenant_id, id, subscription_id, event_type, reason, last_error_class,
         last_error_message, attempt_count)
       SELECT g.tenant_id, g.id, g.subscription_id, e.type, 'attempts_exhausted', 'http_status', '', 2
       FROM gone g JOIN events e ON e.tenant_id = g.tenant_id AND substr(e.id::text, 1, 30) = substr(g.id::text, 1, 30)`,
      [tenantId],
    );
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    receiver.answer = () => ({ status: 200 });
    receiver.received.length = 0;
    const { replay } = await clients.deadLetters.replayDeadLetters({ filter: { eventType: 'order.a' } });
    const done = await eventually(async () => {
      const answer = await clients.deadLetters.getReplay({ replayId: replay!.replayId });
      expect(answer.replay!.state).toBe(ReplayState.FINISHED);
      return answer.replay!;
    });
    expect(Number(done.replayedCount)).toBe(1_500);
    await eventually(() => expect(receiver.received).toHaveLength(1_500));
    expect(new Set(receiver.received.map((r) => r.headers['dispatch-event-type']))).toEqual(
      new Set(['order.a']),
    );
    let discarded = 0;
    for (;;) {
      const { discardedCount } = await clients.deadLetters.discardDeadLetters({ filter: {} });
      if (discardedCount === 0) break;
      discarded += discardedCount;
    }
    expect(discarded).toBe(1_500);
    expect(receiver.received).toHaveLength(1_500);
    await clients.deadLetters.discardDeadLetters({ deliveryIds: ['dlv_00000000000000000000000000'] });
    // The log has what was done, and nothing of what matched nothing.
    const { entries } = await dispatch
      .clients()
      .tenants.listAuditLog({ tenantId, action: 'dead_letters.discard' });
    expect(entries.map((entry) => entry.detail)).toEqual([
      { byFilter: 'true', count: '500' },
      { byFilter: 'true', count: '1000' },
    ]);
  });
});
