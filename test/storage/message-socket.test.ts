// Messages of Postgres's protocol in every way that TCP may cut them, over a real connection.
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { createMessageSocket } from '../../src/storage/message-socket.ts';

let server: Server;
let socket: Socket;
let peer: Socket;
afterEach(() => {
  socket.destroy();
  peer.destroy();
  server.close();
});

/** Connects `socket` to `peer`, which sends each piece by itself. */
async function connect(): Promise<void> {
  server = createServer({ noDelay: true }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  socket = createMessageSocket();
  socket.connect((server.address() as AddressInfo).port, '127.0.0.1');
  [peer] = (await once(server, 'connection')) as [Socket];
}

/** A message whose bytes tell where in it they are. */
function message(kind: string, size: number): Buffer {
  const bytes = Buffer.alloc(5 + size);
  bytes.write(kind, 'latin1');
  bytes.writeUInt32BE(4 + size, 1);
  for (let i = 0; i < size; i++) bytes[5 + i] = (i * 31 + size) & 0xff;
  return bytes;
}

/** The messages that come until so many are there; throws where a 'data' does not end with one. */
function receive(count: number): Promise<Buffer[]> {
  const messages: Buffer[] = [];
  return new Promise((done, fail) => {
    socket.on('error', fail);
    socket.on('data', (data: Buffer) => {
      let at = 0;
      while (at < data.length) {
        const end = at + 1 + data.readUInt32BE(at + 1);
        if (end > data.length) return fail(new Error(`${end - data.length} bytes of a message are missing`));
        messages.push(Buffer.from(data.subarray(at, end)));
        at = end;
      }
      if (messages.length === count) done(messages);
    });
  });
}

/** Pieces of these sizes, again and again. */
function* cut(bytes: Buffer, sizes: readonly number[]): Generator<Buffer> {
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length]!;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

async function send(bytes: Buffer, sizes: readonly number[]): Promise<void> {
  for (const piece of cut(bytes, sizes)) {
    if (!peer.write(piece)) await once(peer, 'drain');
    await new Promise(setImmediate); // the next piece is a read of its own, as far as TCP lets it be
  }
}

test.each([
  { what: 'bytes one by one', sizes: [1], messages: [0, 1, 4, 0, 7, 200] },
  { what: 'headers in two', sizes: [3, 2, 9], messages: [9, 9, 9, 0, 9, 100, 0] },
  { what: 'many in one', sizes: [60_000], messages: Array.from({ length: 3_000 }, (_, i) => i % 90) },
  {
    what: 'larger ones than what is read at once',
    sizes: [50_000, 7],
    messages: [65_531, 65_532, 300_000, 3, 65_536, 0],
  },
  {
    what: 'larger ones than what is kept, and small ones after',
    sizes: [100_000],
    messages: [3_000_000, 1, 1_500_000, 70_000, 2],
  },
])('messages arrive whole and in order: $what', async ({ sizes, messages: lengths }) => {
  await connect();
  const sent = lengths.map((length, i) => message(i % 2 === 0 ? 'D' : 'Z', length));
  const received = receive(sent.length);
  await send(Buffer.concat(sent), sizes);
  expect(Buffer.concat(await received).equals(Buffer.concat(sent))).toBe(true);
});

test('all that comes is read into the same memory', async () => {
  await connect();
  const places = new Set<ArrayBufferLike>();
  socket.on('data', (data: Buffer) => places.add(data.buffer));
  const received = receive(400);
  await send(Buffer.concat(Array.from({ length: 400 }, () => message('D', 20_000))), [33_333]);
  await received;
  expect(places.size).toBe(1);
});

test('what was needed for a large message is given back after it', async () => {
  await connect();
  const received = receive(2);
  const sizes: number[] = [];
  socket.on('data', (data: Buffer) => sizes.push(data.buffer.byteLength));
  await send(Buffer.concat([message('D', 5_000_000), message('Z', 1)]), [5_000_005, 6]);
  await received;
  expect(sizes[0]).toBeGreaterThan(5_000_000);
  const next = once(socket, 'data');
  await send(message('Z', 1), [6]);
  await next;
  expect(sizes.at(-1)).toBe(64 * 1024);
});

test('the end of a connection is told', async () => {
  await connect();
  socket.on('data', () => {});
  const ended = once(socket, 'end');
  peer.end(message('Z', 1).subarray(0, 3));
  await ended;
});

test.each([
  ['another protocol', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
  ['a length that is none', Buffer.from([0x44, 0, 0, 0, 3, 0])],
  ['a length that nothing has', Buffer.from([0x44, 0xff, 0xff, 0xff, 0xff, 0])],
])('%s is an error, and no memory is taken for it', async (_, bytes) => {
  await connect();
  const heard: Buffer[] = [];
  socket.on('data', (data) => heard.push(data));
  const failed = once(socket, 'error');
  const before = process.memoryUsage().arrayBuffers;
  peer.write(bytes);
  expect(String(await failed)).toContain('not the protocol of Postgres');
  expect(heard).toEqual([]);
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(10e6);
});
