// Latency of a service that is otherwise idle: from just before Publish to the receiver having the whole request.
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { grpcCaller } from '../../test/support/clients.ts';
import { BODY, TENANTS } from '../support/payload.ts';
import { ADMIN_KEY, askSink, startChild, startProduct } from '../support/processes.ts';
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
      product: async () => {
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
        return { figures: percentiles(await latencies(Number(sink.firstLine), sentAt)) };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};

async function latencies(sinkPort: number, sentAt: Map<string, number>): Promise<number[]> {
  const found: number[] = [];
  while (sentAt.size > 0) {
    for (const line of (await askSink(sinkPort, 'times')).split('\n')) {
      const [id = '', at] = line.split(' ');
      const sent = sentAt.get(id);
      if (sent === undefined) continue;
      sentAt.delete(id);
      found.push(Number(at) - sent);
    }
    await new Promise((done) => setTimeout(done, 20));
  }
  return found.sort((a, b) => a - b);
}

function percentiles(sorted: readonly number[]): Record<string, number> {
  const at = (share: number) =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
  return { p50: at(0.5), p99: at(0.99), max: at(1), count: sorted.length };
}
