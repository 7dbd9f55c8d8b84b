// A grpc-js client, Connect over gRPC and over JSON, and curl: each publishes and reads back. Reflection and health.
import { execFile, spawnSync } from 'node:child_process';
import { promisify } from 'node:util';
import { create, createFileRegistry, fromBinary, toBinary } from '@bufbuild/protobuf';
import { anyUnpack, type FileDescriptorProto, FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import { createClient } from '@connectrpc/connect';
import { createGrpcWebTransport } from '@connectrpc/connect-node';
import { Client, credentials, loadPackageDefinition, type ServiceError, status } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { EventService } from '../../gen/dispatch/v1/event_service_pb.ts';
import {
  PublishService,
  PublishStreamRequestSchema,
  PublishStreamResponseSchema,
} from '../../gen/dispatch/v1/publish_service_pb.ts';
import { ErrorInfoSchema } from '../../gen/google/rpc/error_details_pb.ts';
import { StatusSchema } from '../../gen/google/rpc/status_pb.ts';
import { connectGrpcClient, grpcCaller, jsonClient } from '../support/clients.ts';
import { newTenant, startTestInstance, type TestInstance } from '../support/instance.ts';

const run = promisify(execFile);
let dispatch: TestInstance;
let key: string;

beforeAll(async () => {
  dispatch = await startTestInstance();
  ({ key } = await newTenant(dispatch.clients(), 'acme'));
});
afterAll(() => dispatch[Symbol.asyncDispose]());

const BODY = Buffer.from('{"orderId": 1.0}');
const event = { type: 'order.created', body: { case: 'payload' as const, value: BODY } };

describe('publish and read back', () => {
  test('by grpc-js', async () => {
    const caller = grpcCaller(dispatch.grpcPort, key);
    const { eventId } = await caller.call(PublishService.method.publish, { event });
    const answer = await caller.call(EventService.method.getEvent, { eventId });
    expect(Buffer.from(answer.event!.payload).equals(BODY)).toBe(true);
    caller.close();
  });

  test.each(['connect-grpc', 'connect-json', 'grpc-web'] as const)('by %s', async (kind) => {
    const port = dispatch.httpPort;
    const web = createGrpcWebTransport({
      baseUrl: `http://127.0.0.1:${port}`,
      httpVersion: '1.1',
      interceptors: [
        (next) => (request) => {
          request.header.set('authorization', `Bearer ${key}`);
          return next(request);
        },
      ],
    });
    const [publish, events] = {
      'connect-grpc': [
        connectGrpcClient(PublishService, port, key),
        connectGrpcClient(EventService, port, key),
      ] as const,
      'connect-json': [jsonClient(PublishService, port, key), jsonClient(EventService, port, key)] as const,
      'grpc-web': [createClient(PublishService, web), createClient(EventService, web)] as const,
    }[kind];
    const { eventId } = await publish.publish({ event });
    expect(Buffer.from((await events.getEvent({ eventId })).event!.payload).equals(BODY)).toBe(true);
  });

  test('by curl, with data as plain JSON', async () => {
    if (spawnSync('curl', ['--version']).status !== 0) {
      // Root on Debian may install it; anybody else is told what is missing.
      spawnSync('apt-get', ['update', '-qq']);
      spawnSync('apt-get', ['install', '-y', '-qq', 'curl']);
      expect(spawnSync('curl', ['--version']).status, 'this test needs curl: install it').toBe(0);
    }
    const curl = async (method: string, body: object) => {
      const url = `http://127.0.0.1:${dispatch.httpPort}/dispatch.v1.${method}`;
      const { stdout } = await run('curl', [
        '-sS',
        url,
        '-H',
        `authorization: Bearer ${key}`,
        '-H',
        'content-type: application/json',
        '-d',
        JSON.stringify(body),
      ]);
      return JSON.parse(stdout);
    };
    const { eventId } = await curl('PublishService/Publish', {
      event: { type: 'order.created', data: { b: 1, a: [1.5, null] } },
    });
    const answer = await curl('EventService/GetEvent', { eventId });
    expect(Buffer.from(answer.event.payload, 'base64').toString()).toBe('{"b":1,"a":[1.5,null]}');
    expect(answer.event).toMatchObject({
      tenantId: 'acme',
      contentType: 'application/json',
      payloadBytes: 22,
    });
  });
});

describe('PublishStream', () => {
  const requests = Array.from({ length: 1_500 }, (_, i) => ({
    sequence: BigInt(i),
    event: i % 100 === 7 ? { type: 'not a type' } : event,
  }));

  function check(
    acks: readonly { sequence: bigint; result?: { result: { case?: string | undefined } } | undefined }[],
  ) {
    expect(acks.map((a) => Number(a.sequence)).sort((x, y) => x - y)).toEqual(requests.map((_, i) => i));
    for (const ack of acks)
      expect(ack.result!.result.case).toBe(Number(ack.sequence) % 100 === 7 ? 'error' : 'ok');
  }

  test('acks every event over Connect on h2c, bad ones with their error', async () => {
    const acks = [];
    const client = connectGrpcClient(PublishService, dispatch.httpPort, key);
    for await (const ack of client.publishStream(
      (async function* () {
        yield* requests;
      })(),
    ))
      acks.push(ack);
    check(acks);
  });

  test('acks every event over grpc-js', async () => {
    const caller = grpcCaller(dispatch.grpcPort, key);
    const method = PublishService.method.publishStream;
    const stream = caller.client.makeBidiStreamRequest(
      `/${PublishService.typeName}/${method.name}`,
      (value: ReturnType<typeof create<typeof PublishStreamRequestSchema>>) =>
        Buffer.from(toBinary(PublishStreamRequestSchema, value)),
      (bytes: Buffer) => fromBinary(PublishStreamResponseSchema, bytes),
      caller.metadata,
    );
    const acks: ReturnType<typeof create<typeof PublishStreamResponseSchema>>[] = [];
    stream.on('data', (ack) => acks.push(ack));
    const ended = new Promise((done, fail) => stream.on('end', done).on('error', fail));
    for (const request of requests) stream.write(create(PublishStreamRequestSchema, request));
    stream.end();
    await ended;
    check(acks);
    caller.close();
  });

  test('is refused without a key on both ports', async () => {
    await expect(
      (async () => {
        for await (const _ of connectGrpcClient(PublishService, dispatch.httpPort, undefined).publishStream(
          (async function* () {
            yield* requests.slice(0, 3);
          })(),
        ));
      })(),
    ).rejects.toThrow('unauthenticated');
  });
});

describe('a call that is refused before it is read', () => {
  const refusalBy = async (port: number, badKey: string | undefined) => {
    const caller = grpcCaller(port, badKey);
    const error = await caller.call(PublishService.method.publish, { event }).then(
      () => undefined,
      (error: ServiceError) => error,
    );
    caller.close();
    return error!;
  };

  test.each([
    ['no key', undefined],
    ['a wrong key', 'no such key – at all: 100 %'],
  ])('with %s says the same to grpc-js on both ports, with its reason', async (_, badKey) => {
    const wrongKey = badKey?.replace('–', '-');
    const [onHttp, onGrpc] = [
      await refusalBy(dispatch.httpPort, wrongKey),
      await refusalBy(dispatch.grpcPort, wrongKey),
    ];
    for (const error of [onHttp, onGrpc]) {
      expect(error.code).toBe(status.UNAUTHENTICATED);
      const [details] = error.metadata.get('grpc-status-details-bin');
      const { details: packed } = fromBinary(StatusSchema, details as Buffer);
      expect(packed.map((any) => anyUnpack(any, ErrorInfoSchema)?.reason)).toEqual(['UNAUTHENTICATED']);
    }
    expect(onHttp.details).toBe(onGrpc.details);
  });

  test('and one with a bad field is told in plain text on both ports', async () => {
    const texts: string[] = [];
    for (const port of [dispatch.httpPort, dispatch.grpcPort]) {
      const caller = grpcCaller(port, key);
      const bad = { event: { ...event, type: 'order créé: 100 %, or so' } };
      const error = await caller.call(PublishService.method.publish, bad).catch((e: ServiceError) => e);
      texts.push((error as ServiceError).details);
      caller.close();
    }
    expect(texts[0]).toBe(texts[1]);
    expect(texts[0]).toMatch(/^event\.type: must be/);
  });

  test('over Connect has its reason as a detail', async () => {
    const response = await fetch(`http://127.0.0.1:${dispatch.httpPort}/dispatch.v1.PublishService/Publish`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{}',
    });
    expect(response.status).toBe(401);
    const { code, details } = (await response.json()) as { code: string; details: { type: string }[] };
    expect([code, details.map((d) => d.type)]).toEqual(['unauthenticated', ['google.rpc.ErrorInfo']]);
  });
});

describe('beside the RPCs', () => {
  test('reflection lists every service and describes its methods', async () => {
    const definition = loadSync(
      new URL(
        '../../node_modules/@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto',
        import.meta.url,
      ).pathname,
    );
    // biome-ignore lint/suspicious/noExplicitAny: proto-loader's packages have no static type
    const { ServerReflection } = (loadPackageDefinition(definition) as any).grpc.reflection.v1;
    const client = new ServerReflection(`127.0.0.1:${dispatch.grpcPort}`, credentials.createInsecure());
    const ask = (request: object) =>
      // biome-ignore lint/suspicious/noExplicitAny: as above
      new Promise<any>((done, fail) => {
        const call = client.ServerReflectionInfo();
        call.on('data', done).on('error', fail);
        call.write(request);
        call.end();
      });
    const { listServicesResponse } = await ask({ listServices: '*' });
    const names = [
      'PublishService',
      'SubscriptionService',
      'EventService',
      'DeadLetterService',
      'TenantService',
    ].map((n) => `dispatch.v1.${n}`);
    expect(listServicesResponse.service.map((s: { name: string }) => s.name)).toEqual(
      expect.arrayContaining([...names, 'grpc.health.v1.Health']),
    );
    const { fileDescriptorResponse } = await ask({ fileContainingSymbol: 'dispatch.v1.PublishService' });
    // A client builds the service from what it gets: all that is imported is there, by its full name.
    const [contract, ...imported] = fileDescriptorResponse.fileDescriptorProto.map((bytes: Buffer) =>
      fromBinary(FileDescriptorProtoSchema, bytes),
    ) as [FileDescriptorProto, ...FileDescriptorProto[]];
    const registry = createFileRegistry(contract, (name) => imported.find((file) => file.name === name));
    const { methods } = registry.getService('dispatch.v1.PublishService')!;
    expect(methods.map((m) => m.name)).toEqual(['Publish', 'PublishBatch', 'PublishStream']);
    client.close();
  });

  test('grpc.health.v1 says SERVING', async () => {
    const client = new Client(`127.0.0.1:${dispatch.grpcPort}`, credentials.createInsecure());
    const bytes = await new Promise<Buffer>((done, fail) =>
      client.makeUnaryRequest(
        '/grpc.health.v1.Health/Check',
        (b: Buffer) => b,
        (b: Buffer) => b,
        Buffer.alloc(0),
        (error, value) => (error === null ? done(value!) : fail(error)),
      ),
    );
    expect([...bytes]).toEqual([8, 1]);
    client.close();
  });

  test('/healthz, /readyz and /metrics answer, anything else is 404', async () => {
    const get = async (path: string) => {
      const response = await fetch(`http://127.0.0.1:${dispatch.httpPort}${path}`);
      return [response.status, await response.text()] as const;
    };
    expect(await get('/healthz')).toEqual([200, 'ok\n']);
    expect(await get('/readyz')).toEqual([200, 'ready\n']);
    expect((await get('/nothing'))[0]).toBe(404);
    const [status, metrics] = await get('/metrics');
    expect(status).toBe(200);
    for (const name of [
      'publishes_total',
      'attempts_total',
      'attempt_seconds',
      'delivery_lag_seconds',
      'queue_depth',
      'group_commit_events',
      'database_connections',
    ]) {
      expect(metrics).toContain(`dispatch_${name}`);
    }
  });

  test('a deadline that has passed is DEADLINE_EXCEEDED', async () => {
    const caller = grpcCaller(dispatch.grpcPort, key);
    await expect(caller.call(EventService.method.listEvents, {}, { deadlineMs: -1 })).rejects.toMatchObject({
      code: 4,
    });
    caller.close();
  });
});
