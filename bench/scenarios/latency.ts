// Latency from just before Publish to the receiver having the whole request: of a service that is otherwise idle, and at
// 1,000 events a second.
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import {
  PublishRequestSchema,
  PublishResponseSchema,
  PublishService,
} from '../../gen/dispatch/v1/publish_service_pb.ts';
import { type GrpcCaller, grpcCaller } from '../../test/support/clients.ts';
import { latencies, percentiles } from '../support/latency.ts';
import { BODY, TENANTS } from '../support/payload.ts';
import { ADMIN_KEY, startChild, startProduct } from '../support/processes.ts';
import { callHeaders, grpcMessage, RawGrpc } from '../support/raw-grpc.ts';
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

const PER_SECOND = 1_000;

export const busyLatency: Scenario = {
  name: 'latency-1000',
  about: `publish → receiver, ${PER_SECOND} events a second, however long the answers take, ms`,
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const sink = stack.use(await startChild('../support/sink.ts', ['--times']));
    const product = stack.use(await startProduct(serverUrl));
    await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
    const connections = await Promise.all([1, 2, 3, 4].map(() => RawGrpc.connect(product.grpcPort)));
    stack.defer(() => connections.forEach((c) => void c.close()));
    const owned = stack.move();
    return {
      product: async () => ({ figures: await atRate(connections, Number(sink.firstLine), seconds) }),
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};

/** Publishes at a rate that does not wait for answers. */
async function atRate(
  connections: readonly RawGrpc[],
  sinkPort: number,
  seconds: number,
): Promise<Record<string, number>> {
  const headers = callHeaders('/dispatch.v1.PublishService/Publish', `Bearer ${ADMIN_KEY}`);
  const messages = TENANTS.map((tenantId) => {
    const event = { type: 'order.created', body: { case: 'payload' as const, value: BODY } };
    return grpcMessage(toBinary(PublishRequestSchema, create(PublishRequestSchema, { tenantId, event })));
  });
  const sentAt = new Map<string, number>();
  const open: Promise<void>[] = [];
  const startedAt = performance.now();
  for (let n = 0; n < seconds * PER_SECOND; ) {
    const due = Math.min(seconds * PER_SECOND, ((performance.now() - startedAt) * PER_SECOND) / 1_000);
    for (; n < due; n++) {
      const at = performance.timeOrigin + performance.now();
      const asked = connections[n % connections.length]!.ask(headers, messages[n % messages.length]!);
      open.push(
        asked.then((answer) => void sentAt.set(fromBinary(PublishResponseSchema, answer).eventId, at)),
      );
    }
    await new Promise((done) => setTimeout(done, 1));
  }
  await Promise.all(open);
  return percentiles(await latencies(sinkPort, sentAt));
}
