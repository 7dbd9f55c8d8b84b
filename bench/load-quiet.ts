// Quiet tenants: each publishes one event a second over gRPC, evenly spread, for some seconds; prints the latencies from
// just before Publish to the receiver having the whole request.
//   node bench/load-quiet.ts <grpc port> <seconds> <sink port> <tenants>
import { PublishService } from '../gen/dispatch/v1/publish_service_pb.ts';
import { grpcCaller } from '../test/support/clients.ts';
import { machineMs } from './support/clock.ts';
import { latencies, percentiles } from './support/latency.ts';
import { BODY } from './support/payload.ts';
import { ADMIN_KEY } from './support/processes.ts';

/** Connecting and compiling are the caller's, and not what is measured: what it publishes first does not count. */
const WARM_UP_S = 2;

const [port = '7481', seconds = '5', sinkPort = '', tenants = '200'] = process.argv.slice(2);
const callers = Array.from({ length: 4 }, () => grpcCaller(Number(port), ADMIN_KEY));
const count = Number(tenants) * (WARM_UP_S + Number(seconds));
const gapMs = 1000 / Number(tenants);
const sentAt = new Map<string, number>();
const calls: Promise<void>[] = [];

const startedAt = performance.now();
for (let i = 0; i < count; i++) {
  const waitMs = startedAt + i * gapMs - performance.now();
  if (waitMs > 0) await new Promise((done) => setTimeout(done, waitMs));
  const at = machineMs();
  const event = { type: 'order.created', body: { case: 'payload' as const, value: BODY } };
  const request = { tenantId: `quiet-${i % Number(tenants)}`, event };
  const call = callers[i % callers.length]!.call(PublishService.method.publish, request);
  if (i < Number(tenants) * WARM_UP_S) calls.push(call.then(() => {}));
  else calls.push(call.then(({ eventId }) => void sentAt.set(eventId, at)));
}
await Promise.all(calls);
const found = await latencies(Number(sinkPort), sentAt);
process.stdout.write(`${JSON.stringify(percentiles(found))}\n`);
process.exit(0);
