// Batches: several events in one request, with one signature and one outcome.

import { Webhook } from 'standardwebhooks';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { BatchFormat, Jitter, Ordering } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { eventually } from '../support/eventually.ts';
import { type Clients, newTenant, startTestInstance, type TestInstance } from '../support/instance.ts';
import { type Received, type Receiver, startReceiver } from '../support/receiver.ts';
import { scaled } from '../support/scale.ts';

let dispatch: TestInstance;
let receiver: Receiver;
let clients: Clients;
let serial = 0;

beforeAll(async () => {
  dispatch = await startTestInstance({ DISPATCH_DEFAULT_QUOTA: '{"publishPerSecond": 0}' });
  receiver = await startReceiver();
});
afterAll(async () => {
  await dispatch[Symbol.asyncDispose]();
  await receiver[Symbol.asyncDispose]();
});
beforeEach(async () => {
  const { key } = await newTenant(dispatch.clients(), `batch-${++serial}`);
  clients = dispatch.clients(key);
  receiver.received.length = 0;
  receiver.answer = () => ({ status: 204 });
});

const subscribe = async (batch: object, more: object = {}) => {
  const { subscription, secret } = await clients.subscriptions.createSubscription({
    subscription: { url: receiver.url, eventTypes: ['**'], batch, ...more },
  });
  return { subscriptionId: subscription!.subscriptionId, secret };
};
const event = (value: object, more: object = {}) => ({
  type: 'order.created',
  body: { case: 'payload' as const, value: Buffer.from(JSON.stringify(value)) },
  ...more,
});
const publish = async (events: object[]) => {
  const { results } = await clients.publish.publishBatch({ events });
  return results.map(({ result }) => {
    expect(result.case).toBe('ok');
    return result.case === 'ok' ? result.value.eventId : '';
  });
};
type Item = {
  readonly id: string;
  readonly type: string;
  readonly timestamp: string;
  readonly data: { n: number };
};
const itemsOf = (request: Received) => JSON.parse(request.body.toString('utf8')) as Item[];
const verifies = (secret: string, request: Received) =>
  new Webhook(secret).verify(request.body.toString('utf8'), request.headers as Record<string, string>);

describe('a batch', () => {
  const count = scaled(100_000);

  test('of 1,000 fills from a backlog, and does not wait for its time', async () => {
    const { subscriptionId } = await subscribe({ maxEvents: 1_000, maxWait: { seconds: 10n } });
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    for (let n = 0; n < 2_000; n += 500) {
      await publish(Array.from({ length: 500 }, (_, i) => event({ n: n + i })));
    }
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    await eventually(() => expect(receiver.received).toHaveLength(2), 30_000);
    expect(receiver.received.map((r) => r.headers['dispatch-batch-size'])).toEqual(['1000', '1000']);
  });

  test(`of ${count} events every one is in exactly one that succeeded, all limits kept, verified by the official library`, async () => {
    const maxEvents = 250;
    const maxBytes = 24 * 1024;
    const { secret } = await subscribe(
      { maxEvents, maxBytes, maxWait: { seconds: 0n, nanos: 300e6 } },
      {
        retryPolicy: {
          schedule: {
            case: 'list',
            value: { delays: Array.from({ length: 30 }, () => ({ seconds: 0n, nanos: 50e6 })) },
          },
          jitter: Jitter.NONE,
        },
      },
    );
    const succeeded = new Map<string, number>();
    const acked = new Set<string>();
    let requests = 0;
    let most = { events: 0, bytes: 0 };
    receiver.answer = (request) => {
      receiver.received.length = 0; // a hundred thousand bodies need not be kept
      requests++;
      verifies(secret, request);
      const items = itemsOf(request);
      expect(Number(request.headers['dispatch-batch-size'])).toBe(items.length);
      most = {
        events: Math.max(most.events, items.length),
        bytes: Math.max(most.bytes, request.body.length),
      };
      if (requests % 10 === 3) return { status: 500 };
      for (const { id } of items) succeeded.set(id, (succeeded.get(id) ?? 0) + 1);
      return { status: 204 };
    };
    for (let n = 0; n < count; n += 500) {
      const events = Array.from({ length: Math.min(500, count - n) }, (_, i) => event({ n: n + i }));
      for (const id of await publish(events)) acked.add(id);
    }
    await eventually(() => expect(succeeded.size).toBe(count), 300_000);
    expect(acked.size).toBe(count);
    expect([...acked].filter((id) => succeeded.get(id) !== 1)).toEqual([]);
    expect(most.events).toBeLessThanOrEqual(maxEvents);
    expect(most.bytes).toBeLessThanOrEqual(maxBytes);
    console.log(
      `batches: ${count} events in ${requests} requests, at most ${most.events} events, ${most.bytes} bytes`,
    );
    expect(requests).toBeLessThan(count / 20);
    await eventually(async () => {
      const { rows } = await dispatch.database.owner.query('SELECT count(*)::int4 AS n FROM deliveries');
      expect(rows[0].n).toBe(0);
    });
  }, 600_000);

  test('goes when it is full, and otherwise when its first has waited long enough', async () => {
    await subscribe({ maxEvents: 3, maxWait: { seconds: 10n, nanos: 0 } });
    await publish([event({ n: 0 }), event({ n: 1 })]);
    const ids = await publish([event({ n: 2 })]); // the third fills it: nobody waits for 10 s
    await eventually(() => expect(receiver.received).toHaveLength(1), 8_000);
    const items = itemsOf(receiver.received[0]!).sort((x, y) => x.data.n - y.data.n); // no order was asked for
    expect(items.map((i) => i.data.n)).toEqual([0, 1, 2]);
    expect(items[2]!.id).toBe(ids[0]);
    receiver.received.length = 0;
    await subscribe({ maxEvents: 100, maxWait: { seconds: 0n, nanos: 400e6 } }, { eventTypes: ['slow.*'] });
    await publish([event({ n: 7 }, { type: 'slow.x' })]);
    await publish([event({ n: 8 }, { type: 'slow.x' })]);
    await eventually(() => {
      const sizes = receiver.received.map((r) => itemsOf(r).filter((i) => i.type === 'slow.x').length);
      expect(sizes).toContain(2);
    });
  });

  test('has one outcome: all of it is tried again together, under the same id, and each member has its attempts', async () => {
    const { subscriptionId } = await subscribe(
      { maxEvents: 4, maxWait: { seconds: 0n, nanos: 200e6 } },
      {
        retryPolicy: {
          schedule: {
            case: 'list',
            value: {
              delays: [
                { seconds: 0n, nanos: 100e6 },
                { seconds: 0n, nanos: 100e6 },
              ],
            },
          },
        },
      },
    );
    let answers = 0;
    receiver.answer = () => ({
      status: ++answers < 3 ? 503 : 200,
      body: 'ok',
      headers: { 'x-receiver': 'r1' },
    });
    const ids = await publish([event({ n: 0 }), event({ n: 1 }), event({ n: 2 }), event({ n: 3 })]);
    await eventually(() => expect(receiver.received).toHaveLength(3));
    expect(new Set(receiver.received.map((r) => r.headers['webhook-id'])).size).toBe(1);
    expect(receiver.received.map((r) => r.headers['dispatch-attempt'])).toEqual(['1', '2', '3']);
    for (const r of receiver.received)
      expect(
        itemsOf(r)
          .map((i) => i.id)
          .sort(),
      ).toEqual([...ids].sort());
    for (const eventId of ids) {
      const { deliveries } = await eventually(async () => {
        const found = await clients.events.listDeliveries({ eventId });
        expect(found.deliveries[0]!.state).toBe(3); // SUCCEEDED
        return found;
      });
      expect(deliveries[0]!.subscriptionId).toBe(subscriptionId);
      const { attempts } = await clients.events.listAttempts({ deliveryId: deliveries[0]!.deliveryId });
      expect(attempts.map((a) => [a.status, a.batchSize])).toEqual([
        [503, 4],
        [503, 4],
        [200, 4],
      ]);
      expect(attempts[2]!.responseHeaders['x-receiver']).toBe('r1');
      expect(Buffer.from(attempts[2]!.responseBody).toString()).toBe('ok');
    }
  });

  test('as CloudEvents carries JSON as it is and other bodies in base64', async () => {
    const { secret } = await subscribe({ maxEvents: 2, format: BatchFormat.CLOUDEVENTS });
    await publish([
      event({ n: 1 }, { source: '/shop', subject: 'order/1' }),
      {
        type: 'file.made',
        contentType: 'text/csv',
        body: { case: 'payload', value: Buffer.from('a,b\n1,2') },
      },
    ]);
    await eventually(() => expect(receiver.received).toHaveLength(1));
    const [request] = receiver.received;
    verifies(secret, request!);
    expect(request!.headers['content-type']).toBe('application/cloudevents-batch+json');
    const items = JSON.parse(request!.body.toString()) as Record<string, unknown>[];
    expect(items[0]).toMatchObject({
      specversion: '1.0',
      type: 'order.created',
      source: '/shop',
      subject: 'order/1',
      datacontenttype: 'application/json',
      data: { n: 1 },
    });
    expect(items[1]).toMatchObject({ source: `/dispatch/batch-${serial}`, datacontenttype: 'text/csv' });
    expect(Buffer.from(String(items[1]!['data_base64']), 'base64').toString()).toBe('a,b\n1,2');
    expect(Date.parse(String(items[0]!['time']))).toBeGreaterThan(Date.now() - 60_000);
  });

  test('is also what a test event comes in', async () => {
    const { subscriptionId } = await subscribe({ maxEvents: 10 });
    expect((await clients.subscriptions.testSubscription({ subscriptionId })).succeeded).toBe(true);
    const [request] = receiver.received;
    expect(itemsOf(request!)).toMatchObject([{ type: 'dispatch.test', data: { test: true } }]);
    expect(request!.headers['dispatch-batch-size']).toBe('1');
  });

  test('of an event that is larger than a batch may be holds it alone', async () => {
    await subscribe({ maxEvents: 10, maxBytes: 1024, maxWait: { seconds: 0n, nanos: 100e6 } });
    await publish([event({ n: 0 }), event({ n: 1, text: 'x'.repeat(5_000) }), event({ n: 2 })]);
    await eventually(() => expect(receiver.received.flatMap(itemsOf)).toHaveLength(3));
    const alone = receiver.received.find((r) => r.body.length > 1024)!;
    expect(itemsOf(alone).map((i) => i.data.n)).toEqual([1]);
  });

  test('keeps the order of each key, within a request and over failures', async () => {
    await subscribe(
      { maxEvents: 20, maxWait: { seconds: 0n, nanos: 50e6 } },
      {
        ordering: Ordering.KEY,
        retryPolicy: {
          schedule: {
            case: 'list',
            value: { delays: Array.from({ length: 20 }, () => ({ seconds: 0n, nanos: 20e6 })) },
          },
          jitter: Jitter.NONE,
        },
      },
    );
    const arrived = new Map<string, number[]>();
    let requests = 0;
    receiver.answer = (request) => {
      const items = JSON.parse(request.body.toString()) as { data: { key?: string; n: number } }[];
      const hasKey = (item: (typeof items)[number]): item is { data: { key: string; n: number } } =>
        item.data.key !== undefined;
      if (!items.every(hasKey)) return { status: 204 }; // a last batch of the test before
      const places = new Map<string, number[]>();
      for (const { data } of items) places.set(data.key, [...(places.get(data.key) ?? []), data.n]);
      for (const [key, ns] of places) {
        const next = (arrived.get(key) ?? []).length;
        expect(ns, key).toEqual(ns.map((_, i) => next + i));
      }
      if (++requests % 4 === 0) return { status: 500 };
      for (const [key, ns] of places) arrived.set(key, [...(arrived.get(key) ?? []), ...ns]);
      return { status: 204 };
    };
    for (let n = 0; n < 100; n += 10) {
      const keys = ['a', 'b', 'c', 'd', 'e'];
      const events = keys.flatMap((key) =>
        Array.from({ length: 10 }, (_, i) => event({ key, n: n + i }, { orderingKey: key })),
      );
      await publish(events);
    }
    await eventually(() =>
      expect([...arrived.values()].map((ns) => ns.length)).toEqual([100, 100, 100, 100, 100]),
    );
    expect(requests).toBeLessThan(250);
  });
});
