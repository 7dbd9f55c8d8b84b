// Receivers that do what a receiver should not: raw TCP and TLS servers, each with one behaviour, and what must come of
// it. They clean up after themselves: a connection that is gone is not written to any more.

import { fork } from 'node:child_process';
import type { AddressInfo } from 'node:net';
import { createServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer, type TLSSocket } from 'node:tls';
import { gzipSync } from 'node:zlib';
import type { ErrorClass } from '../../src/domain/delivery.ts';
import type { Pair } from './certificates.ts';

/** `response`: an answer came and its status counts, whatever else was wrong. */
export type Expected = ErrorClass | 'response';

export type Behaviour = {
  readonly name: string;
  readonly expected: readonly Expected[];
  /** https, with a certificate that nobody trusts, unless said otherwise. */
  readonly tls?: boolean;
  /** Called for each connection, and with what came on it once it has the whole head of a request. */
  readonly connected?: (socket: Socket) => void;
  readonly requested?: (socket: Socket) => void;
};

const every = (socket: Socket, ms: number, write: () => void): void => {
  const timer = setInterval(() => (socket.destroyed ? clearInterval(timer) : write()), ms);
  socket.once('close', () => clearInterval(timer));
};
/** Writes as fast as the other side reads. */
const pour = (socket: Socket, chunk: Buffer): void => {
  const go = () => {
    while (!socket.destroyed && socket.write(chunk));
  };
  socket.on('drain', go);
  go();
};
const answer = (text: string) => (socket: Socket) => void socket.write(text);
const answerAndEnd = (text: string) => (socket: Socket) => void socket.end(text);
const HEAD = 'HTTP/1.1 200 OK\r\n';
const KB = Buffer.alloc(1024, 'a');
const MB = Buffer.alloc(1024 * 1024, 'b');
const BOMB = gzipSync(Buffer.alloc(20 * 1024 * 1024));

export const BEHAVIOURS: readonly Behaviour[] = [
  // Silence.
  { name: 'takes the connection and says nothing', expected: ['timeout'] },
  { name: 'says nothing after the request', expected: ['timeout'], requested: () => {} },
  { name: 'stops in the status line', expected: ['timeout'], requested: answer('HTTP/1.1 20') },
  { name: 'stops in the headers', expected: ['timeout'], requested: answer(`${HEAD}content-type: te`) },
  {
    name: 'stops in the body',
    expected: ['timeout'],
    requested: answer(`${HEAD}content-length: 10\r\n\r\nabc`),
  },
  {
    name: 'stops in a chunk',
    expected: ['timeout'],
    requested: answer(`${HEAD}transfer-encoding: chunked\r\n\r\nff\r\nabc`),
  },
  { name: 'never ends a body without length', expected: ['timeout'], requested: answer(`${HEAD}\r\nabc`) },
  { name: 'does not read', expected: ['timeout'], connected: (s) => s.pause() },
  // Drops.
  { name: 'closes at once', expected: ['connect_reset'], connected: (s) => s.end() },
  { name: 'resets at once', expected: ['connect_reset'], connected: (s) => s.resetAndDestroy() },
  { name: 'closes after the request', expected: ['connect_reset'], requested: (s) => s.end() },
  { name: 'resets after the request', expected: ['connect_reset'], requested: (s) => s.resetAndDestroy() },
  {
    name: 'closes in the status line',
    expected: ['connect_reset', 'protocol'],
    requested: answerAndEnd('HTTP/1.1 2'),
  },
  {
    name: 'closes in the headers',
    expected: ['connect_reset', 'protocol'],
    requested: answerAndEnd(`${HEAD}a: b`),
  },
  {
    name: 'closes in the body',
    expected: ['connect_reset', 'protocol'],
    requested: answerAndEnd(`${HEAD}content-length: 10\r\n\r\nabc`),
  },
  {
    name: 'resets in the body',
    expected: ['connect_reset'],
    requested: (s) => {
      s.write(`${HEAD}content-length: 10\r\n\r\nabc`, () => setTimeout(() => s.resetAndDestroy(), 20));
    },
  },
  // Drips.
  {
    name: 'drips the status line',
    expected: ['timeout', 'protocol'],
    requested: (s) => every(s, 100, () => s.write('H')),
  },
  {
    name: 'drips headers',
    expected: ['timeout'],
    requested: (s) => {
      s.write(HEAD);
      every(s, 100, () => s.write('a: b\r\n'));
    },
  },
  {
    name: 'drips the body',
    expected: ['timeout'],
    requested: (s) => {
      s.write(`${HEAD}content-length: 100000\r\n\r\n`);
      every(s, 100, () => s.write('a'));
    },
  },
  {
    name: 'drips chunks',
    expected: ['timeout'],
    requested: (s) => {
      s.write(`${HEAD}transfer-encoding: chunked\r\n\r\n`);
      every(s, 100, () => s.write('1\r\na\r\n'));
    },
  },
  {
    name: 'says 100 Continue for ever',
    expected: ['timeout', 'connect_reset', 'protocol'],
    requested: (s) => every(s, 50, () => s.write('HTTP/1.1 100 Continue\r\n\r\n')),
  },
  {
    name: 'says 103 Early Hints for ever',
    expected: ['timeout', 'connect_reset', 'protocol'],
    requested: (s) => every(s, 50, () => s.write('HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n')),
  },
  // Too much.
  {
    name: 'sends an endless body',
    expected: ['response'],
    requested: (s) => {
      s.write(`${HEAD}\r\n`);
      pour(s, KB);
    },
  },
  {
    name: 'sends 10 GB as it said',
    expected: ['response'],
    requested: (s) => {
      s.write(`${HEAD}content-length: 10000000000\r\n\r\n`);
      pour(s, MB);
    },
  },
  {
    name: 'sends endless chunks',
    expected: ['response'],
    requested: (s) => {
      s.write(`${HEAD}transfer-encoding: chunked\r\n\r\n`);
      pour(s, Buffer.concat([Buffer.from('400\r\n'), KB, Buffer.from('\r\n')]));
    },
  },
  {
    name: 'sends endless headers',
    expected: ['protocol'],
    requested: (s) => {
      s.write(HEAD);
      pour(s, Buffer.from(`x: ${'y'.repeat(1000)}\r\n`));
    },
  },
  {
    name: 'sends one endless header',
    expected: ['protocol'],
    requested: (s) => {
      s.write(`${HEAD}x: `);
      pour(s, KB);
    },
  },
  {
    name: 'sends an endless reason phrase',
    expected: ['protocol', 'timeout'],
    requested: (s) => {
      s.write('HTTP/1.1 200 ');
      pour(s, KB);
    },
  },
  {
    name: 'sends a gzip bomb',
    expected: ['response'],
    requested: (s) => {
      s.write(`${HEAD}content-encoding: gzip\r\ncontent-length: ${BOMB.length}\r\n\r\n`);
      s.end(BOMB);
    },
  },
  // Not HTTP.
  {
    name: 'speaks another protocol',
    expected: ['protocol'],
    connected: answer('220 mail.example.com ESMTP\r\n'),
  },
  {
    name: 'sends random bytes',
    expected: ['protocol'],
    requested: (s) => void s.end(Buffer.alloc(4096, 0xfe)),
  },
  {
    name: 'answers with HTTP/2',
    expected: ['protocol'],
    requested: (s) => void s.end(Buffer.from('0000000400000000', 'hex')),
  },
  {
    name: 'answers with status 99999',
    expected: ['protocol'],
    requested: answerAndEnd('HTTP/1.1 99999 X\r\n\r\n'),
  },
  {
    name: 'answers with a status that is a word',
    expected: ['protocol'],
    requested: answerAndEnd('HTTP/1.1 abc X\r\n\r\n'),
  },
  {
    name: 'gives two lengths',
    expected: ['protocol'],
    requested: answerAndEnd(`${HEAD}content-length: 3\r\ncontent-length: 5\r\n\r\nabc`),
  },
  {
    name: 'gives a negative length',
    expected: ['protocol'],
    requested: answerAndEnd(`${HEAD}content-length: -1\r\n\r\n`),
  },
  {
    name: 'gives a chunk size that is none',
    expected: ['protocol'],
    requested: answerAndEnd(`${HEAD}transfer-encoding: chunked\r\n\r\nzz\r\nabc`),
  },
  {
    name: 'puts a NUL into a header',
    expected: ['protocol'],
    requested: answerAndEnd(`${HEAD}a: b\0c\r\n\r\n`),
  },
  {
    name: 'sends more than it said',
    expected: ['response', 'protocol', 'connect_reset'],
    requested: answerAndEnd(`${HEAD}content-length: 1\r\n\r\nabcdef`),
  },
  // Redirects.
  {
    name: 'redirects to itself',
    expected: ['response'],
    requested: answerAndEnd('HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n'),
  },
  {
    name: 'redirects to a private address',
    expected: ['response'],
    requested: answerAndEnd(
      'HTTP/1.1 307 X\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n',
    ),
  },
  // TLS.
  { name: 'has a certificate that nobody signed', expected: ['tls'], tls: true },
  {
    name: 'speaks plain text where TLS is expected',
    expected: ['tls', 'connect_reset', 'protocol'],
    tls: true,
    connected: answer('HTTP/1.1 200 OK\r\n\r\n'),
  },
  { name: 'hangs in the TLS handshake', expected: ['timeout'], tls: true, connected: () => {} },
  {
    name: 'resets in the TLS handshake',
    expected: ['tls', 'connect_reset'],
    tls: true,
    connected: (s) => void s.once('data', () => s.resetAndDestroy()),
  },
];

/** What an ordinary endpoint with long answers does: to warm a process up. */
const ORDINARY: Behaviour = {
  name: 'answers with 64 KiB',
  expected: ['response'],
  requested: answer(`${HEAD}content-length: 65536\r\n\r\n${'x'.repeat(65536)}`),
};

/** Starts a receiver with a behaviour on loopback and returns its URL. `pair`: a certificate that the sender does not trust. */
async function startHostile(behaviour: Behaviour, pair: Pair): Promise<string> {
  const onSocket = (socket: Socket | TLSSocket) => {
    socket.on('error', () => socket.destroy());
    if (behaviour.connected !== undefined) {
      behaviour.connected(socket);
      return;
    }
    let head = '';
    socket.on('data', (chunk) => {
      if (head.includes('\r\n\r\n')) return;
      head += chunk.toString('latin1');
      if (head.includes('\r\n\r\n')) behaviour.requested?.(socket);
    });
  };
  const isPlain = behaviour.tls !== true || behaviour.connected !== undefined;
  const server: Server = isPlain ? createServer(onSocket) : createTlsServer(pair, onSocket);
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const { port } = server.address() as AddressInfo;
  return `${behaviour.tls === true ? 'https' : 'http'}://127.0.0.1:${port}`;
}

export type HostileReceivers = AsyncDisposable & {
  /** The URL of each behaviour, in the order of BEHAVIOURS. */
  readonly urls: readonly string[];
  /** The URL of an ordinary receiver whose answers have 64 KiB. */
  readonly ordinaryUrl: string;
};

/** Starts all of them in a process of their own, so that what they do costs the sender's process nothing. */
export async function startHostileReceivers(pair: Pair): Promise<HostileReceivers> {
  const child = fork(new URL(import.meta.url), [], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  child.send(pair);
  const urls = await new Promise<string[]>((done, fail) => {
    child.once('message', (message) => done(message as string[]));
    child.once('exit', (code) => fail(new Error(`the hostile receivers ended with ${code}`)));
  });
  return {
    urls: urls.slice(0, -1),
    ordinaryUrl: urls[urls.length - 1]!,
    async [Symbol.asyncDispose]() {
      const ended = new Promise((done) => child.once('exit', done));
      child.kill('SIGKILL');
      await ended;
    },
  };
}

// Run as a program, it serves all behaviours until its parent goes.
if (process.argv[1] === new URL(import.meta.url).pathname) {
  process.once('message', async (pair) => {
    process.send?.(
      await Promise.all([...BEHAVIOURS, ORDINARY].map((behaviour) => startHostile(behaviour, pair as Pair))),
    );
  });
  process.on('disconnect', () => process.exit(0));
}
