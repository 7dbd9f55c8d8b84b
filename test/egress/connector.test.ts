// What becomes of a connection between the moment it is made and the moment its address is checked.
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { Worker } from 'node:worker_threads';
import { expect, onTestFinished, test } from 'vitest';
import { createConnect } from '../../src/egress/connector.ts';
import { createAddressGuard } from '../../src/egress/guard.ts';
import { createResolver } from '../../src/egress/resolver.ts';
import { createSender } from '../../src/egress/sender.ts';
import { sendTo } from '../support/send.ts';

/** States of a connection that both threads know. */
const CONNECTED = 1;
const RESET = 2;

/** Resets each connection once its client has it, and says so. */
const RESETTING = `
  const { createServer } = require('node:net');
  const { parentPort, workerData: state } = require('node:worker_threads');
  const server = createServer((socket) => {
    Atomics.wait(state, 0, 0);
    socket.resetAndDestroy();
    Atomics.store(state, 0, ${RESET});
    Atomics.notify(state, 0);
  });
  server.listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port));
`;

test('a connection that was reset before its address could be checked was reset, not refused', async () => {
  const state = new Int32Array(new SharedArrayBuffer(4));
  const server = new Worker(RESETTING, { eval: true, workerData: state });
  const [port] = (await once(server, 'message')) as [number];
  let address: string | undefined = 'never connected';
  const onSocket = (message: unknown) => {
    const { socket } = message as { readonly socket: Socket };
    socket.once('connect', () => {
      Atomics.store(state, 0, CONNECTED);
      Atomics.notify(state, 0);
      Atomics.wait(state, 0, CONNECTED);
      address = socket.remoteAddress;
    });
  };
  subscribe('net.client.socket', onSocket);
  const connect = createConnect(createAddressGuard(['127.0.0.0/8']), createResolver([]));
  await using sender = createSender(connect, () => performance.now());
  const result = await sendTo(sender, new URL(`http://127.0.0.1:${port}`));
  unsubscribe('net.client.socket', onSocket);
  await server.terminate();
  expect(address).toBeUndefined(); // the kernel does not know any more whose it was
  expect(result).toMatchObject({ kind: 'failure', errorClass: 'connect_reset' });
});

/** A peer that does this with each connection; gives connections to it, as the sender has them. */
async function connectorTo(onConnection: (socket: Socket) => void): Promise<() => Promise<Socket>> {
  const server = createServer(onConnection);
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  onTestFinished(() => void server.close());
  const { port } = server.address() as AddressInfo;
  const connect = createConnect(createAddressGuard(['127.0.0.0/8']), createResolver([]))(undefined);
  const options = { hostname: '127.0.0.1', port: String(port), protocol: 'http:' };
  return () =>
    new Promise<Socket>((done, fail) =>
      connect(options, (error, opened) => (error === null ? done(opened) : fail(error))),
    );
}

test('a read of a few bytes takes no memory of its own', async () => {
  const open = await connectorTo((socket) => void socket.end('ten bytes.'));
  const chunks: Buffer[] = [];
  for (let i = 0; i < 3; i++) {
    const socket = await open();
    chunks.push(((await once(socket, 'data')) as [Buffer])[0]);
    socket.destroy();
  }
  expect(chunks.map(String)).toEqual(Array(3).fill('ten bytes.'));
  // Of three in a row, two neighbours at least lie in the same pool.
  expect(new Set(chunks.map(({ buffer }) => buffer)).size).toBeLessThan(3);
});

test('a connection takes from its peer what its reader has room for, and all of it in the end', async () => {
  const piece = 64 * 1024;
  const sent = Buffer.alloc(100 * piece);
  for (let i = 0; i < sent.length; i += 4) sent.writeUInt32LE(i, i);
  const open = await connectorTo((socket) => void socket.end(sent));
  const socket = await open();
  const chunks: Buffer[] = [];
  let read = 0;
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    read += chunk.length;
    // Turns in which more could be read, a piece in each.
    for (let turn = 0; turn < 10; turn++) await new Promise((done) => setImmediate(done));
    expect(socket.bytesRead - read).toBeLessThanOrEqual(3 * piece);
  }
  expect(Buffer.concat(chunks).equals(sent)).toBe(true);
});
