import { expect, test } from 'vitest';
import { createReady } from '../../src/compose/ready.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';

const QUEUES = ['a', 'b'].map((name) => ({
  tenantId: name as TenantId,
  subscriptionId: `sub_${name}` as SubscriptionId,
}));

/** Tells of QUEUES where so many workers are known; returns who was told how. */
function tell(workerCount: number, hasWorker: boolean): unknown[] {
  const told: unknown[] = [];
  const standing = { count: workerCount, rank: 0, isSettled: true };
  const ready = createReady({
    worker: () =>
      hasWorker
        ? { knows: (queues) => told.push(['knows', queues]), poke: (queues) => told.push(['poke', queues]) }
        : undefined,
    standings: () => ({ api: standing, worker: standing }),
    notifier: { ready: (queues) => told.push(['others', [...queues]]) },
  });
  ready(QUEUES);
  return told;
}

test('a worker that is alone is told that nobody else was', () => {
  expect(tell(1, true)).toEqual([['knows', QUEUES]]);
});

test('beside others, all are told', () => {
  expect(tell(2, true)).toEqual([
    ['poke', QUEUES],
    ['others', QUEUES],
  ]);
});

test('a process without a worker tells others, however many it has heard of', () => {
  expect(tell(1, false)).toEqual([['others', QUEUES]]);
});
