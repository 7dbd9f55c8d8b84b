import { once } from 'node:events';
import http2, { type ClientHttp2Session } from 'node:http2';
import { connect, type Socket } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { createCallPath } from '../../src/rpc/call-path.ts';
import { startConnectServer } from '../../src/rpc/connect-server.ts';
import { startGrpcServer } from '../../src/rpc/grpc-server.ts';

const REQUEST = 'GET /healthz HTTP/1.1\r\nhost: dispatch\r\n\r\n';
const nobody = () => {
  throw new Error('nobody calls');
};

const path = createCallPath({
  authenticate: nobody,
  unavailable: () => undefined,
  onDenied: () => {},
  onCall: () => {},
  now: () => performance.now(),
});
const address = { host: '127.0.0.1', port: 0, maxConnections: 10, tls: undefined, onReload: () => {} };
const startGrpc = () => startGrpcServer([], path, address);

test('a request that came before its idle connection was closed is answered, however long the process did nothing', async () => {
  const server = await startServer();
  const client = await servedOnce(server.port);

  const closed = server.close(30_000);
  await refuses(server.port);
  client.write(REQUEST); // it lies in the server's socket from here on
  blockFor(700); // as a process does that waits for a core: longer than idle connections are kept
  expect(await lastAnswer(client)).toMatch(LAST);
  await closed;
});

test('a caller that goes on calling is answered on each of its idle connections, however many it has', async () => {
  const server = await startServer();
  const clients = await Promise.all(Array.from({ length: 8 }, () => servedOnce(server.port)));

  const closed = server.close(30_000);
  await refuses(server.port);
  for (const client of clients) {
    await wait(200); // in all for longer than idle connections are kept when nobody calls
    client.write(REQUEST);
    expect(await lastAnswer(client)).toMatch(LAST);
  }
  await closed;
});

test('calls on connections that were made before the server closes and that it has not taken yet are answered', async () => {
  const server = await startServer();
  const clients = Array.from({ length: 8 }, () => connect(server.port, '127.0.0.1'));
  for (const client of clients) client.write(REQUEST);

  const closed = server.close(30_000);
  const answers = await Promise.all(clients.map(lastAnswer));
  for (const answer of answers) expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  await closed;
});

test.each([
  ['HTTP', startServer],
  ['gRPC', startGrpc],
] as const)(
  'HTTP/2 sessions that begin while the %s server closes do not keep it from closing',
  async (_, start) => {
    const server = await start();
    const open = () => {
      const session = http2.connect(`http://127.0.0.1:${server.port}`);
      session.on('error', () => {}); // it may be refused
      return session;
    };
    const calm = open();
    await once(calm, 'remoteSettings');
    // As callers do that are told to go: they connect again at once.
    const again = new Promise<ClientHttp2Session>((done) => {
      calm.once('goaway', () => done(open()));
    });
    const early = open();

    await server.close(30_000);
    const all = [calm, early, await again];
    await Promise.all(all.map((session) => session.destroyed || once(session, 'close')));
  },
);

test('connections that nobody uses do not keep a server from closing', async () => {
  const server = await startServer();
  const client = await servedOnce(server.port);
  const silent = connect(server.port, '127.0.0.1');
  await once(silent, 'connect');

  await server.close(30_000);
  expect(await lastAnswer(client)).toBe('');
  expect(await lastAnswer(silent)).toBe('');
});

function startServer() {
  const healthy = async () => ({ status: 200, contentType: 'text/plain', body: 'ok\n' });
  return startConnectServer([], path, { '/healthz': healthy }, address);
}

/** A connection that was answered on, and is idle now. */
async function servedOnce(port: number): Promise<Socket> {
  const client = connect(port, '127.0.0.1');
  await once(client, 'connect');
  client.write(REQUEST);
  await once(client, 'data');
  return client;
}

/** Resolves when no more connections are taken. */
async function refuses(port: number): Promise<void> {
  for (;;) {
    const socket = connect(port, '127.0.0.1');
    const [opened] = await Promise.allSettled([once(socket, 'connect')]);
    socket.destroy();
    if (opened.status === 'rejected') return;
  }
}

/** What comes until the server closes the connection. */
async function lastAnswer(client: Socket): Promise<string> {
  let answer = '';
  for await (const chunk of client) answer += chunk;
  return answer;
}

const LAST = /^HTTP\/1\.1 200 OK\r\n(?:.+\r\n)*connection: close\r\n/i;

const blockFor = (ms: number) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
