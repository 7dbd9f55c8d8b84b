// A load in a process of its own: publishes as fast as it is answered, for some seconds, then prints what it did.
// The requests are serialised once: the client costs as little as a grpc-js or HTTP client can.
// With a sink's port, no more than 3,000 events are on their way at once, and the clock stops when all have arrived.
//   node bench/load.ts <batch|unary|json> <port> <seconds> <concurrency> <batch size> [sink port]
import { Agent, request as httpRequest } from 'node:http';
import { create, toBinary } from '@bufbuild/protobuf';
import { Client, credentials, Metadata } from '@grpc/grpc-js';
import { PublishBatchRequestSchema, PublishRequestSchema } from '../gen/dispatch/v1/publish_service_pb.ts';
import { BODY, TENANTS } from './support/payload.ts';
import { ADMIN_KEY, askSink } from './support/processes.ts';

const [kind = 'batch', port = '7481', seconds = '5', concurrency = '8', batchSize = '100', sinkPort = ''] =
  process.argv.slice(2);
const size = Number(batchSize);

const eventFor = (tenantId: string) => ({
  tenantId,
  type: 'order.created',
  body: { case: 'payload' as const, value: BODY },
});

/** Serialised batches, each over many tenants. */
const batches = Array.from({ length: 32 }, (_, n) => {
  const events = Array.from({ length: size }, (_, i) =>
    eventFor(TENANTS[(n * 37 + i * 13) % TENANTS.length]!),
  );
  return Buffer.from(toBinary(PublishBatchRequestSchema, create(PublishBatchRequestSchema, { events })));
});
const singles = TENANTS.map((tenantId) => {
  const message = create(PublishRequestSchema, { tenantId, event: eventFor(tenantId) });
  return Buffer.from(toBinary(PublishRequestSchema, message));
});
const jsons = TENANTS.map((tenantId) =>
  Buffer.from(
    JSON.stringify({ tenantId, event: { type: 'order.created', payload: BODY.toString('base64') } }),
  ),
);

const metadata = new Metadata();
metadata.set('authorization', `Bearer ${ADMIN_KEY}`);
// A few connections, as a few callers would have.
const clients = Array.from(
  { length: 4 },
  () =>
    new Client(`127.0.0.1:${port}`, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 }),
);
const agent = new Agent({ keepAlive: true, maxSockets: 256 });
const same = (bytes: Buffer) => bytes;

function grpc(method: string, body: Buffer, n: number): Promise<void> {
  return new Promise((done, fail) => {
    clients[n % clients.length]!.makeUnaryRequest(
      `/dispatch.v1.PublishService/${method}`,
      same,
      same,
      body,
      metadata,
      (error) => (error === null ? done() : fail(error)),
    );
  });
}

function json(body: Buffer): Promise<void> {
  return new Promise((done, fail) => {
    const headers = {
      authorization: `Bearer ${ADMIN_KEY}`,
      'content-type': 'application/json',
      'content-length': body.length,
    };
    const path = '/dispatch.v1.PublishService/Publish';
    const call = httpRequest(
      { agent, host: '127.0.0.1', port: Number(port), method: 'POST', path, headers },
      (response) => {
        response.resume();
        response.on('end', () =>
          response.statusCode === 200 ? done() : fail(new Error(`HTTP ${response.statusCode}`)),
        );
      },
    );
    call.on('error', fail);
    call.end(body);
  });
}

const one: Record<string, (n: number) => Promise<void>> = {
  batch: (n) => grpc('PublishBatch', batches[n % batches.length]!, n),
  unary: (n) => grpc('Publish', singles[n % singles.length]!, n),
  json: (n) => json(jsons[n % jsons.length]!),
};
const call = one[kind];
if (call === undefined) throw new Error(`no load ${kind}`);

const perCall = kind === 'batch' ? size : 1;
const OUTSTANDING = 3_000;
const before = sinkPort === '' ? 0 : Number(await askSink(Number(sinkPort), 'count'));
let arrived = 0;
const poll = async () => {
  arrived = Number(await askSink(Number(sinkPort), 'count')) - before;
};
const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

const startedAt = performance.now();
const until = startedAt + Number(seconds) * 1000;
let calls = 0;
await Promise.all(
  Array.from({ length: Number(concurrency) }, async () => {
    while (performance.now() < until) {
      if (sinkPort !== '' && calls * perCall - arrived > OUTSTANDING) await pause(1);
      else await call(calls++);
    }
  }).concat(
    sinkPort === ''
      ? []
      : (async () => {
          while (performance.now() < until || arrived < calls * perCall) {
            await poll();
            await pause(5);
          }
        })(),
  ),
);
const elapsed = (performance.now() - startedAt) / 1000;
process.stdout.write(
  `${JSON.stringify({ events: calls * perCall, perSecond: (calls * perCall) / elapsed })}\n`,
);
process.exit(0);
