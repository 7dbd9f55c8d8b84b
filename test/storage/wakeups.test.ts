// What a listener hears of its connection.
import { expect, test } from 'vitest';
import { listen } from '../../src/storage/wakeups.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

test('a listener is told when it is connected, when that ends, and when it is again', async () => {
  await using database = await cloneDatabase();
  const told: string[] = [];
  await using _ = listen(database.url, {
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
