// Bad input: each has a code of the gRPC canon and a field violation that says what would be right.

import { request as httpRequest } from 'node:http';
import { connect as connectHttp2 } from 'node:http2';
import { connect } from 'node:net';
import { gzipSync } from 'node:zlib';
import { create, fromBinary } from '@bufbuild/protobuf';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import type { ConnectError } from '@connectrpc/connect';
import { Code } from '@connectrpc/connect';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DeadLetterService } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { EventService } from '../../gen/dispatch/v1/event_service_pb.ts';
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { RetryPolicySchema, SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { BadRequestSchema } from '../../gen/google/rpc/error_details_pb.ts';
import { grpcCaller } from '../support/clients.ts';
import { type Clients, newTenant, startTestInstance, type TestInstance } from '../support/instance.ts';

let dispatch: TestInstance;
let clients: Clients;
let key: string;

beforeAll(async () => {
  dispatch = await startTestInstance();
  ({ key } = await newTenant(dispatch.clients(), 'acme'));
  clients = dispatch.clients(key);
});
afterAll(() => dispatch[Symbol.asyncDispose]());

async function refusal(call: Promise<unknown>): Promise<{ code: Code; fields: string[]; message: string }> {
  const error = await call.then(
    () => undefined,
    (e: ConnectError) => e,
  );
  if (error === undefined) throw new Error('it was not refused');
  const violations = error.findDetails(BadRequestSchema).flatMap((d) => d.fieldViolations);
  for (const v of violations) expect(v.description.length).toBeGreaterThan(10);
  return { code: error.code, fields: violations.map((v) => v.field), message: error.rawMessage };
}

const URL_OK = 'https://example.com/hook';
const subscribe = (more: object) =>
  clients.subscriptions.createSubscription({ subscription: { url: URL_OK, eventTypes: ['a'], ...more } });
const data = { case: 'data' as const, value: {} };

describe('a subscription', () => {
  test.each<[string, object, string]>([
    ['no URL', { url: '' }, 'url'],
    ['no URL at all', { url: 'example' }, 'url'],
    ['no slashes', { url: 'https:example.com' }, 'url'],
    ['port 0', { url: 'https://example.com:0/' }, 'url'],
    ['another scheme', { url: 'ftp://example.com/' }, 'url'],
    ['a password', { url: 'https://u:p@example.com/' }, 'url'],
    ['a fragment', { url: 'https://example.com/#x' }, 'url'],
    ['a private address', { url: 'http://10.0.0.1/' }, 'url'],
    ['a private address in decimal', { url: 'http://167772161/' }, 'url'],
    ['cloud metadata', { url: 'http://169.254.169.254/latest' }, 'url'],
    ['a private IPv6 address', { url: 'http://[fd00::1]/' }, 'url'],
    ['a mapped private address', { url: 'http://[::ffff:10.0.0.1]/' }, 'url'],
    ['a long URL', { url: `https://example.com/${'x'.repeat(2048)}` }, 'url'],
    ['no pattern', { eventTypes: [] }, 'event_types'],
    ['a malformed pattern', { eventTypes: ['a', 'a..b'] }, 'event_types[1]'],
    ['51 patterns', { eventTypes: Array(51).fill('a') }, 'event_types'],
    ['a header that is ours', { headers: { 'Webhook-Id': 'x' } }, 'headers[Webhook-Id]'],
    ['a host header', { headers: { Host: 'x' } }, 'headers[Host]'],
    ['a header break', { headers: { 'X-A': 'x\r\ny: z' } }, 'headers[X-A]'],
    ['a header name with a space', { headers: { 'X A': 'x' } }, 'headers[X A]'],
    [
      'an empty retry list',
      { retryPolicy: { schedule: { case: 'list', value: { delays: [] } } } },
      'retry_policy.list.delays',
    ],
    [
      'a negative delay',
      { retryPolicy: { schedule: { case: 'list', value: { delays: [{ seconds: -1n }] } } } },
      'retry_policy.list.delays[0]',
    ],
    [
      'no attempts',
      {
        retryPolicy: {
          schedule: {
            case: 'exponential',
            value: { base: { seconds: 1n }, factor: 2, cap: { seconds: 9n }, maxAttempts: 0 },
          },
        },
      },
      'retry_policy.exponential.max_attempts',
    ],
    [
      'a cap under its base',
      {
        retryPolicy: {
          schedule: {
            case: 'exponential',
            value: { base: { seconds: 10n }, factor: 2, cap: { seconds: 9n }, maxAttempts: 3 },
          },
        },
      },
      'retry_policy.exponential.cap',
    ],
    ['a timeout of an hour', { attemptTimeout: { seconds: 3600n } }, 'attempt_timeout'],
    ['an id of its own', { subscriptionId: 'sub_x' }, 'subscription_id'],
  ])('with %s', async (_name, more, field) => {
    expect(await refusal(subscribe(more))).toMatchObject({
      code: Code.InvalidArgument,
      fields: [`subscription.${field}`],
    });
  });

  test('reports all that is wrong at once', async () => {
    const { fields } = await refusal(subscribe({ url: 'x', eventTypes: [], headers: { Host: 'x' } }));
    expect(fields).toEqual(['subscription.url', 'subscription.event_types', 'subscription.headers[Host]']);
  });

  test('that was changed by somebody else is ABORTED, and an empty or unknown mask is refused', async () => {
    const { subscription } = await subscribe({});
    const { subscriptionId, etag } = subscription!;
    const update = (more: object, paths: string[]) =>
      clients.subscriptions.updateSubscription({
        subscription: { subscriptionId, ...more },
        updateMask: { paths },
      });
    await update({ description: 'x', etag }, ['description']);
    expect((await refusal(update({ description: 'y', etag }, ['description']))).code).toBe(Code.Aborted);
    expect((await refusal(update({}, []))).fields).toEqual(['update_mask']);
    expect((await refusal(update({}, ['state']))).fields).toEqual(['update_mask']);
    expect((await refusal(update({ url: 'x' }, ['url']))).fields).toEqual(['subscription.url']);
    const after = await clients.subscriptions.getSubscription({ subscriptionId });
    expect(after.subscription).toMatchObject({ description: 'x', url: URL_OK, eventTypes: ['a'] });
    expect(
      (
        await refusal(
          clients.subscriptions.rotateSecret({ subscriptionId, overlap: { seconds: 999_999_999n } }),
        )
      ).fields,
    ).toEqual(['overlap']);
  });

  test('may have 5 live secrets and no more', async () => {
    const { subscription } = await subscribe({});
    const { subscriptionId } = subscription!;
    for (let i = 0; i < 4; i++) await clients.subscriptions.rotateSecret({ subscriptionId });
    expect((await refusal(clients.subscriptions.rotateSecret({ subscriptionId }))).code).toBe(
      Code.ResourceExhausted,
    );
    await clients.subscriptions.rotateSecret({ subscriptionId, overlap: { seconds: 0n } });
  });
});

describe('a publish', () => {
  test('for an unknown tenant is NOT_FOUND', async () => {
    const admin = dispatch.clients();
    expect(
      (await refusal(admin.publish.publish({ tenantId: 'nobody', event: { type: 'a', body: data } }))).code,
    ).toBe(Code.NotFound);
    expect(
      await refusal(admin.publish.publish({ tenantId: 'No Body', event: { type: 'a', body: data } })),
    ).toMatchObject({ code: Code.InvalidArgument, fields: ['tenant_id'] });
  });

  test('that names two tenants is refused, and stored for neither', async () => {
    const admin = dispatch.clients();
    const tenantId = 'another';
    await newTenant(admin, tenantId);
    const event = { type: 'a', body: data, tenantId };
    expect(await refusal(admin.publish.publish({ tenantId: 'acme', event }))).toMatchObject({
      code: Code.InvalidArgument,
      fields: ['event.tenant_id'],
    });
    expect((await admin.events.listEvents({ tenantId })).events).toEqual([]);
    // The same twice is no contradiction, and a batch may be for several.
    await admin.publish.publish({ tenantId, event });
    const { results } = await admin.publish.publishBatch({
      tenantId: 'acme',
      events: [event, { ...event, tenantId: '' }],
    });
    expect(results.map((r) => r.result.case)).toEqual(['ok', 'ok']);
    expect((await admin.events.listEvents({ tenantId })).events).toHaveLength(2);
  });

  test('without an event, with an event without body', async () => {
    expect((await refusal(clients.publish.publish({}))).fields).toEqual(['event']);
    expect((await refusal(clients.publish.publish({ event: { type: 'a' } }))).fields).toEqual(['event.data']);
  });

  test('of a key that was used for another body is ALREADY_EXISTS; the same body is a duplicate', async () => {
    const event = { type: 'a', idempotencyKey: 'once', body: data };
    const first = await clients.publish.publish({ event });
    expect(await clients.publish.publish({ event })).toMatchObject({
      eventId: first.eventId,
      duplicate: true,
    });
    const other = { ...event, body: { case: 'data' as const, value: { x: 1 } } };
    expect(await refusal(clients.publish.publish({ event: other }))).toMatchObject({
      code: Code.AlreadyExists,
      fields: ['event.idempotency_key'],
    });
  });

  test('of a batch: a bad event fails alone, the order of results is kept, keys repeat within it', async () => {
    const events = [
      { type: 'a', body: data },
      { type: 'a b', body: data },
      { type: 'a', idempotencyKey: 'twice', body: data },
      { type: 'a', idempotencyKey: 'twice', body: data },
      { type: 'a', body: { case: 'payload' as const, value: Buffer.alloc(1024 * 1024 + 1, 0x20) } },
      { type: 'b', idempotencyKey: 'twice', body: data },
    ];
    const { results } = await clients.publish.publishBatch({ events });
    expect(results.map((r) => r.result.case)).toEqual(['ok', 'error', 'ok', 'ok', 'error', 'error']);
    const value = (i: number) => results[i]!.result.value;
    expect(value(1)).toMatchObject({ code: 3, field: 'events[1].type' });
    expect(value(4)).toMatchObject({ code: 3, field: 'events[4].payload' });
    expect(value(5)).toMatchObject({ code: 6 });
    expect(value(3)).toMatchObject({ duplicate: true, eventId: (value(2) as { eventId: string }).eventId });
  });

  test('of 1,001 events is refused as a whole; 1,000 are taken', async () => {
    const events = Array.from({ length: 1_001 }, () => ({ type: 'a', body: data }));
    expect(await refusal(clients.publish.publishBatch({ events }))).toMatchObject({
      code: Code.InvalidArgument,
      fields: ['events'],
    });
    expect((await clients.publish.publishBatch({ events: events.slice(1) })).results).toHaveLength(1_000);
    expect((await refusal(clients.publish.publishBatch({ events: [] }))).fields).toEqual(['events']);
  });
});

describe('lists', () => {
  test('refuse page tokens and sizes that are not theirs', async () => {
    await clients.publish.publishBatch({
      events: Array.from({ length: 5 }, () => ({ type: 'pages.x', body: data })),
    });
    const page = await clients.events.listEvents({ pageSize: 2, type: 'pages.*' });
    expect(page.events).toHaveLength(2);
    const seen = [...page.events];
    for (let token = page.nextPageToken; token !== ''; ) {
      const next = await clients.events.listEvents({ pageSize: 2, type: 'pages.*', pageToken: token });
      seen.push(...next.events);
      token = next.nextPageToken;
    }
    expect(new Set(seen.map((e) => e.eventId)).size).toBe(5);
    for (const pageToken of [
      'rubbish',
      '!!!',
      'x'.repeat(9999),
      `${page.nextPageToken}A`,
      Buffer.from('00000000:x').toString('base64url'),
    ]) {
      expect(await refusal(clients.events.listEvents({ type: 'pages.*', pageToken }))).toMatchObject({
        code: Code.InvalidArgument,
        fields: ['page_token'],
      });
    }
    expect((await refusal(clients.events.listEvents({ pageToken: page.nextPageToken }))).fields).toEqual([
      'page_token',
    ]);
    expect((await refusal(clients.events.listEvents({ pageSize: 501 }))).fields).toEqual(['page_size']);
    expect((await refusal(clients.events.listEvents({ pageSize: -1 }))).fields).toEqual(['page_size']);
    expect((await refusal(clients.events.listEvents({ type: 'a..b' }))).fields).toEqual(['type']);
  });

  test('and reads refuse ids of another kind or form', async () => {
    expect((await refusal(clients.events.getEvent({ eventId: 'evt_x' }))).fields).toEqual(['event_id']);
    expect(
      (await refusal(clients.events.getEvent({ eventId: 'sub_01h455vb4pex5vsknk084sn02q' }))).fields,
    ).toEqual(['event_id']);
    expect((await refusal(clients.events.getEvent({ eventId: 'evt_01h455vb4pex5vsknk084sn02q' }))).code).toBe(
      Code.NotFound,
    );
    expect((await refusal(clients.events.getDelivery({ deliveryId: '' }))).fields).toEqual(['delivery_id']);
    expect((await refusal(clients.deadLetters.discardDeadLetters({}))).fields).toEqual(['filter']);
    const last = '7zzzzzzzzzzzzzzzzzzzzzzzzz';
    for (const call of ['getDelivery', 'retryDelivery', 'cancelDelivery', 'listAttempts'] as const) {
      expect((await refusal(clients.events[call]({ deliveryId: `dlv_${last}` }))).code).toBe(Code.NotFound);
    }
    expect((await clients.events.listDeliveries({ eventId: `evt_${last}` })).deliveries).toEqual([]);
    // JSON clients cannot even spell this time; gRPC clients can.
    const caller = grpcCaller(dispatch.grpcPort, key);
    const ancient = { startTime: { seconds: -190_000_000_000n } };
    for (const call of [
      caller.call(EventService.method.listEvents, ancient),
      caller.call(DeadLetterService.method.replayDeadLetters, { filter: ancient }),
    ]) {
      await expect(call).rejects.toMatchObject({ code: 3, details: expect.stringContaining('start_time') });
    }
    caller.close();
  });
});

describe('on the wire', () => {
  const post = (path: string, body: string | Buffer, headers: Record<string, string> = {}) =>
    new Promise<{ status: number; body: string }>((done, fail) => {
      const call = httpRequest(
        {
          host: '127.0.0.1',
          port: dispatch.httpPort,
          path,
          method: 'POST',
          headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json', ...headers },
        },
        (response) => {
          let text = '';
          response.on('data', (chunk) => {
            text += chunk;
          });
          response.on('end', () => done({ status: response.statusCode ?? 0, body: text }));
        },
      );
      call.on('error', fail);
      call.end(body);
    });
  const violationsOf = (body: string) => {
    const [detail] = JSON.parse(body).details;
    return fromBinary(BadRequestSchema, Buffer.from(detail.value, 'base64')).fieldViolations;
  };
  const PUBLISH = '/dispatch.v1.PublishService/Publish';
  const BATCH = '/dispatch.v1.PublishService/PublishBatch';
  const SUBSCRIBE = '/dispatch.v1.SubscriptionService/CreateSubscription';

  test.each<[string, string]>([
    ['an unknown field', '{"event":{"type":"a","data":{},"colour":"red"}}'],
    ['a number that is too large', '{"event":{"type":"a","data":{"a":1e999}}}'],
    ['a field of another type', '{"event":{"type":7,"data":{}}}'],
    ['no JSON', '{"event":'],
    ['an array', '[]'],
    ['a payload that is not base64', '{"event":{"type":"a","payload":"§"}}'],
    ['a time that is none', '{"event":{"type":"a","data":{},"deliverAfter":"tomorrow"}}'],
    ['data of 65 levels', `{"event":{"type":"a","data":${'{"a":'.repeat(65)}1${'}'.repeat(65)}}}`],
    ['data of 5,000 levels', `{"event":{"type":"a","data":${'{"a":'.repeat(5000)}1${'}'.repeat(5000)}}}`],
    ['a lone surrogate as a type', '{"event":{"type":"\\ud800","data":{}}}'],
    ['a NUL in a label', '{"event":{"type":"a","data":{},"metadata":{"a":"\\u0000"}}}'],
  ])('JSON with %s is INVALID_ARGUMENT with a violation', async (_name, body) => {
    const answer = await post(PUBLISH, body);
    expect([answer.status, JSON.parse(answer.body).code]).toEqual([400, 'invalid_argument']);
    expect(answer.body).toContain('google.rpc.BadRequest');
    expect(answer.body).not.toMatch(/node_modules|\.ts:\d/);
  });

  test('an unknown field is named', async () => {
    const answer = await post(PUBLISH, '{"event":{"type":"a","data":{},"colour":"red"}}');
    expect(JSON.parse(answer.body).message).toContain('colour');
    expect(violationsOf(answer.body)).toMatchObject([{ field: 'event.colour' }]);
  });

  test.each([
    [
      'a time',
      PUBLISH,
      '{"event":{"type":"a","deliverAfter":"tomorrow"}}',
      '2026-11-24T10:00:00Z',
      'event.deliver_after',
    ],
    ['one of two times', BATCH, '{"events":[{},{"deliver_after":1}]}', 'RFC 3339', 'events[1].deliver_after'],
    [
      'a duration',
      SUBSCRIBE,
      '{"subscription":{"batch":{"maxWait":"x"}}}',
      '"90s"',
      'subscription.batch.max_wait',
    ],
    [
      'a duration of ten decimals',
      SUBSCRIBE,
      '{"subscription":{"batch":{"maxWait":"1.0000000001s"}}}',
      'more than 9 decimals',
      'subscription.batch.max_wait',
    ],
    [
      'an enum',
      SUBSCRIBE,
      '{"subscription":{"ordering":"ORDERING_FOO"}}',
      'ORDERING_KEY',
      'subscription.ordering',
    ],
    [
      'a pattern',
      SUBSCRIBE,
      '{"subscription":{"eventTypes":["a",5]}}',
      'string',
      'subscription.event_types[1]',
    ],
    ['a label', PUBLISH, '{"event":{"metadata":{"a":"b","c":[]}}}', 'string', 'event.metadata[c]'],
    ['data', PUBLISH, '{"event":{"type":"a","data":[1]}}', '"data" is a JSON object', 'event.data'],
    ['an event', PUBLISH, '{"event":[1]}', 'it is a JSON object', 'event'],
    ['a whole request', PUBLISH, '[1]', 'it is a JSON object', ''],
  ])('%s that cannot be is named, with what would be right', async (_name, call, body, right, field) => {
    const answer = await post(call, body);
    expect(JSON.parse(answer.body).message).toContain(right);
    const [violation] = violationsOf(answer.body);
    expect(violation!.description).toContain(right);
    expect(violation!.field).toBe(field);
  });

  test('17 MiB is RESOURCE_EXHAUSTED over both ports, and the service goes on', async () => {
    const answer = await post(PUBLISH, Buffer.alloc(17 * 1024 * 1024, 0x20));
    expect(JSON.parse(answer.body).code).toBe('resource_exhausted');
    const caller = grpcCaller(dispatch.grpcPort, key);
    const event = { type: 'a', body: { case: 'payload' as const, value: Buffer.alloc(17 * 1024 * 1024) } };
    await expect(caller.call(PublishService.method.publish, { event })).rejects.toMatchObject({ code: 8 });
    await caller.call(PublishService.method.publish, { event: { type: 'a', body: data } });
    caller.close();
  });

  test('3,000 wrong fields are INVALID_ARGUMENT over gRPC, with the first of them', async () => {
    const caller = grpcCaller(dispatch.grpcPort, key);
    const subscription = { url: URL_OK, eventTypes: Array.from({ length: 3_000 }, () => 'x'.repeat(300)) };
    await expect(
      caller.call(SubscriptionService.method.createSubscription, { subscription }),
    ).rejects.toMatchObject({ code: 3 });
    caller.close();
  });

  test('a time that Postgres cannot hold fails its own event, and nobody else’s', async () => {
    const other = await newTenant(dispatch.clients(), 'bystander');
    const good = Array.from({ length: 20 }, () =>
      dispatch.clients(other.key).publish.publish({ event: { type: 'a', body: data } }),
    );
    const caller = grpcCaller(dispatch.grpcPort, key);
    const event = { type: 'a', body: data, deliverAfter: { seconds: -9_000_000_000_000n } };
    await expect(caller.call(PublishService.method.publish, { event })).rejects.toMatchObject({ code: 3 });
    expect(await Promise.all(good)).toHaveLength(20);
    caller.close();
  });

  test('nobody’s bytes are decoded before the caller is known: 8 million empty events in 16 KB are UNAUTHENTICATED at once', async () => {
    const bomb = gzipSync(Buffer.alloc(16_000_000, Buffer.from([0x12, 0x00])));
    const headers = { authorization: '', 'content-type': 'application/proto', 'content-encoding': 'gzip' };
    const answer = await post('/dispatch.v1.PublishService/PublishBatch', bomb, headers);
    expect([answer.status, JSON.parse(answer.body).code]).toEqual([401, 'unauthenticated']);
    const nobody = grpcCaller(dispatch.grpcPort, undefined);
    const garbage = Buffer.from([255, 255, 255, 1]);
    const error = await new Promise<{ code: number }>((done) => {
      nobody.client.makeUnaryRequest(
        PUBLISH,
        (b: Buffer) => b,
        (b: Buffer) => b,
        garbage,
        nobody.metadata,
        (e) => done(e!),
      );
    });
    expect(error.code).toBe(16); // and not 3: it was not looked at
    nobody.close();
  });

  test('1,000 events with one key are one event and 999 duplicates', async () => {
    const event = { type: 'a', idempotencyKey: 'thousand', body: data };
    const { results } = await clients.publish.publishBatch({
      events: Array.from({ length: 1_000 }, () => event),
    });
    const ids = results.map(({ result }) =>
      result.case === 'ok' ? `${result.value.eventId} ${result.value.duplicate}` : 'error',
    );
    expect([new Set(ids).size, ids.filter((id) => id.endsWith('true')).length]).toEqual([2, 999]);
  });

  test('an unknown jitter and a mask of what every object has are refused', async () => {
    const delays = [durationFromMs(1_000)];
    const retryPolicy = create(RetryPolicySchema, {
      schedule: { case: 'list', value: { delays } },
      jitter: 99 as never,
    });
    const caller = grpcCaller(dispatch.grpcPort, key);
    const subscription = { url: URL_OK, eventTypes: ['a'], retryPolicy };
    await expect(
      caller.call(SubscriptionService.method.createSubscription, { subscription }),
    ).rejects.toMatchObject({ code: 3 });
    caller.close();
    const { subscription: made } = await subscribe({});
    const masked = {
      subscription: { subscriptionId: made!.subscriptionId },
      updateMask: { paths: ['constructor'] },
    };
    expect((await refusal(clients.subscriptions.updateSubscription(masked))).fields).toEqual(['update_mask']);
  });

  test('protobuf that is none is INVALID_ARGUMENT on both ports', async () => {
    const caller = grpcCaller(dispatch.grpcPort, key);
    const same = (b: Buffer) => b;
    const error = await new Promise<{ code: number }>((done) => {
      caller.client.makeUnaryRequest(
        PUBLISH,
        same,
        same,
        Buffer.from([255, 255, 255, 1]),
        caller.metadata,
        (e) => done(e!),
      );
    });
    expect(error.code).toBe(3);
    caller.close();
    const framed = Buffer.from([0, 0, 0, 0, 4, 255, 255, 255, 1]);
    const session = connectHttp2(`http://127.0.0.1:${dispatch.httpPort}`);
    const status = await new Promise((done) => {
      const stream = session.request({
        ':method': 'POST',
        ':path': PUBLISH,
        authorization: `Bearer ${key}`,
        'content-type': 'application/grpc',
      });
      const told = (headers: object) => 'grpc-status' in headers && done(headers['grpc-status']);
      stream.on('trailers', told).on('response', told);
      stream.resume();
      stream.end(framed);
    });
    expect(status).toBe('3');
    session.close();
    const answer = await post(PUBLISH, Buffer.from([255, 255, 255, 1]), {
      'content-type': 'application/proto',
    });
    expect(JSON.parse(answer.body).code).toBe('invalid_argument');
  });

  test('raw rubbish, a missing host and an endless first line close the connection and nothing else', async () => {
    for (const bytes of [
      '\0\0\0\0',
      'GET / HTTP/1.1\r\n\r\n',
      `POST ${PUBLISH} HTTP/1.1\r\nhost: [\r\n\r\n`,
      `GET /${'x'.repeat(100_000)}`,
      'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrubbish',
    ]) {
      await new Promise<void>((done) => {
        const socket = connect(dispatch.httpPort, '127.0.0.1', () => socket.write(bytes));
        socket.on('data', () => socket.end());
        socket.on('error', () => {});
        socket.on('close', () => done());
        setTimeout(() => socket.destroy(), 1_000).unref();
      });
    }
    await clients.publish.publish({ event: { type: 'a', body: data } });
  });

  test('an unknown method is UNIMPLEMENTED or 404', async () => {
    expect((await post('/dispatch.v1.PublishService/Nothing', '{}')).status).toBe(404);
  });
});
