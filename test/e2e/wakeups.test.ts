// What processes tell each other of queues, with ordered subscriptions, whose deliveries are never handed over in memory.
import { expect, test } from 'vitest';
import { Ordering } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { startTestInstance, type TestInstance } from '../support/instance.ts';
import { startReceiver } from '../support/receiver.ts';

const once = {
  schedule: {
    case: 'exponential' as const,
    value: { base: { seconds: 1n }, cap: { seconds: 1n }, factor: 1, maxAttempts: 1 },
  },
};

const publish = ({ clients }: TestInstance, orderingKey: string) =>
  clients().publish.publish({
    tenantId: 'acme',
    event: { type: 'order.created', orderingKey, body: { case: 'data', value: {} } },
  });

/** Hears what processes tell each other of queues from now on; what it returns says what that was so far. */
async function hintsOn({ owner }: TestDatabase): Promise<() => Promise<readonly string[]>> {
  const told: string[] = [];
  owner.on('notification', ({ payload = '' }) => told.push(payload));
  await owner.query('LISTEN dispatch_ready');
  return async () => {
    await owner.query("SELECT pg_notify('dispatch_ready', 'the end')");
    await eventually(() => expect(told).toContain('the end'));
    return told.filter((payload) => payload !== 'the end');
  };
}

test('a process whose worker is the only one keeps what is due to itself, one that knows of others tells them', async () => {
  await using database = await cloneDatabase();
  await using receiver = await startReceiver();
  const hints = await hintsOn(database);

  await using first = await startTestInstance({}, database);
  const { tenants, subscriptions } = first.clients();
  await tenants.createTenant({ tenant: { tenantId: 'acme' } });
  const { subscription } = await subscriptions.createSubscription({
    tenantId: 'acme',
    subscription: { url: receiver.url, eventTypes: ['**'], ordering: Ordering.KEY },
  });
  await publish(first, 'a');
  await eventually(() => expect(receiver.received).toHaveLength(1));

  // It hears of the first as it starts; the first has not heard of it yet.
  await using second = await startTestInstance({}, database);
  await publish(second, 'b');
  await publish(first, 'c');
  await eventually(() => expect(receiver.received).toHaveLength(3));
  const told = await hints();
  expect(told).toHaveLength(1);
  expect(told[0]).toMatch(new RegExp(`^acme/${subscription!.subscriptionId}/[0-9a-f-]{36}$`));
});

test('what is due only once the worker of a process has stopped is told to others', async () => {
  await using database = await cloneDatabase();
  await using receiver = await startReceiver();
  const hints = await hintsOn(database);
  const instance = await startTestInstance({}, database);
  const { tenants, subscriptions, deadLetters } = instance.clients();
  await tenants.createTenant({ tenant: { tenantId: 'acme' } });
  receiver.answer = () => ({ status: 500 });
  const subscription = { url: receiver.url, eventTypes: ['order.*'], retryPolicy: once };
  await subscriptions.createSubscription({ tenantId: 'acme', subscription });
  const { subscription: ofOurOwn } = await subscriptions.createSubscription({
    tenantId: 'acme',
    subscription: { url: receiver.url, eventTypes: ['dispatch.**'] },
  });
  await publish(instance, '');
  await eventually(async () => {
    expect((await deadLetters.listDeadLetters({ tenantId: 'acme' })).deadLetters).toHaveLength(1);
  });
  // What died is reported each 5 s, and at the end.
  await instance[Symbol.asyncDispose]();
  const told = await hints();
  const isTold = told.some((payload) => payload.startsWith(`acme/${ofOurOwn!.subscriptionId}/`));
  expect(isTold || receiver.received.length > 1).toBe(true);
});
