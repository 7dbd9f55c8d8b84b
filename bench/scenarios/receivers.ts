// Receivers that take their time, and one that never answers beside 99 that do.
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { inTurn, type Rate } from '../support/in-turn.ts';
import { TENANTS } from '../support/payload.ts';
import { ADMIN_KEY, startChild, startProduct } from '../support/processes.ts';
import { batchRate } from '../support/run-load.ts';
import { makeTenants } from '../support/setup.ts';
import { WARM_UP_S } from './end-to-end.ts';
import type { Scenario } from './scenario.ts';

const DELAYS_MS = [0, 20, 100];

export const receivers: Scenario = {
  name: 'receivers',
  about: 'deliveries per second to receivers that answer after 0, 20 and 100 ms, fan-out 1, 100 tenants',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const sides = new Map<string, () => Promise<number>>();
    for (const delayMs of DELAYS_MS) {
      const sink = stack.use(await startChild('../support/sink.ts', [`--delay=${delayMs}`]));
      const product = stack.use(await startProduct(serverUrl));
      await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
      const rate = batchRate(product, sink);
      await rate(WARM_UP_S);
      sides.set(`${delayMs} ms /s`, () => rate(seconds));
    }
    const owned = stack.move();
    return {
      async product() {
        const figures: Record<string, number> = {};
        for (const [name, measure] of sides) figures[name] = await measure();
        return { figures };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};

/**
 * Two services of each kind, in half of which a tenant has an endpoint that hangs: two that are equal differ by as much as is asked
 * here, for as long as they live.
 */
export const oneHangs: Scenario = {
  name: 'one-hangs',
  about: 'deliveries per second to the others while one endpoint of 100 never answers, beside none',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const side = async (hangs: boolean): Promise<Rate> => {
      const sink = stack.use(await startChild('../support/sink.ts', []));
      const product = stack.use(await startProduct(serverUrl));
      const url = `http://127.0.0.1:${sink.firstLine}/`;
      // Each event goes to its tenant's receiver, which counts; on one side, one tenant has a second that hangs.
      await makeTenants(product.httpPort, url);
      if (hangs) {
        const subscriptions = jsonClient(SubscriptionService, product.httpPort, ADMIN_KEY);
        const subscription = { url: `${url}hang`, eventTypes: ['order.*'] };
        await subscriptions.createSubscription({ tenantId: TENANTS[0]!, subscription });
      }
      const rate = batchRate(product, sink);
      await rate(WARM_UP_S);
      return () => rate(seconds);
    };
    const pairs = [
      { beside: await side(true), without: await side(false) },
      { beside: await side(true), without: await side(false) },
    ];
    let round = 0;
    const owned = stack.move();
    return {
      async product() {
        const rates = { beside: 0, without: 0 };
        // There and back again: what the machine does meanwhile is not one side's.
        for (const [i, { beside, without }] of pairs.entries()) {
          const [hanging, none] = await inTurn(round + i, beside, without);
          rates.beside += hanging / pairs.length;
          rates.without += none / pairs.length;
        }
        round++;
        const { beside, without } = rates;
        return { figures: { 'beside /s': beside, 'without /s': without, ratio: beside / without } };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
