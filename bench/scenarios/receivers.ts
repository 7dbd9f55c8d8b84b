// Receivers that take their time, and one that never answers beside 99 that do.
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { inTurn } from '../support/in-turn.ts';
import { TENANTS } from '../support/payload.ts';
import { ADMIN_KEY, startChild, startProduct } from '../support/processes.ts';
import { batchRate } from '../support/run-load.ts';
import { makeTenants } from '../support/setup.ts';
import { WARM_UP_S } from './end-to-end.ts';
import type { Scenario } from './scenario.ts';

const DELAYS_MS = [0, 20, 100];
const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

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

/** Short, so that each measurement sees all of it: attempts that hang, that time out, that are tried again, and the breaker. */
const HANG_TIMEOUT_S = 2;

/** One service, with the endpoint that hangs and without: two equal services differ by as much as is asked here. */
export const oneHangs: Scenario = {
  name: 'one-hangs',
  about: 'deliveries per second to the others while one endpoint of 100 never answers, beside none',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const sink = stack.use(await startChild('../support/sink.ts', []));
    const product = stack.use(await startProduct(serverUrl));
    const url = `http://127.0.0.1:${sink.firstLine}/`;
    // Each event goes to its tenant's receiver, which counts; one tenant has now and then a second that hangs.
    await makeTenants(product.httpPort, url);
    const tenantId = TENANTS[0]!;
    const subscriptions = jsonClient(SubscriptionService, product.httpPort, ADMIN_KEY);
    const rate = batchRate(product, sink);
    await rate(WARM_UP_S);
    const without = () => rate(seconds);
    const beside = async () => {
      const attemptTimeout = { seconds: BigInt(HANG_TIMEOUT_S) };
      const subscription = { url: `${url}hang`, eventTypes: ['order.*'], attemptTimeout };
      const created = await subscriptions.createSubscription({ tenantId, subscription });
      const measured = await rate(seconds);
      const { subscriptionId } = created.subscription!;
      await subscriptions.deleteSubscription({ tenantId, subscriptionId });
      await pause((HANG_TIMEOUT_S + 1) * 1_000); // what hangs ends: it is not the next measurement's
      return measured;
    };
    let round = 0;
    const owned = stack.move();
    return {
      async product() {
        const rates = { beside: 0, without: 0 };
        // There and back again: what the machine does meanwhile is not one side's.
        for (const turn of [round, round + 1]) {
          const [hanging, none] = await inTurn(turn, beside, without);
          rates.beside += hanging / 2;
          rates.without += none / 2;
        }
        round++;
        return {
          figures: {
            'beside /s': rates.beside,
            'without /s': rates.without,
            ratio: rates.beside / rates.without,
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
