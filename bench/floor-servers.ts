// Floors that begin with a call: bare servers with the same requests and no product behind them.
//   echo-grpc     grpc-js, unary, answers at once
//   insert-grpc   grpc-js, a batch call into one multi-row insert of event + delivery
//   insert-stream grpc-js, a stream of events into multi-row inserts of what came while the last ones ran, an ack each
//   echo-json     connect-node, unary JSON, answers at once
// Prints its port.
import { randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { Server, ServerCredentials, type UntypedHandleCall } from '@grpc/grpc-js';
import pg from 'pg';
import {
  PublishBatchRequestSchema,
  PublishBatchResponseSchema,
  PublishRequestSchema,
  PublishResponseSchema,
  PublishResultSchema,
  PublishService,
  PublishStreamRequestSchema,
  PublishStreamResponseSchema,
} from '../gen/dispatch/v1/publish_service_pb.ts';
import { byteaArray, textArray, uuidArray } from './support/binary-arrays.ts';

const [kind, databaseUrl] = process.argv.slice(2);
const SCHEMA = `floor_${kind?.replace('-', '_')}`;

function uuidv7(): Buffer {
  const id = randomBytes(16);
  id.writeUIntBE(Date.now(), 0, 6);
  id[6] = (id[6]! & 0x0f) | 0x70;
  id[8] = (id[8]! & 0x3f) | 0x80;
  return id;
}

async function grpc(
  name: string,
  isStream: boolean,
  request: (b: Buffer) => unknown,
  respond: (v: never) => Buffer,
  handle: UntypedHandleCall,
) {
  const server = new Server({ 'grpc.max_receive_message_length': 16 * 1024 * 1024 });
  const definition = {
    path: `/dispatch.v1.PublishService/${name}`,
    requestStream: isStream,
    responseStream: isStream,
    requestSerialize: (value: Buffer) => value,
    requestDeserialize: request,
    responseSerialize: respond as (value: unknown) => Buffer,
    responseDeserialize: (bytes: Buffer) => bytes,
  };
  server.addService({ call: definition }, { call: handle });
  return new Promise<number>((done, fail) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
      error === null ? done(port) : fail(error),
    );
  });
}

type Input = {
  readonly tenantId: string;
  readonly type: string;
  readonly body: { readonly value?: unknown };
};

const RESULT = create(PublishResponseSchema, {
  eventId: 'evt_01m85g4y5afdm9ybezgx200000',
  deliveryCount: 1,
});

async function echoGrpc(): Promise<number> {
  return grpc(
    'Publish',
    false,
    (bytes) => fromBinary(PublishRequestSchema, bytes),
    () => Buffer.from(toBinary(PublishResponseSchema, RESULT)),
    (_call: unknown, callback: (error: null, value: object) => void) => callback(null, RESULT),
  );
}

const INSERT = `WITH e AS (INSERT INTO events (tenant_id, id, type, payload)
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::bytea[]) RETURNING tenant_id, id)
  INSERT INTO deliveries (tenant_id, id, event_id, subscription_id, run_at, lease)
  SELECT tenant_id, id, id, id, now() + interval '60 s', $5::uuid FROM e`;

/** Makes the tables; returns what stores events in one statement. */
async function inserter(): Promise<(events: readonly Input[]) => Promise<unknown>> {
  const db = new pg.Pool({ connectionString: databaseUrl, max: 8, options: `-c search_path=${SCHEMA}` });
  await db.query(`DROP SCHEMA IF EXISTS ${SCHEMA} CASCADE; CREATE SCHEMA ${SCHEMA}`);
  await db.query(`
    CREATE TABLE events (tenant_id text NOT NULL, id uuid NOT NULL, type text NOT NULL, payload bytea NOT NULL,
      created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (tenant_id, id)) PARTITION BY HASH (tenant_id);
    CREATE TABLE deliveries (tenant_id text NOT NULL, id uuid NOT NULL, event_id uuid NOT NULL,
      subscription_id uuid NOT NULL, attempt int NOT NULL DEFAULT 0, run_at timestamptz NOT NULL DEFAULT now(),
      lease uuid, PRIMARY KEY (tenant_id, id)) PARTITION BY HASH (tenant_id);`);
  for (const table of ['events', 'deliveries']) {
    for (let i = 0; i < 4; i++) {
      await db.query(
        `CREATE TABLE ${table}_${i} PARTITION OF ${table} FOR VALUES WITH (MODULUS 4, REMAINDER ${i})`,
      );
    }
  }
  await db.query('CREATE INDEX ON deliveries (tenant_id, subscription_id, run_at, id)');
  const lease = randomBytes(16);
  return (events) => {
    const values = [
      textArray(events.map((e) => e.tenantId)),
      uuidArray(events.map(uuidv7)),
      textArray(events.map((e) => e.type)),
      byteaArray(events.map((e) => e.body.value as Uint8Array)),
      lease,
    ];
    return db.query({ name: 'insert', text: INSERT, values });
  };
}

async function insertGrpc(): Promise<number> {
  const insert = await inserter();
  return grpc(
    'PublishBatch',
    false,
    (bytes) => fromBinary(PublishBatchRequestSchema, bytes),
    (value) => Buffer.from(toBinary(PublishBatchResponseSchema, value)),
    (
      call: { readonly request: { readonly events: readonly Input[] } },
      callback: (error: Error | null, value?: object) => void,
    ) => {
      const { events } = call.request;
      insert(events).then(
        () => {
          const results = events.map(() => ({ result: { case: 'ok' as const, value: RESULT } }));
          callback(null, create(PublishBatchResponseSchema, { results }));
        },
        (error: Error) => callback(error),
      );
    },
  );
}

/** As many inserts at once, and as large ones, as the product's group commit has. */
const MAX_INSERTS = 3;
const MAX_EVENTS = 500;

async function insertStream(): Promise<number> {
  const insert = await inserter();
  let waiting: { readonly event: Input; readonly ack: () => void }[] = [];
  let running = 0;
  const pump = async (): Promise<void> => {
    while (waiting.length > 0 && (running === 0 || (running < MAX_INSERTS && waiting.length >= 100))) {
      const mine = waiting.slice(0, MAX_EVENTS);
      waiting = waiting.slice(MAX_EVENTS);
      running++;
      void insert(mine.map((w) => w.event)).then(() => {
        running--;
        for (const { ack } of mine) ack();
        void pump();
      });
    }
  };
  type Call = {
    readonly on: (name: 'data' | 'end', heard: (m: { sequence: bigint; event: Input }) => void) => void;
    readonly write: (message: object) => void;
    readonly end: () => void;
  };
  return grpc(
    'PublishStream',
    true,
    (bytes) => fromBinary(PublishStreamRequestSchema, bytes),
    (value) => Buffer.from(toBinary(PublishStreamResponseSchema, value)),
    (call: Call) => {
      call.on('data', ({ sequence, event }) => {
        const result = create(PublishResultSchema, { result: { case: 'ok', value: RESULT } });
        const ack = () => call.write(create(PublishStreamResponseSchema, { sequence, result }));
        waiting.push({ event, ack });
        if (waiting.length === 1) queueMicrotask(pump);
        else if (waiting.length >= 100) void pump();
      });
      call.on('end', () => call.end());
    },
  );
}

function echoJson(): Promise<number> {
  const adapter = connectNodeAdapter({
    routes: (router) =>
      router.rpc(PublishService.method.publish, () => ({
        eventId: 'evt_01m85g4y5afdm9ybezgx200000',
        deliveryCount: 1,
      })),
  });
  const server = createServer(adapter);
  return new Promise((done) => {
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      done(typeof address === 'object' && address !== null ? address.port : 0);
    });
  });
}

const start: Record<string, () => Promise<number>> = {
  'echo-grpc': echoGrpc,
  'insert-grpc': insertGrpc,
  'insert-stream': insertStream,
  'echo-json': echoJson,
};
const chosen = start[kind ?? ''];
if (chosen === undefined) throw new Error(`no floor server ${kind}`);
process.stdout.write(`${await chosen()}\n`);
process.on('SIGTERM', () => process.exit(0));
process.on('disconnect', () => process.exit(0));
