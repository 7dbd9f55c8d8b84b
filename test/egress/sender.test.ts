// What the sender takes from an endpoint that does not stop, and what it makes of a process that stood still.
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { createServer as createHttpServer, type ServerResponse } from 'node:http';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { expect, onTestFinished, test, vi } from 'vitest';
import type { SendOutcome } from '../../src/domain/delivery.ts';
import { type Connect, createConnect } from '../../src/egress/connector.ts';
import { createAddressGuard } from '../../src/egress/guard.ts';
import { createResolver } from '../../src/egress/resolver.ts';
import { createSender } from '../../src/egress/sender.ts';
import { sendTo } from '../support/send.ts';

const MAX_HEAD_BYTES = 128 * 1024;
/** What one read of a connection brings at most. */
const PIECE_BYTES = 64 * 1024;

test.each([
  ['reason phrase', 'HTTP/1.1 200 '],
  ['status line of an interim response', 'HTTP/1.1 103 '],
])('an endless %s is cut off at its bound, however fast it comes', async (_what, begin) => {
  const server = createServer((socket) => {
    const chunk = Buffer.alloc(1024 * 1024, 'a');
    const pour = () => {
      while (!socket.destroyed && socket.write(chunk));
    };
    socket.on('error', () => {});
    socket.once('data', () => {
      socket.write(begin);
      socket.on('drain', pour);
      pour();
    });
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  onTestFinished(() => void server.close());
  const sockets: Socket[] = [];
  const onSent = (message: unknown) => void sockets.push((message as { readonly socket: Socket }).socket);
  subscribe('undici:client:sendHeaders', onSent);
  onTestFinished(() => void unsubscribe('undici:client:sendHeaders', onSent));
  const guard = createAddressGuard(['127.0.0.0/8']);
  await using sender = createSender(createConnect(guard, createResolver([])), () => performance.now());

  const { port } = server.address() as AddressInfo;
  const origin = `http://127.0.0.1:${port}`;
  const request = { origin, path: '/', headers: [], body: Buffer.from('{}'), tlsId: '', tls: undefined };
  const result = await new Promise<SendOutcome>((done) =>
    sender.send({ ...request, timeoutMs: 30_000 }, done),
  );

  expect(result).toMatchObject({ kind: 'failure', errorClass: 'protocol' });
  expect(sockets).toHaveLength(1);
  expect(sockets[0]!.bytesRead).toBeGreaterThan(MAX_HEAD_BYTES);
  expect(sockets[0]!.bytesRead).toBeLessThanOrEqual(MAX_HEAD_BYTES + PIECE_BYTES);
  expect(sockets[0]!.destroyed).toBe(true);
});

test('responses that come at the same time over several connections are each kept as they were sent', async () => {
  const count = 32;
  const bodyOf = (i: number) => Buffer.alloc(40_000 + i, `answer ${i}, `);
  const waiting: Socket[] = [];
  const server = createServer((socket) => {
    socket.once('data', () => {
      waiting.push(socket);
      if (waiting.length < count) return;
      for (const [i, one] of waiting.entries()) {
        const body = bodyOf(i);
        one.write(`HTTP/1.1 200 OK\r\nx-answer: ${i}\r\ncontent-length: ${body.length}\r\n\r\n`);
        one.end(body);
      }
    });
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  onTestFinished(() => void server.close());
  const guard = createAddressGuard(['127.0.0.0/8']);
  await using sender = createSender(createConnect(guard, createResolver([])), () => performance.now());

  const { port } = server.address() as AddressInfo;
  const url = new URL(`http://127.0.0.1:${port}`);
  const results = await Promise.all(Array.from({ length: count }, () => sendTo(sender, url)));

  const bodies = results.map((result) => (result.kind === 'response' ? result.body : undefined));
  const answers = results.map((result) => (result.kind === 'response' ? result.headers['x-answer'] : ''));
  expect(answers.toSorted((a, b) => Number(a) - Number(b))).toEqual(waiting.map((_, i) => String(i)));
  for (const [i, body] of bodies.entries()) {
    expect(body?.equals(bodyOf(Number(answers[i]))), `answer ${answers[i]}`).toBe(true);
  }
});

test('a body of a few bytes that is kept keeps no more memory than that', async () => {
  const server = createServer((socket) =>
    socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')),
  );
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  onTestFinished(() => void server.close());
  const guard = createAddressGuard(['127.0.0.0/8']);
  await using sender = createSender(createConnect(guard, createResolver([])), () => performance.now());

  const { port } = server.address() as AddressInfo;
  const result = await sendTo(sender, new URL(`http://127.0.0.1:${port}`));

  const body = result.kind === 'response' ? result.body : undefined;
  expect(String(body)).toBe('ok');
  expect(body?.buffer.byteLength).toBe(2);
});

/** An endpoint in a thread of its own, which answers `/fast` after 100 ms and nothing else. */
const ENDPOINT = `
  const { createServer } = require('node:http');
  const { parentPort } = require('node:worker_threads');
  const server = createServer((request, response) => {
    request.resume();
    if (request.url === '/fast') setTimeout(() => response.end('late, but there'), 100);
  });
  server.listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port));
`;

test.each([
  [
    'an answer that came in time counts, however late it is read',
    '/fast',
    2_000,
    { kind: 'response', status: 200 },
  ],
  ['an endpoint that said nothing meanwhile is not blamed', '/hang', 2_000, { kind: 'stalled' }],
  ['one that hangs is, if the process was only a little late', '/hang', 600, { errorClass: 'timeout' }],
])('a process that stood still past a deadline: %s', async (_what, path, stillMs, expected) => {
  const endpoint = new Worker(ENDPOINT, { eval: true });
  onTestFinished(async () => void (await endpoint.terminate()));
  const port = await new Promise<number>((done) => endpoint.once('message', done));
  const guard = createAddressGuard(['127.0.0.0/8']);
  await using sender = createSender(createConnect(guard, createResolver([])), () => performance.now());
  const origin = `http://127.0.0.1:${port}`;
  const request = { origin, path, headers: [], body: Buffer.from('{}'), tlsId: '', tls: undefined };
  const settled = new Promise<SendOutcome>((done) => sender.send({ ...request, timeoutMs: 300 }, done));
  await wait(50); // it is on the wire
  await new Promise((done) => setImmediate(done)); // timers come next
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, stillMs);
  expect(await settled).toMatchObject(expected);
});

/** A server that holds its answers; `requests` are those it has. */
async function startHolding() {
  const requests: ServerResponse[] = [];
  const server = createHttpServer((request, response) => {
    request.resume();
    requests.push(response);
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const request = { origin, path: '/', headers: [], body: Buffer.from('{}'), tlsId: '', tls: undefined };
  return { requests, request };
}

test('of many requests that pass their deadline together none takes an answer that came after it, or is sent twice', async () => {
  const { requests, request } = await startHolding();
  const guard = createAddressGuard(['127.0.0.0/8']);
  await using sender = createSender(createConnect(guard, createResolver([])), () => performance.now());
  const sendMany = (timeoutMs: number) =>
    Promise.all(
      Array.from(
        { length: 200 },
        () => new Promise<SendOutcome>((done) => sender.send({ ...request, timeoutMs }, done)),
      ),
    );
  const first = sendMany(30_000);
  await vi.waitUntil(() => requests.length === 200);
  const used = new Set(requests.map(({ socket }) => socket));
  for (const response of requests) response.end('in time');
  for (const result of await first) expect(result).toMatchObject({ kind: 'response' });
  // The next ones go over connections that are kept alive, which are there a turn of the event loop later.
  for (let i = 0; i < 3; i++) await new Promise((done) => setImmediate(done));
  const second = sendMany(1_000);
  // Timers go off in the order of their times, and immediates before what comes next: by then all deadlines have passed.
  await wait(1_050);
  for (let i = 0; i < 3; i++) await new Promise((done) => setImmediate(done));
  expect(requests).toHaveLength(400);
  expect(
    requests.slice(200).filter(({ socket }) => socket !== null && used.has(socket)).length,
  ).toBeGreaterThan(100);
  for (const [i, response] of requests.slice(200).entries()) {
    if (i % 2 === 0) response.end('too late');
    else response.socket?.destroy();
  }
  for (const result of await second) expect(result).toMatchObject({ kind: 'failure', errorClass: 'timeout' });
  expect(requests).toHaveLength(400);
});

test('what gets its connection after its deadline is not sent', async () => {
  const { requests, request } = await startHolding();
  const guard = createAddressGuard(['127.0.0.0/8']);
  const usual = createConnect(guard, createResolver([]));
  let open = (): void => {};
  const isOpen = new Promise<void>((done) => {
    open = done;
  });
  const connect: Connect = (tls) => (options, callback) =>
    void isOpen.then(() => usual(tls)(options, callback));
  await using sender = createSender(connect, () => performance.now());
  const all = Array.from(
    { length: 50 },
    () => new Promise<SendOutcome>((done) => sender.send({ ...request, timeoutMs: 100 }, done)),
  );
  await all[0];
  await wait(50); // the others' have passed
  for (let i = 0; i < 3; i++) await new Promise((done) => setImmediate(done));
  open();
  for (const result of await Promise.all(all)) expect(result).toMatchObject({ errorClass: 'timeout' });
  expect(requests).toHaveLength(0);
});
