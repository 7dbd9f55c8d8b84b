// Quiet tenants: each publishes one event a second over gRPC, evenly spread, for some seconds; prints the latencies from
// just before Publish to the receiver having the whole request. The client is a raw socket: a library's own milliseconds would be
// measured with the service's.
//   node bench/load-quiet.ts <grpc port> <seconds> <sink port> <tenants>
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { PublishRequestSchema, PublishResponseSchema } from '../gen/dispatch/v1/publish_service_pb.ts';
import { machineMs } from './support/clock.ts';
import { latencies, percentiles } from './support/latency.ts';
import { BODY } from './support/payload.ts';
import { ADMIN_KEY } from './support/processes.ts';
import { callHeaders, grpcMessage, RawGrpc } from './support/raw-grpc.ts';

/** Connecting and compiling are the caller's, and not what is measured: what it publishes first does not count. */
const WARM_UP_S = 2;

const [port = '7481', seconds = '5', sinkPort = '', tenants = '200'] = process.argv.slice(2);
const HEADERS = callHeaders('/dispatch.v1.PublishService/Publish', `Bearer ${ADMIN_KEY}`);
const connections = await Promise.all([1, 2, 3, 4].map(() => RawGrpc.connect(Number(port))));
const event = { type: 'order.created', body: { case: 'payload' as const, value: BODY } };
const messages = Array.from({ length: Number(tenants) }, (_, i) => {
  const request = create(PublishRequestSchema, { tenantId: `quiet-${i}`, event });
  return grpcMessage(toBinary(PublishRequestSchema, request));
});
const count = Number(tenants) * (WARM_UP_S + Number(seconds));
const gapMs = 1000 / Number(tenants);
const sentAt = new Map<string, number>();
const calls: Promise<void>[] = [];

const startedAt = performance.now();
for (let i = 0; i < count; i++) {
  const waitMs = startedAt + i * gapMs - performance.now();
  if (waitMs > 0) await new Promise((done) => setTimeout(done, waitMs));
  const at = machineMs();
  const answer = connections[i % connections.length]!.ask(HEADERS, messages[i % messages.length]!);
  if (i < Number(tenants) * WARM_UP_S) calls.push(answer.then(() => {}));
  else
    calls.push(answer.then((bytes) => void sentAt.set(fromBinary(PublishResponseSchema, bytes).eventId, at)));
}
await Promise.all(calls);
const found = await latencies(Number(sinkPort), sentAt);
process.stdout.write(`${JSON.stringify(percentiles(found))}\n`);
process.exit(0);
