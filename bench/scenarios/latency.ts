// Latency from just before Publish to the receiver having the whole request: of a service that is otherwise idle, and at
// 1,000 events a second. The client is a raw socket: a library's own milliseconds would be measured with the service's.
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { PublishRequestSchema, PublishResponseSchema } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { machineMs } from '../support/clock.ts';
import { latencies, percentiles } from '../support/latency.ts';
import { BODY, TENANTS } from '../support/payload.ts';
import { ADMIN_KEY, startChild, startProduct } from '../support/processes.ts';
import { callHeaders, grpcMessage, RawGrpc } from '../support/raw-grpc.ts';
import { makeTenants } from '../support/setup.ts';
import { WARM_UP_S } from './end-to-end.ts';
import type { Scenario } from './scenario.ts';

const GAP_MS = 10;
const PER_SECOND = 1_000;
const HEADERS = callHeaders('/dispatch.v1.PublishService/Publish', `Bearer ${ADMIN_KEY}`);
const MESSAGES = TENANTS.map((tenantId) => {
  const event = { type: 'order.created', body: { case: 'payload' as const, value: BODY } };
  return grpcMessage(toBinary(PublishRequestSchema, create(PublishRequestSchema, { tenantId, event })));
});

type Measure = (
  connections: readonly RawGrpc[],
  sinkPort: number,
  seconds: number,
) => Promise<Record<string, number>>;

function latency(name: string, about: string, measure: Measure): Scenario {
  return {
    name,
    about,
    async start({ serverUrl, seconds }) {
      await using stack = new AsyncDisposableStack();
      const sink = stack.use(await startChild('../support/sink.ts', ['--times']));
      const product = stack.use(await startProduct(serverUrl));
      await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
      const connections = await Promise.all([1, 2, 3, 4].map(() => RawGrpc.connect(product.grpcPort)));
      stack.defer(() => connections.forEach((c) => void c.close()));
      await atRate(connections, Number(sink.firstLine), WARM_UP_S);
      const owned = stack.move();
      return {
        product: async () => ({ figures: await measure(connections, Number(sink.firstLine), seconds) }),
        floor: undefined,
        [Symbol.asyncDispose]: () => owned.disposeAsync(),
      };
    },
  };
}

/** Publishes one event; says when it began, in ms of machineMs(), and its id. */
async function publishOne(
  connection: RawGrpc,
  n: number,
): Promise<{ readonly at: number; readonly id: string }> {
  const at = machineMs();
  const answer = await connection.ask(HEADERS, MESSAGES[n % MESSAGES.length]!);
  return { at, id: fromBinary(PublishResponseSchema, answer).eventId };
}

const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

/** Publishes an event each 10 ms, to one tenant after the other; p50 and p99 in ms until the sink had the request. */
export const oneByOne: Measure = async (connections, sinkPort, seconds) => {
  const sentAt = new Map<string, number>();
  const count = Math.max(100, Math.floor((seconds * 1000) / GAP_MS));
  for (let n = 0; n < count; n++) {
    const { at, id } = await publishOne(connections[0]!, n);
    sentAt.set(id, at);
    await pause(GAP_MS);
  }
  return percentiles(await latencies(sinkPort, sentAt));
};

/** Publishes at a rate that does not wait for answers. */
const atRate: Measure = async (connections, sinkPort, seconds) => {
  const sentAt = new Map<string, number>();
  const open: Promise<unknown>[] = [];
  const startedAt = performance.now();
  for (let n = 0; n < seconds * PER_SECOND; ) {
    const due = Math.min(seconds * PER_SECOND, ((performance.now() - startedAt) * PER_SECOND) / 1_000);
    for (; n < due; n++) {
      const asked = publishOne(connections[n % connections.length]!, n);
      open.push(asked.then(({ at, id }) => sentAt.set(id, at)));
    }
    await pause(1);
  }
  await Promise.all(open);
  return percentiles(await latencies(sinkPort, sentAt));
};

export const idleLatency = latency(
  'idle-latency',
  `publish → receiver, one event each ${GAP_MS} ms, ms`,
  oneByOne,
);
export const busyLatency = latency(
  'latency-1000',
  `publish → receiver, ${PER_SECOND} events a second however long the answers take, ms`,
  atRate,
);
