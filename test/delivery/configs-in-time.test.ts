import { expect, test } from 'vitest';
import { createConfigsInTime } from '../../src/delivery/configs-in-time.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import type { QueueKey } from '../../src/storage/claims.ts';
import type { TenantConfig } from '../../src/storage/read-config.ts';

const queue = (tenantId: string, subscriptionId: string): QueueKey => ({
  tenantId: tenantId as TenantId,
  subscriptionId: subscriptionId as SubscriptionId,
});

/** With subscriptions that are active, and others that are not. */
function configOf(active: readonly string[], paused: readonly string[] = []): TenantConfig {
  const targets = new Map<string, { readonly state: string }>();
  for (const id of active) targets.set(id, { state: 'active' });
  for (const id of paused) targets.set(id, { state: 'paused' });
  return { state: 'active', targets } as unknown as TenantConfig;
}

function start() {
  const memory = new Map<string, TenantConfig>();
  const reads: PromiseWithResolvers<TenantConfig | undefined>[] = [];
  const told: string[] = [];
  const errors: unknown[] = [];
  const inTime = createConfigsInTime({
    configs: {
      peek: (tenantId) => memory.get(tenantId),
      get: () => {
        reads.push(Promise.withResolvers());
        return reads.at(-1)!.promise;
      },
    },
    onRead: (queues) => told.push(...queues.map((q) => q.subscriptionId)),
    onError: (error) => errors.push(error),
  });
  return { memory, reads, told, errors, inTime };
}

test('one that takes long holds up one look of one of its queues, is read once, and all of them hear of it', async () => {
  const { reads, told, inTime } = start();
  expect(await inTime(queue('slow', 'a'))).toBe('later');
  const turn = new Promise((done) => setImmediate(() => done('a turn of the event loop')));
  const others = Promise.all(Array.from({ length: 100 }, (_, i) => inTime(queue('slow', `b${i}`))));
  expect(await Promise.race([others, turn])).toEqual(Array(100).fill('later'));
  expect([reads.length, told]).toEqual([1, []]);
  reads[0]!.resolve(configOf([]));
  await expect.poll(() => told.length).toBe(101);
});

test('one that is read in time is used, and that there is none is known', async () => {
  const { reads, inTime } = start();
  const config = configOf(['a']);
  const found = [inTime(queue('quick', 'a')), inTime(queue('nowhere', 'a'))];
  reads[0]!.resolve(config);
  reads[1]!.resolve(undefined);
  expect(await Promise.all(found)).toEqual([config, undefined]);
});

test('one that changed while it was read serves those that waited once, where it says that they may be sent to', async () => {
  const { reads, told, inTime } = start();
  for (const id of ['a', 'paused']) expect(await inTime(queue('moves', id))).toBe('later');
  const config = configOf(['a'], ['paused']);
  reads[0]!.resolve(config);
  await expect.poll(() => told).toEqual(['a', 'paused']);
  expect(await inTime(queue('moves', 'a'))).toBe(config);
  for (const id of ['paused', 'a']) expect(await inTime(queue('moves', id))).toBe('later');
  expect(reads.length).toBe(2);
});

test('one that is in memory by then is used from there', async () => {
  const { memory, reads, told, inTime } = start();
  expect(await inTime(queue('moves', 'a'))).toBe('later');
  const newer = configOf(['a']);
  memory.set('moves', newer);
  reads[0]!.resolve(configOf(['a']));
  await expect.poll(() => told).toEqual(['a']);
  expect(await inTime(queue('moves', 'a'))).toBe(newer);
});

test('one that cannot be read is said to be so, and is tried again', async () => {
  const { reads, told, errors, inTime } = start();
  expect(await inTime(queue('broken', 'a'))).toBe('later');
  reads[0]!.reject(new Error('no connection'));
  await expect.poll(() => errors).toEqual([new Error('no connection')]);
  const again = inTime(queue('broken', 'a'));
  reads[1]!.reject(new Error('still none'));
  await expect(again).rejects.toThrow('still none');
  expect(told).toEqual([]);
});
