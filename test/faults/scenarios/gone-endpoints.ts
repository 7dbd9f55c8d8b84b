// Endpoints that say 410 under a load over two workers: each is disabled at once, its queue is parked, its owner is told
// once, and nothing is sent any more until it is resumed.
import { setTimeout as wait } from 'node:timers/promises';
import { eventually } from '../../support/eventually.ts';
import { startReceiver } from '../../support/receiver.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const TENANTS = ['t0', 't1', 't2', 't3', 't4'];
/** Deliveries of each endpoint: too few for its breaker, which would open at 5 failures in a row. */
const PER_SECOND = 2;
/** What is under way when the first 410 comes, in any worker, is answered by then. */
const AT_ONCE_MS = 1_000;
/** Workers look at every queue each second: long enough to see that none is sent from. */
const PARKED_MS = 3_000;

export const goneEndpoints: Scenario = {
  name: 'gone-endpoints',
  about: '500 endpoints that say 410 while two workers deliver to them',
  promises: ['P2', 'P8'],
  seconds: 40,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    const owners = world.use(await startReceiver());
    const api = await world.dispatch(url, 'api');
    for (let i = 0; i < 2; i++) await world.dispatch(url, 'worker,maintenance');
    const admin = adminOf(api);
    const perTenant = world.sized(500 / TENANTS.length, 10);
    const places: { tenantId: string; subscriptionId: string }[] = [];
    for (const tenantId of TENANTS) {
      for (let i = 0; i < perTenant; i++) {
        const path = `${endpoint.url}/${tenantId}/${i}`;
        const delays = Array.from({ length: 20 }, () => ({ seconds: 1n }));
        const retryPolicy = { schedule: { case: 'list' as const, value: { delays } } };
        const eventTypes = ['order.*'];
        const subscriptionId = await subscribe(admin, tenantId, path, { retryPolicy, eventTypes });
        places.push({ tenantId, subscriptionId });
      }
      const eventTypes = ['dispatch.subscription.disabled'];
      await subscribe(admin, tenantId, owners.url, { eventTypes });
    }
    let isGone = false;
    /** When each path answered 410. */
    const refusedAtMs = new Map<string, number[]>();
    endpoint.answer = ({ path }) => {
      if (!isGone) return 204;
      refusedAtMs.set(path, [...(refusedAtMs.get(path) ?? []), performance.now()]);
      return 410;
    };
    const perSecond = PER_SECOND * TENANTS.length; // each of them goes to all endpoints of a tenant
    const producer = startProducer(world, {
      tenantIds: TENANTS,
      clients: () => [admin],
      perSecond,
      batch: 1,
    });
    while (world.ledger.arrivals.length < places.length * 2) await wait(10);
    world.timeline.fault('gone');
    isGone = true;
    await eventually(async () => {
      const { rows } = await owner.query<{ n: string }>(
        "SELECT count(*) AS n FROM subscriptions WHERE state = 'disabled'",
      );
      if (rows[0]!.n !== String(places.length))
        throw new Error(`${rows[0]!.n} of ${places.length} are disabled`);
    });
    await wait(PARKED_MS); // events go on being published meanwhile
    await producer.stop();
    const told = await eventually(() => {
      const ids = owners.received.map(({ body }) => subscriptionOf(body));
      if (ids.length < places.length) throw new Error(`${ids.length} of ${places.length} owners were told`);
      return ids;
    });
    const { rows: parked } = await owner.query<{ waiting: string; charged: string }>(
      `SELECT count(*) AS waiting, coalesce(sum(attempt_count), 0) AS charged FROM deliveries`,
    );
    const refusals = [...refusedAtMs.values()];
    const refused = refusals.reduce((sum, { length }) => sum + length, 0);
    isGone = false;
    world.timeline.fault('resumed');
    await Promise.all(places.map((place) => admin.subscriptions.resumeSubscription(place)));
    const verdict = await world.judge(url);
    return {
      verdict,
      figures: [
        { name: 'endpoints', value: places.length },
        { name: 'parked', value: Number(parked[0]!.waiting), atLeast: places.length },
        { name: 'answered 410', value: refused, atLeast: places.length },
        { name: 'charged beyond that', value: Number(parked[0]!.charged) - refused, atMost: 0 },
        { name: 'last after the first, ms', value: Math.max(...refusals.map(spanOf)), atMost: AT_ONCE_MS },
        { name: 'owners not told', value: places.length - new Set(told).size, atMost: 0 },
        { name: 'told again', value: told.length - new Set(told).size, atMost: 0 },
        { name: 'duplicates', value: verdict.duplicated, atMost: 0 },
      ],
    };
  },
};

const spanOf = (atMs: readonly number[]) => Math.max(...atMs) - Math.min(...atMs);

/** The subscription that an event of dispatch's own is about. */
function subscriptionOf(body: Buffer): string {
  const { subscriptionId } = JSON.parse(body.toString()) as { readonly subscriptionId?: unknown };
  if (typeof subscriptionId !== 'string') throw new Error(`it tells of no subscription: ${body}`);
  return subscriptionId;
}
