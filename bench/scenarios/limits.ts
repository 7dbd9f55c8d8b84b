// What limits cost: end to end with every quota, rate limit, cap and breaker on and shared through Redis, beside the
// same with none. The limits are far above the load: nothing waits, so what is measured is the work of checking.
import { startRedis } from '../../test/support/redis.ts';
import { startChild, startProduct } from '../support/processes.ts';
import { publish } from '../support/run-load.ts';
import { makeTenants } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

const EVERYTHING = {
  publishPerSecond: 1_000_000,
  publishBurst: 1_000_000,
  eventsPerDay: 1e12,
  eventsPerMonth: 1e13,
  maxInFlight: 100_000,
  deliveriesPerSecond: 1_000_000,
  maxBacklog: 1e9,
};
const NOTHING = { publishPerSecond: 0, maxBacklog: 0 };

export const limits: Scenario = {
  name: 'limits',
  about:
    'end to end with every quota, rate limit, cap and breaker on, shared through Redis; floor: the same product with none',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const redis = stack.use(await startRedis());
    const side = async (quota: object, env: NodeJS.ProcessEnv, settings: object) => {
      const sink = stack.use(await startChild('../support/sink.ts', []));
      const product = stack.use(
        await startProduct(serverUrl, { ...env, DISPATCH_DEFAULT_QUOTA: JSON.stringify(quota) }),
      );
      await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`, settings);
      const load = { seconds, callers: 4, size: 200, sink: sink.firstLine };
      return () => publish({ kind: 'batch', port: product.grpcPort, ...load });
    };
    const on = { DISPATCH_REDIS_URL: redis.url };
    const product = await side(EVERYTHING, on, { maxPerSecond: 100_000, maxInFlight: 10_000 });
    const floor = await side(NOTHING, {}, {});
    const owned = stack.move();
    return { product, floor, [Symbol.asyncDispose]: () => owned.disposeAsync() };
  },
};
