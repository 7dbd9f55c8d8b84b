// Floors that begin with a call: bare servers with the same requests and no product behind them.
//   echo-grpc     grpc-js, unary, answers at once
//   insert-grpc   grpc-js, a batch call into one multi-row insert of event + delivery
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
  PublishService,
} from '../gen/dispatch/v1/publish_service_pb.ts';
import { byteaArray, textArray, uuidArray } from '../src/storage/binary-arrays.ts';

const [kind, databaseUrl] = process.argv.slice(2);

function uuidv7(): Buffer {
  const id = randomBytes(16);
  id.writeUIntBE(Date.now(), 0, 6);
  id[6] = (id[6]! & 0x0f) | 0x70;
  id[8] = (id[8]! & 0x3f) | 0x80;
  return id;
}

async function grpc(
  name: string,
  request: (b: Buffer) => unknown,
  respond: (v: never) => Buffer,
  handle: UntypedHandleCall,
) {
  const server = new Server({ 'grpc.max_receive_message_length': 16 * 1024 * 1024 });
  const definition = {
    path: `/dispatch.v1.PublishService/${name}`,
    requestStream: false,
    responseStream: false,
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

async function echoGrpc(): Promise<number> {
  const answer = create(PublishResponseSchema, {
    eventId: 'evt_01m85g4y5afdm9ybezgx200000',
    deliveryCount: 1,
  });
  return grpc(
    'Publish',
    (bytes) => fromBinary(PublishRequestSchema, bytes),
    () => Buffer.from(toBinary(PublishResponseSchema, answer)),
    (_call: unknown, callback: (error: null, value: object) => void) => callback(null, answer),
  );
}

const INSERT = `WITH e AS (INSERT INTO events (tenant_id, id, type, payload)
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::bytea[]) RETURNING tenant_id, id)
  INSERT INTO deliveries (tenant_id, id, event_id, subscription_id, run_at, lease)
  SELECT tenant_id, id, id, id, now() + interval '60 s', $5::uuid FROM e`;

async function insertGrpc(): Promise<number> {
  const db = new pg.Pool({ connectionString: databaseUrl, max: 8, options: '-c search_path=floor_ingest' });
  await db.query('DROP SCHEMA IF EXISTS floor_ingest CASCADE; CREATE SCHEMA floor_ingest');
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
  const result = create(PublishResponseSchema, {
    eventId: 'evt_01m85g4y5afdm9ybezgx200000',
    deliveryCount: 1,
  });
  return grpc(
    'PublishBatch',
    (bytes) => fromBinary(PublishBatchRequestSchema, bytes),
    (value) => Buffer.from(toBinary(PublishBatchResponseSchema, value)),
    (
      call: { request: { events: { tenantId: string; type: string; body: { value?: unknown } }[] } },
      callback: (error: Error | null, value?: object) => void,
    ) => {
      const { events } = call.request;
      const values = [
        textArray(events.map((e) => e.tenantId)),
        uuidArray(events.map(uuidv7)),
        textArray(events.map((e) => e.type)),
        byteaArray(events.map((e) => e.body.value as Uint8Array)),
        lease,
      ];
      db.query({ name: 'insert', text: INSERT, values }).then(
        () => {
          const results = events.map(() => ({ result: { case: 'ok' as const, value: result } }));
          callback(null, create(PublishBatchResponseSchema, { results }));
        },
        (error: Error) => callback(error),
      );
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
  'echo-json': echoJson,
};
const chosen = start[kind ?? ''];
if (chosen === undefined) throw new Error(`no floor server ${kind}`);
process.stdout.write(`${await chosen()}\n`);
process.on('SIGTERM', () => process.exit(0));
process.on('disconnect', () => process.exit(0));
