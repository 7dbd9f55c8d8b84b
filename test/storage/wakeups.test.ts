// What a listener hears: of its connection, and of queues.
import { expect, test } from 'vitest';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import { createNotifier, listen } from '../../src/storage/wakeups.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

test('a listener is told when it is connected, when that ends, and when it is again', async () => {
  await using database = await cloneDatabase();
  const told: string[] = [];
  await using _ = listen(database.url, 'me', {
    onConnection: () => told.push('connection'),
    onReady: () => told.push('ready'),
    onChanged: () => told.push('changed'),
    onError: () => told.push('error'),
  });
  await eventually(() => expect(told.length).toBe(3));
  await database.owner.query(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dispatch-listen' AND datname = current_database()",
  );
  await eventually(() => expect(told.length).toBe(8));
  expect(told).toEqual([
    'connection',
    'changed',
    'ready',
    'connection',
    'error',
    'connection',
    'changed',
    'ready',
  ]);
});

test('a listener hears of queues from others, of those before this version, too, and not from itself', async () => {
  await using database = await cloneDatabase();
  const heard: unknown[] = [];
  let isListening = false;
  await using _ = listen(database.url, 'me', {
    onConnection() {},
    onReady(queues) {
      if (isListening) heard.push(queues);
      isListening = true;
    },
    onChanged() {},
    onError() {},
  });
  await eventually(() => expect(isListening).toBe(true));
  const queueOf = (name: string) => ({
    tenantId: name as TenantId,
    subscriptionId: `sub_${name}` as SubscriptionId,
  });
  const fail = (error: unknown) => {
    throw error;
  };
  for (const self of ['me', 'you']) {
    await using notifier = createNotifier(database.owner, self, fail);
    notifier.ready([queueOf(`${self}-1`), queueOf(`${self}-2`)]);
  }
  await database.owner.query("SELECT pg_notify('dispatch_ready', 'old/sub_old')");
  await eventually(() => expect(heard.length).toBe(2));
  expect(heard).toEqual([[queueOf('you-1'), queueOf('you-2')], [queueOf('old')]]);
});

test('where there are too many queues to name, a listener hears of any', async () => {
  await using database = await cloneDatabase();
  const heard: unknown[] = [];
  await using _ = listen(database.url, 'me', {
    onConnection() {},
    onReady: (queues) => heard.push(queues),
    onChanged() {},
    onError() {},
  });
  await eventually(() => expect(heard.length).toBe(1));
  await using notifier = createNotifier(database.owner, 'you', () => {});
  const many = Array.from({ length: 600 }, (_, i) => ({
    tenantId: `tenant-${i}` as TenantId,
    subscriptionId: `sub_${i}` as SubscriptionId,
  }));
  notifier.ready(many);
  await eventually(() => expect(heard).toEqual([undefined, undefined]));
});
