import { randomBytes } from 'node:crypto';
import { expect, onTestFinished, test } from 'vitest';
import { type ClaimerDeps, createClaimer } from '../../src/delivery/claimer.ts';
import type { ClaimedDelivery } from '../../src/domain/delivery.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import type { Wanted } from '../../src/storage/claims.ts';

const queue = { tenantId: 'a' as TenantId, subscriptionId: 'sub_1' as SubscriptionId };

/** A claimer over one queue; `stored` is what it holds, by the time that it is due, in the order of claims. */
function setup(stored: number[], room: number) {
  const claims: { readonly after: number | undefined; readonly brought: number[] }[] = [];
  const accepted: number[] = [];
  let onAccepted = (): void => {};
  const take = ({ after, room: count }: Wanted): ClaimedDelivery[] => {
    const from = after === undefined ? 0 : stored.findIndex((dueAtMs) => dueAtMs > after.dueAtMs);
    const brought = from < 0 ? [] : stored.splice(from, count);
    claims.push({ after: after?.dueAtMs, brought });
    return brought.map((dueAtMs) => ({ ...queue, dueAtMs, idBytes: randomBytes(16) }) as ClaimedDelivery);
  };
  const nothing = { deliveries: [], withoutEvent: [], lines: [], reached: '', dueInMs: undefined };
  const deps: ClaimerDeps = {
    walk: async () => [],
    claim: async ([wanted]) => ({ deliveries: take(wanted!), withoutEvent: [] }),
    claimLines: async () => nothing,
    claimLeftovers: async () => nothing,
    positionAfter: () => deps.walkStart,
    walkStart: { tenantId: '', subscriptionUuid: '' },
    room: () => room,
    waiting: () => 0,
    totalRoom: () => room,
    worthwhile: 1,
    planOf: async () => ({ cap: 1_000, perLine: 0 }),
    foundNothing: () => onAccepted(),
    accept: (deliveries) => {
      accepted.push(...deliveries.map((d) => d.dueAtMs));
      onAccepted();
    },
    acceptLines: () => {},
    withoutEvent: () => {},
    mayClaim: () => true,
    onError: (error) => {
      throw error;
    },
  };
  const claimer = createClaimer(deps);
  onTestFinished(claimer.stop);
  const until = (isDone: () => boolean) =>
    new Promise<void>((done) => {
      onAccepted = () => {
        if (isDone()) done();
      };
    });
  return { claimer, stored, claims, accepted, until };
}

test('a claim goes on where the last one ended, and the one after a short one begins at the front', async () => {
  const { claimer, claims, until } = setup([1, 2, 3, 4, 5], 2);
  const done = until(() => claims.length >= 4);
  claimer.poke([queue]);
  await done;
  expect(claims).toEqual([
    { after: undefined, brought: [1, 2] },
    { after: 2, brought: [3, 4] },
    { after: 4, brought: [5] },
    { after: undefined, brought: [] },
  ]);
});

test('what turns up in front of where the claims have come is claimed, too', async () => {
  const { claimer, stored, claims, accepted, until } = setup([10, 20, 30, 40, 50], 2);
  const done = until(() => {
    if (claims.length === 1) stored.unshift(5);
    return accepted.length === 6;
  });
  claimer.poke([queue]);
  await done;
  expect(accepted).toEqual([10, 20, 30, 40, 50, 5]);
});
