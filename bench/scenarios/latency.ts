// Latency of a service that is otherwise idle: from just before Publish to the receiver having the whole request.
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { type GrpcCaller, grpcCaller } from '../../test/support/clients.ts';
import { latencies, percentiles } from '../support/latency.ts';
import { BODY, TENANTS } from '../support/payload.ts';
import { ADMIN_KEY, startChild, startProduct } from '../support/processes.ts';
import { makeTenants } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

const GAP_MS = 10;

export const idleLatency: Scenario = {
  name: 'idle-latency',
  about: `publish → receiver, one event each ${GAP_MS} ms, ms`,
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const sink = stack.use(await startChild('../support/sink.ts', ['--times']));
    const product = stack.use(await startProduct(serverUrl));
    await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
    const caller = grpcCaller(product.grpcPort, ADMIN_KEY);
    stack.defer(caller.close);
    const owned = stack.move();
    return {
      product: async () => ({ figures: await oneByOne(caller, Number(sink.firstLine), seconds) }),
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};

/** Publishes an event each 10 ms, to one tenant after the other; p50 and p99 in ms until the sink had the request. */
export async function oneByOne(
  caller: GrpcCaller,
  sinkPort: number,
  seconds: number,
): Promise<Record<string, number>> {
  const sentAt = new Map<string, number>();
  const count = Math.max(100, Math.floor((seconds * 1000) / GAP_MS));
  for (let i = 0; i < count; i++) {
    const at = performance.timeOrigin + performance.now();
    const event = { type: 'order.created', body: { case: 'payload' as const, value: BODY } };
    const tenantId = TENANTS[i % TENANTS.length]!;
    const { eventId } = await caller.call(PublishService.method.publish, { tenantId, event });
    sentAt.set(eventId, at);
    await new Promise((done) => setTimeout(done, GAP_MS));
  }
  return percentiles(await latencies(sinkPort, sentAt));
}
