// A load in a process of its own: publishes as fast as it is answered, for some seconds, then prints what it did and the CPU
// seconds that it took. The requests are encoded once and the clients are raw sockets: they cost a fraction of the server.
// With a sink's port, no more than some events × deliveries are on their way at once, and the clock stops when all have
// arrived.
//   node bench/load.ts <batch|stream|unary|json> <port> --seconds=5 --callers=8 --size=100 (events a call)
//     --sink=port --fan-out=1 (deliveries an event) --tenants=100 --types=1 --data=0 (with json: KiB of `data`)
import { parseArgs } from 'node:util';
import { create, toBinary } from '@bufbuild/protobuf';
import {
  PublishBatchRequestSchema,
  PublishRequestSchema,
  PublishStreamRequestSchema,
} from '../gen/dispatch/v1/publish_service_pb.ts';
import { BODY, TENANTS } from './support/payload.ts';
import { ADMIN_KEY, askSink } from './support/processes.ts';
import { callHeaders, grpcMessage, RawGrpc } from './support/raw-grpc.ts';
import { rawConnection, rawPost } from './support/raw-http.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '5' },
    callers: { type: 'string', default: '8' },
    size: { type: 'string', default: '100' },
    sink: { type: 'string', default: '' },
    'fan-out': { type: 'string', default: '1' },
    tenants: { type: 'string', default: '100' },
    types: { type: 'string', default: '1' },
    data: { type: 'string', default: '0' },
  },
});
const [kind = 'batch', port = 7481] = [positionals[0], Number(positionals[1])];
const seconds = Number(values.seconds);
const callers = Number(values.callers);
const size = Number(values.size);
const fanOut = Number(values['fan-out']);
const tenants = TENANTS.slice(0, Number(values.tenants));
const dataKib = Number(values.data);
const typeCount = Number(values.types);

const typeAt = (n: number) => (typeCount === 1 ? 'order.created' : `order.kind-${n % typeCount}`);
const eventFor = (tenantId: string, n = 0) => ({
  tenantId,
  type: typeAt(n),
  body: { case: 'payload' as const, value: BODY },
});
const tenantAt = (n: number) => tenants[n % tenants.length]!;
const authorization = `Bearer ${ADMIN_KEY}`;
const headersOf = (method: string) => callHeaders(`/dispatch.v1.PublishService/${method}`, authorization);

/** Publishes `size` events (1, for the unary ones), once more at each call. */
type Caller = {
  readonly eventsPerCall: number;
  /** The `n`th call, by one of the callers. */
  readonly call: (n: number, caller: number) => Promise<void>;
};

/** A few connections, as a few callers would have: 64 calls at once on each, of the 100 that a server may take. */
const connectionCount = Math.max(4, Math.ceil(callers / 64));
const connections = () => Promise.all(Array.from({ length: connectionCount }, () => RawGrpc.connect(port)));

async function batch(): Promise<Caller> {
  const bodies = Array.from({ length: 32 }, (_, n) => {
    const events = Array.from({ length: size }, (_, i) => eventFor(tenantAt(n * 37 + i * 13), n * 7 + i));
    const message = create(PublishBatchRequestSchema, { events });
    return grpcMessage(toBinary(PublishBatchRequestSchema, message));
  });
  const all = await connections();
  const headers = headersOf('PublishBatch');
  return {
    eventsPerCall: size,
    call: (n, caller) => all[caller % all.length]!.unary(headers, bodies[n % bodies.length]!),
  };
}

async function unary(): Promise<Caller> {
  const bodies = tenants.map((tenantId) => {
    const message = create(PublishRequestSchema, { tenantId, event: eventFor(tenantId) });
    return grpcMessage(toBinary(PublishRequestSchema, message));
  });
  const all = await connections();
  const headers = headersOf('Publish');
  return {
    eventsPerCall: 1,
    call: (n, caller) => all[caller % all.length]!.unary(headers, bodies[n % bodies.length]!),
  };
}

/** Streams that stay open, one for each of the concurrent callers; a call is a run of messages and their acks. */
async function stream(): Promise<Caller> {
  const runs = tenants.map((_, n) =>
    Buffer.concat(
      Array.from({ length: size }, (_, i) => {
        const event = eventFor(tenantAt(n * 37 + i * 13), n * 7 + i);
        const message = create(PublishStreamRequestSchema, { sequence: BigInt(i), event });
        return grpcMessage(toBinary(PublishStreamRequestSchema, message));
      }),
    ),
  );
  const headers = headersOf('PublishStream');
  const streams = await Promise.all(
    Array.from({ length: callers }, async () => {
      const connection = await RawGrpc.connect(port);
      const waiting: { left: number; readonly done: () => void }[] = [];
      const onAcks = (count: number) => {
        let acks = count;
        while (acks > 0) {
          const first = waiting[0]!;
          const used = Math.min(acks, first.left);
          acks -= used;
          first.left -= used;
          if (first.left === 0) waiting.shift()!.done();
        }
      };
      const open = connection.stream(headers, onAcks, () => {
        throw new Error('the server ended a stream');
      });
      return (bytes: Buffer) =>
        new Promise<void>((done) => {
          waiting.push({ left: size, done });
          open.send(bytes, false);
        });
    }),
  );
  return { eventsPerCall: size, call: (n, caller) => streams[caller]!(runs[n % runs.length]!) };
}

/** As many of the usual bodies in one, a KiB for two. */
const dataOf = (kib: number) => ({
  orders: Array.from({ length: kib * 2 }, () => JSON.parse(BODY.toString())),
});

async function json(): Promise<Caller> {
  const headers = { authorization, 'content-type': 'application/json' };
  const requests = tenants.map((tenantId) => {
    const content = dataKib === 0 ? { payload: BODY.toString('base64') } : { data: dataOf(dataKib) };
    const body = { tenantId, event: { type: 'order.created', ...content } };
    return rawPost('/dispatch.v1.PublishService/Publish', headers, Buffer.from(JSON.stringify(body)));
  });
  const posts = await Promise.all(Array.from({ length: callers }, () => rawConnection(port)));
  return {
    eventsPerCall: 1,
    call: (n, caller) => posts[caller]!(requests[n % requests.length]!),
  };
}

const kinds: Readonly<Record<string, () => Promise<Caller>>> = { batch, stream, unary, json };
const open = kinds[kind];
if (open === undefined) throw new Error(`no load ${kind}: ${Object.keys(kinds).join(', ')}`);
const { call, eventsPerCall } = await open();

const countOf = async () => Number(await askSink(Number(values.sink), 'count'));
const OUTSTANDING = 3_000;
const before = values.sink === '' ? 0 : await countOf();
let arrived = 0;
const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

const cpuBefore = process.cpuUsage();
const startedAt = performance.now();
const until = startedAt + seconds * 1000;
let calls = 0;
const deliveries = () => calls * eventsPerCall * fanOut;

async function publish(caller: number): Promise<void> {
  while (performance.now() < until) {
    if (values.sink !== '' && deliveries() - arrived > OUTSTANDING) await pause(1);
    else await call(calls++, caller);
  }
}

async function watchSink(): Promise<void> {
  while (performance.now() < until || arrived < deliveries()) {
    arrived = (await countOf()) - before;
    await pause(20);
  }
}

const publishers = Array.from({ length: callers }, (_, caller) => publish(caller));
await Promise.all(values.sink === '' ? publishers : [...publishers, watchSink()]);
const elapsed = (performance.now() - startedAt) / 1000;
const { user, system } = process.cpuUsage(cpuBefore);
const events = calls * eventsPerCall;
const cpuSeconds = (user + system) / 1e6;
process.stdout.write(`${JSON.stringify({ events, perSecond: events / elapsed, cpuSeconds })}\n`);
process.exit(0);
