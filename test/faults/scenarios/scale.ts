// Many subscriptions, in one tenant and over many: a publish that matches ten of them takes no longer for the others, and an
// event for a thousand endpoints reaches the last of them within a second.
import { setTimeout as wait } from 'node:timers/promises';
import { hashOf } from '../../support/ledger.ts';
import type { Clients } from '../../support/rpc-clients.ts';
import { p99Figures, startBareWrites } from '../bare-writes.ts';
import { quantile } from '../figures.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, type World } from '../world.ts';

const MATCHES = 10;
const WIDE = 1_000;
const PER_SECOND = 50;
const ROUNDS = 5;
/** Of a 99th percentile. */
const CALLS = { most: 1_000, least: 500 };

export const scale: Scenario = {
  name: 'scale',
  about: '10,000 subscriptions in one tenant and over 1,000 tenants; events for 10 and for 1,000 of them',
  promises: ['P2', 'P7'],
  seconds: 120,
  isTimed: true,
  async run(world) {
    const { url } = await world.database();
    const endpoint = await startEndpoint(world);
    const dispatch = await world.dispatch(url, 'api,worker,maintenance', {
      DISPATCH_DEFAULT_QUOTA: '{"publishPerSecond": 0, "maxSubscriptions": 10000}',
    });
    const admin = adminOf(dispatch);
    const subscriptions = world.sized(10_000, 1_000);
    const tenants = Array.from({ length: subscriptions / MATCHES }, (_, i) => `small-${i}`);

    world.say(`${subscriptions} subscriptions in one tenant`);
    await admin.tenants.createTenant({ tenant: { tenantId: 'large' } });
    const kinds = subscriptions / MATCHES;
    const calls = world.sized(CALLS.most, CALLS.least);
    await many(subscriptions, (i) => subscribeTo(admin, 'large', endpoint.url, `kind-${i % kinds}`));
    world.say(`${subscriptions} over ${tenants.length} tenants`);
    await many(tenants.length, async (i) => {
      await admin.tenants.createTenant({ tenant: { tenantId: tenants[i]! } });
      for (let k = 0; k < MATCHES; k++) await subscribeTo(admin, tenants[i]!, endpoint.url, 'kind-0');
    });
    await admin.tenants.createTenant({ tenant: { tenantId: 'wide' } });
    await many(WIDE, () => subscribeTo(admin, 'wide', endpoint.url, 'kind-0'));

    // An instance reads a tenant's subscriptions when it needs them for the first time.
    const coldAt = performance.now();
    await publishOne(world, admin, 'large', 'kind-0');
    const coldMs = performance.now() - coldAt;
    const besideOne = await startBareWrites(url, { asCalled: true });
    const inOne = await publishSteadily(calls, (i) => publishOne(world, admin, 'large', `kind-${i % kinds}`));
    const bareBesideOne = await besideOne.stop();
    const besideMany = await startBareWrites(url, { asCalled: true });
    const overMany = await publishSteadily(calls, (i) =>
      publishOne(world, admin, tenants[i % tenants.length]!, 'kind-0'),
    );
    const bareBesideMany = await besideMany.stop();
    const spreads: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const startedAt = performance.now();
      const before = world.ledger.arrivals.length;
      await publishOne(world, admin, 'wide', 'kind-0');
      while (world.ledger.arrivals.length < before + WIDE) await wait(1);
      spreads.push(performance.now() - startedAt);
    }
    const bound = { atMost: 50, isFullSize: world.scale === 1 };
    return {
      verdict: await world.judge(url),
      figures: [
        { name: 'subscriptions', value: subscriptions },
        { name: 'first publish in one tenant, ms', value: coldMs },
        ...p99Figures('publish in one tenant', quantile(inOne, 0.99), bareBesideOne, bound),
        ...p99Figures(
          `publish over ${tenants.length} tenants`,
          quantile(overMany, 0.99),
          bareBesideMany,
          bound,
        ),
        { name: `to the last of ${WIDE}, ms`, value: Math.max(...spreads), atMost: 1_000 },
      ],
    };
  },
};

/** Calls `make` for 0 to `count` - 1, some at once. */
async function many(count: number, make: (i: number) => Promise<unknown>): Promise<void> {
  let next = 0;
  const lane = async () => {
    while (next < count) await make(next++);
  };
  await Promise.all(Array.from({ length: 16 }, lane));
}

const subscribeTo = (admin: Clients, tenantId: string, url: string, eventType: string) =>
  admin.subscriptions.createSubscription({ tenantId, subscription: { url, eventTypes: [eventType] } });

async function publishOne(world: World, admin: Clients, tenantId: string, type: string): Promise<void> {
  const value = Buffer.from(`{"n":${world.ledger.acked.size}}`);
  const event = { type, body: { case: 'payload' as const, value } };
  const { eventId, deliveryCount } = await admin.publish.publish({ tenantId, event });
  world.ledger.acked.set(eventId, { bodyHash: hashOf(value), deliveryCount });
  world.timeline.acked(1);
}

/** Calls at an even rate, and how long each took, in ms. */
async function publishSteadily(count: number, call: (i: number) => Promise<void>): Promise<number[]> {
  const startedAt = performance.now();
  const took: number[] = [];
  const under: Promise<void>[] = [];
  for (let i = 0; i < count; i++) {
    const early = startedAt + (i * 1000) / PER_SECOND - performance.now();
    if (early > 0) await wait(early);
    const at = performance.now();
    under.push(call(i).then(() => void took.push(performance.now() - at)));
  }
  await Promise.all(under);
  return took;
}
