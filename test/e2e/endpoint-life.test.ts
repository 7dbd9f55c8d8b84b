// The life of an endpoint: it proves itself, fails, is disabled, is probed, comes back, and says itself what it wants. And
// what its tenant is told of that, by events of dispatch's own.
import { createHmac } from 'node:crypto';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { SubscriptionState } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { eventually } from '../support/eventually.ts';
import { type Clients, newTenant, startTestInstance, type TestInstance } from '../support/instance.ts';
import { type Received, type Receiver, startReceiver } from '../support/receiver.ts';

let dispatch: TestInstance;
let receiver: Receiver;
let admin: Clients;
let clients: Clients;
let tenantId: string;
let serial = 0;

beforeAll(async () => {
  dispatch = await startTestInstance();
  admin = dispatch.clients();
  receiver = await startReceiver();
  // What the last test is about: quotas are looked at once a minute, and the other tests may pass meanwhile.
  await useUpQuota();
});
afterAll(async () => {
  await dispatch[Symbol.asyncDispose]();
  await receiver[Symbol.asyncDispose]();
});
beforeEach(async () => {
  tenantId = `life-${++serial}`;
  const { key } = await newTenant(admin, tenantId);
  clients = dispatch.clients(key);
  receiver.received = receiver.received.filter((r) => r.path === '/quota');
  receiver.answer = () => ({ status: 204 });
});

const at = (path: string) => `${new URL(receiver.url).origin}/${tenantId}/${path}`;
const gotAt = (path: string) => receiver.received.filter((r) => r.path === `/${tenantId}/${path}`);
const jsonOf = (r: Received) => JSON.parse(r.body.toString('utf8')) as Record<string, never>;
const list = (...delaysMs: number[]) => ({
  schedule: {
    case: 'list' as const,
    value: {
      delays: delaysMs.map((ms) => ({ seconds: BigInt(Math.floor(ms / 1000)), nanos: (ms % 1000) * 1e6 })),
    },
  },
});
const subscribe = async (path: string, eventTypes: string[], more: object = {}) => {
  const { subscription, secret } = await clients.subscriptions.createSubscription({
    subscription: { url: at(path), eventTypes, ...more },
  });
  return { subscriptionId: subscription!.subscriptionId, secret };
};
const publish = (type: string) =>
  clients.publish.publish({ event: { type, body: { case: 'data', value: { type } } } });
const read = async (subscriptionId: string) =>
  (await clients.subscriptions.getSubscription({ subscriptionId })).subscription!;
const setPolicy = (policy: object) =>
  admin.tenants.updateTenant({ tenant: { tenantId, policy }, updateMask: { paths: ['policy'] } });
/** dispatch's own events that a subscription to `dispatch.**` at `told` got, by type. */
const told = (type: string) =>
  gotAt('told')
    .filter((r) => r.headers['dispatch-event-type'] === type)
    .map(jsonOf);

describe('verification', () => {
  beforeEach(() => setPolicy({ requireVerification: true }));

  test('holds deliveries back until the endpoint echoes the challenge, and no longer', async () => {
    const { subscriptionId } = await subscribe('hook', ['a.*']);
    expect((await read(subscriptionId)).state).toBe(SubscriptionState.PENDING_VERIFICATION);
    await publish('a.x');
    for (const call of ['pauseSubscription', 'resumeSubscription'] as const) {
      await expect(clients.subscriptions[call]({ subscriptionId })).rejects.toThrow(
        /has to be verified first/,
      );
    }
    await expect(clients.subscriptions.testSubscription({ subscriptionId })).rejects.toThrow(
      /has to be verified first/,
    );
    receiver.answer = () => ({ status: 200, body: 'whatever' });
    const wrong = await clients.subscriptions.verifySubscription({ subscriptionId });
    expect([wrong.verified, wrong.status, wrong.errorClass]).toEqual([false, 200, 'challenge']);
    expect(wrong.subscription!.state).toBe(SubscriptionState.PENDING_VERIFICATION);
    expect(gotAt('hook').map((r) => r.headers['dispatch-event-type'])).toEqual(['dispatch.verification']);
    receiver.answer = (r) => ({ status: 200, body: JSON.stringify({ challenge: jsonOf(r)['challenge'] }) });
    const right = await clients.subscriptions.verifySubscription({ subscriptionId });
    expect(right.verified).toBe(true);
    expect(right.subscription!.state).toBe(SubscriptionState.ACTIVE);
    expect(right.subscription!.verifyTime).toBeDefined();
    await eventually(() => expect(gotAt('hook').at(-1)!.headers['dispatch-event-type']).toBe('a.x'));
  });

  test('takes a signature over the challenge, by the right secret only', async () => {
    const { subscriptionId, secret } = await subscribe('signed', ['a.*']);
    const sign = (with_: string, r: Received) => {
      const key = Buffer.from(with_.slice('whsec_'.length), 'base64');
      const challenge = String(jsonOf(r)['challenge']);
      return JSON.stringify({
        signature: `v1,${createHmac('sha256', key).update(challenge).digest('base64')}`,
      });
    };
    const other = `whsec_${Buffer.alloc(32, 1).toString('base64')}`;
    receiver.answer = (r) => ({ status: 200, body: sign(other, r) });
    expect((await clients.subscriptions.verifySubscription({ subscriptionId })).verified).toBe(false);
    receiver.answer = (r) => ({ status: 200, body: sign(secret, r) });
    expect((await clients.subscriptions.verifySubscription({ subscriptionId })).verified).toBe(true);
  });

  test('is asked for again when the URL changes, and an endpoint that is away is told as an attempt would be', async () => {
    const { subscriptionId } = await subscribe('one', ['a.*']);
    receiver.answer = (r) => ({ status: 200, body: String(jsonOf(r)['challenge']) });
    await clients.subscriptions.verifySubscription({ subscriptionId });
    const change = async (subscription: object, paths: string[]) =>
      (
        await clients.subscriptions.updateSubscription({
          subscription: { subscriptionId, ...subscription },
          updateMask: { paths },
        })
      ).subscription!;
    expect((await change({ description: 'x' }, ['description'])).state).toBe(SubscriptionState.ACTIVE);
    const moved = await change({ url: 'http://127.0.0.1:9/' }, ['url']);
    expect(moved.state).toBe(SubscriptionState.PENDING_VERIFICATION);
    expect(moved.verifyTime).toBeUndefined();
    const away = await clients.subscriptions.verifySubscription({ subscriptionId });
    expect([away.verified, away.status, away.errorClass]).toEqual([false, 0, 'connect_refused']);
  });
});

describe('what an endpoint says', () => {
  test('`webhook-delivery: disable` disables its subscription, also with a 2xx; nothing more is sent', async () => {
    await subscribe('told', ['dispatch.**']);
    const { subscriptionId } = await subscribe('hook', ['a.*']);
    receiver.answer = (r) =>
      r.path.endsWith('/hook')
        ? { status: 200, headers: { 'webhook-delivery': 'disable' } }
        : { status: 204 };
    await publish('a.x');
    await eventually(async () => {
      const { state, disabledReason } = await read(subscriptionId);
      expect([state, disabledReason]).toEqual([
        SubscriptionState.DISABLED,
        'the endpoint asked for it: webhook-delivery',
      ]);
    });
    await publish('a.y');
    await eventually(() =>
      expect(told('dispatch.subscription.disabled')).toMatchObject([{ subscriptionId }]),
    );
    expect(gotAt('hook')).toHaveLength(1);
  });

  test('`webhook-delivery: abort` gives a delivery up at once, with its reason', async () => {
    await subscribe('hook', ['a.*'], { retryPolicy: list(60_000, 60_000) });
    receiver.answer = () => ({ status: 422, headers: { 'webhook-delivery': 'abort' } });
    await publish('a.x');
    const [letter] = await eventually(async () => {
      const { deadLetters } = await clients.deadLetters.listDeadLetters({
        filter: { reason: 4, lastStatus: 422 },
      });
      expect(deadLetters).toHaveLength(1);
      return deadLetters;
    });
    expect([letter!.attemptCount, letter!.lastErrorClass]).toEqual([1, 'http_status']);
    expect((await clients.deadLetters.listDeadLetters({ filter: { lastStatus: -1 } })).deadLetters).toEqual(
      [],
    );
  });

  test('a kept-alive connection that is closed under a request costs nothing: it is sent again at once', async () => {
    let requests = 0;
    let closed = 0;
    const server = createServer((socket) => {
      let answered = 0;
      socket.on('error', () => socket.destroy());
      socket.on('data', (chunk) => {
        if (!chunk.toString('latin1').startsWith('POST')) return;
        requests++;
        if (answered > 0) {
          closed++;
          socket.destroy(); // as a server does whose keep-alive time is over
          return;
        }
        answered++;
        socket.write('HTTP/1.1 204 No Content\r\n\r\n');
      });
    });
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    const { port } = server.address() as AddressInfo;
    const { subscription } = await clients.subscriptions.createSubscription({
      subscription: { url: `http://127.0.0.1:${port}/`, eventTypes: ['a.*'], retryPolicy: list(60_000) },
    });
    for (let i = 0; i < 12; i++) {
      const { eventId } = await publish('a.x');
      const { deliveryId } = await eventually(async () => {
        const { deliveries } = await clients.events.listDeliveries({ eventId });
        expect(deliveries[0]!.state).toBe(3); // SUCCEEDED
        return deliveries[0]!;
      });
      const { attempts } = await clients.events.listAttempts({ deliveryId });
      expect(attempts.map((a) => [a.attempt, a.status])).toEqual([[1, 204]]);
      expect(attempts[0]!.timing!.firstByte).toBeDefined();
    }
    expect(closed).toBeGreaterThan(0);
    expect(requests).toBe(12 + closed);
    expect((await read(subscription!.subscriptionId)).breaker!.state).toBe(1); // CLOSED
    server.close();
  });
});

describe('an endpoint that fails for long', () => {
  test('is disabled, its tenant is told, and a probe enables it when it is back', async () => {
    await setPolicy({
      autoDisableAfter: { seconds: 1n },
      autoDisableFailures: 3,
      probeInterval: { seconds: 1n },
    });
    await subscribe('told', ['dispatch.**']);
    await subscribe('everything', ['**']);
    let isBack = false;
    receiver.answer = (r) => ({ status: r.path.endsWith('/hook') && !isBack ? 500 : 204 });
    const { subscriptionId } = await subscribe('hook', ['a.*'], {
      retryPolicy: list(10, 10, 10, 10, 10, 60_000),
    });
    await publish('a.x');
    await eventually(async () => {
      const { state, disabledReason } = await read(subscriptionId);
      expect(state).toBe(SubscriptionState.DISABLED);
      expect(disabledReason).toMatch(/^no attempt succeeded since .*, and \d+ failed$/);
    }, 60_000);
    await eventually(() => expect(told('dispatch.subscription.disabled')).toHaveLength(1));
    expect(told('dispatch.breaker.opened')).toMatchObject([
      { subscriptionId, reason: 'consecutive_failures' },
    ]);
    const { entries } = await clients.tenants.listAuditLog({ action: 'subscription.disable' });
    expect(entries.map((e) => e.actor)).toEqual(['dispatch']);
    isBack = true;
    await eventually(
      async () => expect((await read(subscriptionId)).state).toBe(SubscriptionState.ACTIVE),
      60_000,
    );
    await eventually(() => expect(told('dispatch.subscription.enabled')).toHaveLength(1));
    expect(gotAt('hook').some((r) => r.headers['dispatch-event-type'] === 'dispatch.probe')).toBe(true);
    // `**` is every event of the tenant's, and not dispatch's own.
    expect(gotAt('everything').map((r) => r.headers['dispatch-event-type'])).toEqual(['a.x']);
  }, 150_000);

  test('that came back by itself is not disabled: a success is the end of it', async () => {
    await setPolicy({ autoDisableAfter: { seconds: 1n }, autoDisableFailures: 1 });
    const { subscriptionId } = await subscribe('hook', ['a.*'], { retryPolicy: list(10, 10) });
    let answers = 0;
    receiver.answer = () => ({ status: ++answers === 1 ? 500 : 204 });
    await publish('a.x');
    await eventually(() => expect(gotAt('hook')).toHaveLength(2));
    const row = async () =>
      (
        await dispatch.database.owner.query('SELECT FROM subscription_health WHERE tenant_id = $1', [
          tenantId,
        ])
      ).rowCount;
    // Another tenant's endpoint that fails is written in the same round: then this one's round is over too.
    const { key } = await newTenant(admin, `${tenantId}-other`);
    const other = dispatch.clients(key);
    await other.subscriptions.createSubscription({
      subscription: { url: 'http://127.0.0.1:9/', eventTypes: ['b.*'], retryPolicy: list(60_000) },
    });
    await other.publish.publish({ event: { type: 'b.x', body: { case: 'data', value: {} } } });
    await eventually(async () => {
      const { rowCount } = await dispatch.database.owner.query(
        'SELECT FROM subscription_health WHERE tenant_id = $1',
        [`${tenantId}-other`],
      );
      expect(rowCount).toBe(1);
    }, 60_000);
    expect(await row()).toBe(0);
    expect((await read(subscriptionId)).state).toBe(SubscriptionState.ACTIVE);
    expect((await read(subscriptionId)).failingSinceTime).toBeUndefined();
  }, 90_000);
});

describe('events of dispatch’s own', () => {
  test('tell of dead letters in one report for a subscription, of replays, and never of themselves', async () => {
    await subscribe('told', ['dispatch.**']);
    const { subscriptionId } = await subscribe('hook', ['a.*', 'dispatch.**'], { retryPolicy: list(1) });
    // Another that gets them and fails: nothing may come of that.
    await subscribe('broken', ['dispatch.**'], { retryPolicy: list(1) });
    receiver.answer = (r) => ({ status: r.path.endsWith('/told') ? 204 : 500 });
    for (let i = 0; i < 2; i++) await publish('a.x');
    const [report] = await eventually(() => {
      const reports = told('dispatch.delivery.dead_lettered');
      expect(reports).toHaveLength(1);
      return reports;
    });
    expect(report).toMatchObject({ subscriptionId, count: 2, reasons: { attempts_exhausted: 2 } });
    receiver.answer = () => ({ status: 204 });
    const { replay } = await clients.deadLetters.replayDeadLetters({ filter: { subscriptionId } });
    await eventually(() =>
      expect(told('dispatch.replay.finished')).toMatchObject([
        {
          replayId: replay!.replayId,
          state: 'finished',
          kind: 'dead_letters',
          replayedCount: 2,
          totalCount: 2,
        },
      ]),
    );
    // What is about a subscription is not sent to it, and what failed on its way to `broken` was told to nobody.
    const own = gotAt('hook').map((r) => r.headers['dispatch-event-type']);
    expect(own).not.toContain('dispatch.delivery.dead_lettered');
    expect(told('dispatch.delivery.dead_lettered')).toHaveLength(1);
    // They count as nobody's usage.
    expect(Number((await clients.tenants.getUsage({})).eventsToday)).toBe(2);
  }, 60_000);

  test('tell of a quota at 80 and at 100 %, once each', async () => {
    await eventually(() => {
      const alerts = receiver.received
        .filter((r) => r.path === '/quota')
        .map(jsonOf)
        .map((a) => [a['quota'], a['threshold'], a['limit'], a['used']]);
      expect(alerts.sort((a, b) => Number(a[1]) - Number(b[1]))).toEqual([
        ['events_per_day', 80, 10, 10],
        ['events_per_day', 100, 10, 10],
      ]);
    }, 90_000);
  }, 120_000);
});

/** A tenant that has published all that it may in a day, and is told of it at `/quota`. */
async function useUpQuota(): Promise<void> {
  const { key } = await newTenant(admin, 'quota');
  const own = dispatch.clients(key);
  await own.subscriptions.createSubscription({
    subscription: { url: `${new URL(receiver.url).origin}/quota`, eventTypes: ['dispatch.quota.*'] },
  });
  await admin.tenants.setQuota({ tenantId: 'quota', quota: { eventsPerDay: 10n } });
  const event = { type: 'a.x', body: { case: 'data' as const, value: {} } };
  for (let i = 0; i < 10; i++) await own.publish.publish({ event });
  await expect(own.publish.publish({ event })).rejects.toThrow(/events_per_day/);
}
