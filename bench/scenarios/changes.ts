// Quiet tenants beside one with 10,000 subscriptions, of which one is changed twice a second: its next publish waits until
// all of them have been read anew, and nobody else's does.
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { ADMIN_KEY, startChild, startProduct } from '../support/processes.ts';
import { QUIET, startQuiet } from '../support/quiet.ts';
import type { Scenario } from './scenario.ts';

const SUBSCRIPTIONS = 10_000;
const EVERY_MS = 500;
const LARGE = 'large';

const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

export const changes: Scenario = {
  name: 'changes',
  about: `${QUIET} quiet tenants, ms, beside one with ${SUBSCRIPTIONS} subscriptions that change; and its first publish after a change`,
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const quota = { publishPerSecond: 0, maxSubscriptions: SUBSCRIPTIONS };
    const product = stack.use(
      await startProduct(serverUrl, { DISPATCH_DEFAULT_QUOTA: JSON.stringify(quota) }),
    );
    const quiet = stack.use(await startQuiet(product));
    const sink = stack.use(await startChild('../support/sink.ts', []));
    const url = `http://127.0.0.1:${sink.firstLine}/`;
    const subscriptions = jsonClient(SubscriptionService, product.httpPort, ADMIN_KEY);
    const publish = jsonClient(PublishService, product.httpPort, ADMIN_KEY);
    await jsonClient(TenantService, product.httpPort, ADMIN_KEY).createTenant({
      tenant: { tenantId: LARGE },
    });
    const make = async (i: number) => {
      const subscription = { url, eventTypes: [`order.kind-${i}`] };
      const made = await subscriptions.createSubscription({ tenantId: LARGE, subscription });
      return made.subscription!.subscriptionId;
    };
    let subscriptionId = '';
    for (let i = 0; i < SUBSCRIPTIONS; i += 10) {
      [subscriptionId = ''] = await Promise.all(Array.from({ length: 10 }, (_, n) => make(i + n)));
    }
    const event = { type: 'order.kind-1', body: { case: 'data' as const, value: {} } };
    /** Ms from a change to the answer of the publish that comes right after it. */
    const change = async (n: number): Promise<number> => {
      const subscription = { subscriptionId, description: `change ${n}` };
      await subscriptions.updateSubscription({
        tenantId: LARGE,
        subscription,
        updateMask: { paths: ['description'] },
      });
      const changedAt = performance.now();
      await publish.publish({ tenantId: LARGE, event });
      return performance.now() - changedAt;
    };
    const owned = stack.move();
    return {
      product: async () => {
        const alone = await quiet.measure(seconds);
        const own: number[] = [];
        let isOver = false;
        const changing = (async () => {
          while (!isOver) {
            own.push(await change(own.length));
            await pause(EVERY_MS);
          }
        })();
        const beside = await quiet.measure(seconds);
        isOver = true;
        await changing;
        own.sort((a, b) => a - b);
        return {
          figures: {
            'alone p50': alone.p50,
            'alone p99': alone.p99,
            'beside p50': beside.p50,
            'beside p99': beside.p99,
            'its own publish': own[Math.floor(own.length / 2)]!,
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
