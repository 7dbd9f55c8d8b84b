// 22,000 malformed inputs on both ports: clean codes, no crash, no stack trace, no growth. TLS and mTLS of the servers.
import { readFileSync, writeFileSync } from 'node:fs';
import { type ClientHttp2Session, connect as connectHttp2 } from 'node:http2';
import { request as httpsRequest } from 'node:https';
import { connect as connectTcp } from 'node:net';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { connect as connectTls } from 'node:tls';
import { create, type DescMethod, toBinary } from '@bufbuild/protobuf';
import { ChannelCredentials, Client as GrpcClient } from '@grpc/grpc-js';
import { Pool } from 'undici';
import { expect, test } from 'vitest';
import { EventService } from '../../gen/dispatch/v1/event_service_pb.ts';
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { createAuthority } from '../support/certificates.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { ADMIN_KEY, MASTER_KEY, startTestInstance } from '../support/instance.ts';
import { spawnDispatch } from '../support/processes.ts';
import { randomFrom } from '../support/random.ts';
import { clientsOf } from '../support/rpc-clients.ts';

const METHODS = [PublishService, SubscriptionService, EventService, TenantService].flatMap(
  (service): DescMethod[] => service.methods.filter((m) => m.methodKind === 'unary'),
);
const BODY = { case: 'data' as const, value: { a: [1, { b: null }] } };
const VALID = [
  toBinary(
    PublishService.method.publish.input,
    create(PublishService.method.publish.input, {
      tenantId: 'acme',
      event: { type: 'a.b', body: BODY, metadata: { k: 'v' } },
    }),
  ),
  toBinary(
    SubscriptionService.method.createSubscription.input,
    create(SubscriptionService.method.createSubscription.input, {
      tenantId: 'acme',
      subscription: { url: 'https://example.com/', eventTypes: ['x.*'], headers: { a: 'b' } },
    }),
  ),
];

/** Bytes that are no message, or nearly one. */
function malformedBytes(random: () => number): Buffer {
  const kind = Math.floor(random() * 5);
  const bytes = (n: number) => Buffer.from(Array.from({ length: n }, () => Math.floor(random() * 256)));
  if (kind === 0) return bytes(Math.floor(random() * 200));
  const valid = Buffer.from(VALID[Math.floor(random() * VALID.length)]!);
  if (kind === 1) {
    for (let i = 0; i < 1 + random() * 8; i++)
      valid[Math.floor(random() * valid.length)] = Math.floor(random() * 256);
    return valid;
  }
  if (kind === 2) return valid.subarray(0, Math.floor(random() * valid.length));
  if (kind === 3) return Buffer.concat([valid, bytes(10)]);
  // A group or list in a list, a thousand levels deep.
  return Buffer.alloc(2_000, random() < 0.5 ? 0x0b : 0x12);
}

const JSON_PIECES = [
  '{',
  '}',
  '[',
  ']',
  '"',
  ':',
  ',',
  'null',
  'true',
  '1e999',
  '-',
  '0x1',
  '"\\ud800"',
  '"\\u0000"',
  '"tenantId"',
  '"event"',
  '"type"',
  '"data"',
  '"__proto__"',
  '"constructor"',
  '1',
  '"a"',
  'NaN',
  '\u0000',
  '\ufeff',
  '//',
  ' ',
];

function malformedJson(random: () => number): Buffer {
  const kind = Math.floor(random() * 5);
  if (kind === 0) {
    const n = Math.floor(random() * 40);
    return Buffer.from(
      Array.from({ length: n }, () => JSON_PIECES[Math.floor(random() * JSON_PIECES.length)]).join(''),
    );
  }
  if (kind === 1) {
    const depth = 10 + Math.floor(random() * 3_000);
    return Buffer.from(
      `{"tenantId":"acme","event":{"type":"a.b","data":${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}}}`,
    );
  }
  if (kind === 2) return Buffer.from(`{"tenantId":${JSON.stringify(random())},"event":[],"unknown":1}`);
  if (kind === 3) return malformedBytes(random);
  const values = [
    '"x"',
    '[]',
    '{}',
    'null',
    '-1',
    '1e30',
    'true',
    '"\\u0000"',
    '{"seconds":"x"}',
    '"9999-99-99T00:00:00Z"',
  ];
  const value = () => values[Math.floor(random() * values.length)];
  return Buffer.from(
    `{"tenantId":"acme","event":{"type":${value()},"data":${value()},"metadata":${value()},"deliverAfter":${value()}},` +
      `"subscription":{"url":${value()},"eventTypes":${value()},"retryPolicy":${value()},"attemptTimeout":${value()}}}`,
  );
}

/** Codes that say whose fault it was: INTERNAL (13), UNKNOWN (2) and DATA_LOSS (15) are not among them. */
const CLEAN = new Set([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16]);
const CLEAN_NAMES =
  /^(?:invalid_argument|not_found|already_exists|permission_denied|resource_exhausted|failed_precondition|aborted|out_of_range|unimplemented|unauthenticated|deadline_exceeded|canceled)$/;
const TRACE = /\n\s+at |node_modules|file:\/\/|\.ts:\d+/;

type Findings = { readonly bad: string[]; count: number };

async function malformedGrpc(
  session: ClientHttp2Session,
  random: () => number,
  findings: Findings,
): Promise<void> {
  const method = METHODS[Math.floor(random() * METHODS.length)]!;
  const message = malformedBytes(random);
  const frame = Buffer.alloc(5);
  frame[0] = random() < 0.1 ? Math.floor(random() * 256) : 0;
  frame.writeUInt32BE(random() < 0.1 ? Math.floor(random() * 5_000_000) : message.length, 1);
  const headers: Record<string, string> = {
    ':method': 'POST',
    ':path': `/${method.parent.typeName}/${random() < 0.05 ? 'Nonsense' : method.name}`,
    'content-type': random() < 0.05 ? 'application/nonsense' : 'application/grpc',
    te: 'trailers',
    authorization: random() < 0.05 ? 'Bearer nonsense' : `Bearer ${ADMIN_KEY}`,
    ...(random() < 0.1 ? { 'grpc-timeout': 'abc' } : {}),
    ...(random() < 0.1 ? { 'grpc-encoding': random() < 0.5 ? 'gzip' : 'nonsense' } : {}),
  };
  await new Promise<void>((done) => {
    const stream = session.request(headers);
    let status: string | undefined;
    let text = '';
    const note = (h: Record<string, unknown>) => {
      if (h['grpc-status'] !== undefined) status = String(h['grpc-status']);
      text += String(h['grpc-message'] ?? '');
    };
    const timer = setTimeout(() => stream.close(8), 5_000);
    stream.on('response', (h) => note(h));
    stream.on('trailers', (h) => note(h));
    stream.on('data', (chunk) => {
      text += chunk.toString('latin1');
    });
    stream.on('error', () => {}); // a reset stream has no status: what counts is that the session lives
    stream.on('close', () => {
      clearTimeout(timer);
      findings.count++;
      if (status !== undefined && !CLEAN.has(Number(status))) {
        findings.bad.push(`grpc ${method.name} ${status} ${decodeURIComponent(text).slice(0, 200)}`);
      }
      if (TRACE.test(decodeURIComponent(text.replace(/%(?![0-9a-f]{2})/gi, ''))))
        findings.bad.push(`trace ${text.slice(0, 300)}`);
      done();
    });
    stream.end(Buffer.concat([frame, message]));
  });
}

async function malformedHttp(pool: Pool, random: () => number, findings: Findings): Promise<void> {
  const method = METHODS[Math.floor(random() * METHODS.length)]!;
  const binary = random() < 0.3;
  const response = await pool.request({
    method: random() < 0.03 ? 'PUT' : 'POST',
    path: `/${method.parent.typeName}/${random() < 0.03 ? 'Nonsense' : method.name}`,
    headers: {
      'content-type': random() < 0.05 ? 'text/html' : binary ? 'application/proto' : 'application/json',
      authorization: random() < 0.05 ? 'nonsense' : `Bearer ${ADMIN_KEY}`,
      ...(random() < 0.05 ? { 'content-encoding': random() < 0.7 ? 'gzip' : 'nonsense' } : {}),
      ...(random() < 0.05 ? { 'connect-timeout-ms': random() < 0.5 ? 'x' : '-1' } : {}),
      ...(random() < 0.05 ? { 'connect-protocol-version': '9' } : {}),
    },
    body: binary ? malformedBytes(random) : malformedJson(random),
  });
  const text = await response.body.text();
  findings.count++;
  if (TRACE.test(text)) findings.bad.push(`trace ${text.slice(0, 300)}`);
  const type = String(response.headers['content-type'] ?? '');
  if (type.includes('json') && response.statusCode !== 200) {
    const { code } = JSON.parse(text) as { code?: string };
    if (!CLEAN_NAMES.test(code ?? ''))
      findings.bad.push(`http ${method.name} ${response.statusCode} ${text.slice(0, 300)}`);
  } else if (response.statusCode >= 500 && response.statusCode !== 501) {
    findings.bad.push(`http ${method.name} ${response.statusCode} ${text.slice(0, 300)}`);
  }
}

async function rawBytes(port: number, random: () => number, findings: Findings): Promise<void> {
  const starts = [
    'GET / HTTP/1.1\r\n',
    'POST /x HTTP/9.9\r\n\r\n',
    'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    '\x16\x03\x01',
    '',
    'GET / HTTP/1.1\r\nHost:\r\nContent-Length: x\r\n\r\n',
  ];
  const start = starts[Math.floor(random() * starts.length)]!;
  const noise = Buffer.from(
    Array.from({ length: Math.floor(random() * 300) }, () => Math.floor(random() * 256)),
  );
  await new Promise<void>((done) => {
    let text = '';
    const socket = connectTcp(port, '127.0.0.1', () =>
      socket.end(Buffer.concat([Buffer.from(start, 'latin1'), noise])),
    );
    const timer = setTimeout(() => socket.destroy(), 3_000);
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1');
    });
    socket.on('error', () => {}); // a reset is an answer too
    socket.on('close', () => {
      clearTimeout(timer);
      findings.count++;
      if (TRACE.test(text)) findings.bad.push(`trace ${text.slice(0, 300)}`);
      done();
    });
  });
}

async function many(count: number, atOnce: number, work: () => Promise<void>): Promise<void> {
  let left = count;
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      while (left-- > 0) await work();
    }),
  );
}

const rssOf = (pid: number) =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;

test('22,000 malformed inputs on both ports: clean codes only, no crash, no stack trace, memory flat', async () => {
  const seed = Math.floor(Math.random() * 2 ** 32);
  const random = randomFrom(seed);
  await using database = await cloneDatabase();
  const dispatch = await spawnDispatch({
    DISPATCH_DATABASE_URL: database.url,
    DISPATCH_ADMIN_KEY: ADMIN_KEY,
    DISPATCH_MASTER_KEYS: `test:${MASTER_KEY.toString('base64')}`,
    DISPATCH_REFUSALS_PER_MINUTE: '1000000',
    // Garbage is collected before the heap grows: what is seen to grow is kept, and more than this is a crash. The usual
    // young generation takes more than all of this: V8 then marks without end, two thirds of the time.
    NODE_OPTIONS: '--max-old-space-size=128 --max-semi-space-size=8',
  });
  const clients = clientsOf(dispatch.httpPort, ADMIN_KEY);
  await clients.tenants.createTenant({ tenant: { tenantId: 'acme' } });
  const findings: Findings = { bad: [], count: 0 };
  const pool = new Pool(`http://127.0.0.1:${dispatch.httpPort}`, { connections: 16 });
  const round = async (share: number) => {
    for (const port of [dispatch.grpcPort, dispatch.httpPort]) {
      let session = connectHttp2(`http://127.0.0.1:${port}`);
      session.on('error', () => {});
      await many(4_000 * share, 16, async () => {
        if (session.closed || session.destroyed) {
          session = connectHttp2(`http://127.0.0.1:${port}`);
          session.on('error', () => {});
        }
        await malformedGrpc(session, random, findings);
      });
      session.destroy();
      await many(2_500 * share, 16, () => rawBytes(port, random, findings));
    }
    await many(9_000 * share, 16, () => malformedHttp(pool, random, findings));
  };
  const sizes: number[] = [];
  for (let quarter = 0; quarter < 8; quarter++) {
    await round(0.25);
    sizes.push(Math.round(rssOf(dispatch.child.pid!)));
  }
  await pool.close();
  console.log(
    `${findings.count} malformed inputs (seed ${seed}): ${findings.bad.length} unclean, RSS ${sizes.join(', ')} MiB`,
  );
  expect(findings.bad.slice(0, 10), `seed ${seed}`).toEqual([]);
  expect(findings.count).toBeGreaterThanOrEqual(22_000);
  // The heap grows to what the collector finds comfortable, and no further: the last 11,000 cost next to nothing.
  expect(sizes[7]! - sizes[5]!).toBeLessThan(40);
  expect(dispatch.child.exitCode).toBeNull();
  expect(dispatch.output()).not.toMatch(/"level":"(?:error|fatal)"/);
  // It still works. Not by asking for the tenant: one of the inputs may have been a well-formed DeleteTenant.
  await clients.tenants.createTenant({ tenant: { tenantId: 'another' } });
  expect(await dispatch.kill('SIGTERM')).toBe(0);
}, 240_000);

test('connections that say nothing are closed, and there are no more of them than are allowed', async () => {
  await using instance = await startTestInstance({ DISPATCH_MAX_CONNECTIONS: '20' });
  for (const port of [instance.httpPort, instance.grpcPort]) {
    let closed = 0;
    const sockets = Array.from({ length: 30 }, () => {
      const socket = connectTcp(port, '127.0.0.1');
      socket.on('error', () => {});
      socket.on('close', () => closed++);
      socket.resume();
      return socket;
    });
    await eventually(() => expect(closed).toBeGreaterThanOrEqual(10));
    expect(closed).toBeLessThanOrEqual(11);
    await eventually(() => expect(closed).toBe(30), 20_000);
    for (const socket of sockets) socket.destroy();
  }
}, 60_000);

test('TLS: both ports, by files that are read again when they change; mTLS refuses callers without a certificate', async () => {
  using authority = createAuthority();
  const file = (name: string) => join(authority.directory, name);
  const first = authority.issue('first', ['localhost', '127.0.0.1']);
  writeFileSync(file('server.pem'), first.cert);
  writeFileSync(file('server.key'), first.key);
  writeFileSync(file('clients.pem'), authority.ca);
  const settings = { DISPATCH_TLS_CERT_FILE: file('server.pem'), DISPATCH_TLS_KEY_FILE: file('server.key') };
  await using plain = await startTestInstance(settings);
  const health = (port: number, more: object = {}) =>
    new Promise<number>((done, fail) => {
      const request = httpsRequest(
        { host: '127.0.0.1', port, path: '/healthz', ca: authority.ca, agent: false, ...more },
        (response) => {
          response.resume();
          done(response.statusCode ?? 0);
        },
      );
      request.on('error', fail);
      request.end();
    });
  expect(await health(plain.httpPort)).toBe(200);
  const nameShown = (port: number) =>
    new Promise<string>((done, fail) => {
      const socket = connectTls({ host: '127.0.0.1', port, ca: authority.ca, ALPNProtocols: ['h2'] }, () => {
        done(`${String(socket.getPeerCertificate().subject.CN)} ${socket.alpnProtocol}`);
        socket.destroy();
      });
      socket.on('error', fail);
    });
  expect(await nameShown(plain.grpcPort)).toBe('first h2');
  expect(await nameShown(plain.httpPort)).toBe('first h2');
  const grpc = (port: number, credentials: ChannelCredentials) =>
    new Promise<number>((done) => {
      const client = new GrpcClient(`localhost:${port}`, credentials);
      client.makeUnaryRequest(
        '/grpc.health.v1.Health/Check',
        () => Buffer.alloc(0),
        (bytes) => bytes,
        Buffer.alloc(0),
        { deadline: Date.now() + 5_000 },
        (error) => {
          client.close();
          done(error === null ? 0 : error.code);
        },
      );
    });
  const ca = Buffer.from(authority.ca);
  expect(await grpc(plain.grpcPort, ChannelCredentials.createSsl(ca))).toBe(0);
  expect(await grpc(plain.grpcPort, ChannelCredentials.createInsecure())).toBe(14);

  // A key without its certificate, as between two writes, changes nothing; the pair does.
  const second = authority.issue('second', ['localhost', '127.0.0.1']);
  writeFileSync(file('server.key'), second.key);
  await wait(2_500); // one look at the files
  expect(await nameShown(plain.grpcPort)).toBe('first h2');
  writeFileSync(file('server.pem'), second.cert);
  await eventually(async () => expect(await nameShown(plain.grpcPort)).toBe('second h2'), 10_000);
  await eventually(async () => expect(await nameShown(plain.httpPort)).toBe('second h2'), 10_000);

  await using mutual = await startTestInstance({
    ...settings,
    DISPATCH_TLS_CLIENT_CA_FILE: file('clients.pem'),
  });
  const client = authority.issue('a-client', []);
  await expect(health(mutual.httpPort)).rejects.toThrow();
  expect(await health(mutual.httpPort, { cert: client.cert, key: client.key })).toBe(200);
  using strangers = createAuthority();
  const stranger = strangers.issue('stranger', []);
  await expect(health(mutual.httpPort, { cert: stranger.cert, key: stranger.key })).rejects.toThrow();
  expect(await grpc(mutual.grpcPort, ChannelCredentials.createSsl(ca))).toBe(14);
  const known = ChannelCredentials.createSsl(ca, Buffer.from(client.key), Buffer.from(client.cert));
  expect(await grpc(mutual.grpcPort, known)).toBe(0);
  await expect(startTestInstance({ ...settings, DISPATCH_TLS_KEY_FILE: file('none') })).rejects.toThrow(
    /DISPATCH_TLS_KEY_FILE/,
  );
}, 120_000);
