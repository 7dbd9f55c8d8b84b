// The cheapest gRPC client: HTTP/2 frames on a socket, with headers and bodies that were encoded once. A client library
// costs as much as the server and would hide it. Answers are counted, not decoded: a call that brings no message failed.
// RFC 9113 (frames, flow control), RFC 7541 (headers: literals without indexing only).
import { connect, type Socket } from 'node:net';

const DATA = 0;
const HEADERS = 1;
const RST_STREAM = 3;
const SETTINGS = 4;
const PING = 6;
const GOAWAY = 7;
const WINDOW_UPDATE = 8;
const END_STREAM = 1;
const END_HEADERS = 4;
const ACK = 1;
const MAX_FRAME = 16_384;
const WINDOW = 0x7fffffff;
const USUAL_WINDOW = 65_535;
const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n';

function frame(type: number, flags: number, stream: number, body: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(9 + body.length);
  bytes.writeUIntBE(body.length, 0, 3);
  bytes[3] = type;
  bytes[4] = flags;
  bytes.writeUInt32BE(stream, 5);
  bytes.set(body, 9);
  return bytes;
}

const uint32 = (value: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

/** A header whose name is in the static table at `index`, or is given; strings under 127 bytes. */
function literal(name: number | string, value: string): Buffer {
  const text = Buffer.from(value, 'latin1');
  const named =
    typeof name === 'number' ? Buffer.from([name]) : Buffer.from([0, name.length, ...Buffer.from(name)]);
  return Buffer.concat([named, Buffer.from([text.length]), text]);
}

/** The header block of a call. */
export function callHeaders(path: string, authorization: string): Buffer {
  return Buffer.concat([
    Buffer.from([0x83, 0x86]), // :method POST, :scheme http
    literal(4, path),
    literal(1, 'bench'),
    literal('content-type', 'application/grpc'),
    literal('te', 'trailers'),
    literal('authorization', authorization),
  ]);
}

/** A message as gRPC frames it. */
export function grpcMessage(message: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from([0]), uint32(message.length), message]);
}

/** As many as the product's server takes at once on a connection, which tells so in its settings. */
const MAX_STREAMS = 100;

type Stream = {
  /** How much may be sent now. */
  window: number;
  readonly unsent: { readonly bytes: Buffer; readonly isLast: boolean }[];
  /** What of the answers' bytes belongs to a message that is not complete. */
  missing: number;
  prefix: Buffer;
  messages: number;
  /** The answer's bytes, where they are wanted. */
  readonly kept: Buffer[] | undefined;
  readonly onMessages: (count: number) => void;
  readonly onEnd: (messages: number) => void;
};

export class RawGrpc {
  readonly #socket: Socket;
  readonly #streams = new Map<number, Stream>();
  readonly #waiting: (() => void)[] = [];
  #nextId = 1;
  #window = USUAL_WINDOW;
  #initialWindow = USUAL_WINDOW;
  #pending: Buffer = Buffer.alloc(0);
  #isCorked = false;
  #received = 0;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.write(PREFACE);
    socket.write(frame(SETTINGS, 0, 0, Buffer.concat([Buffer.from([0, 4]), uint32(WINDOW)])));
    socket.write(frame(WINDOW_UPDATE, 0, 0, uint32(WINDOW - USUAL_WINDOW)));
    socket.on('data', (chunk) => this.#read(chunk));
  }

  static connect(port: number): Promise<RawGrpc> {
    return new Promise((done, fail) => {
      const socket = connect({ host: '127.0.0.1', port, noDelay: true }, () => done(new RawGrpc(socket)));
      socket.once('error', fail);
    });
  }

  /** One unary call. Rejects when no message comes back. */
  unary(headers: Buffer, message: Buffer): Promise<void> {
    return new Promise((done, fail) => {
      const ended = (messages: number) => (messages === 1 ? done() : fail(new Error('a call was refused')));
      this.#whenFree(() => this.stream(headers, () => {}, ended).send(message, true));
    });
  }

  /** One unary call, for its answer. */
  ask(headers: Buffer, message: Buffer): Promise<Buffer> {
    const kept: Buffer[] = [];
    return new Promise((done, fail) => {
      const ended = (messages: number) =>
        messages === 1 ? done(Buffer.concat(kept).subarray(5)) : fail(new Error('a call was refused'));
      this.#whenFree(() => this.stream(headers, () => {}, ended, kept).send(message, true));
    });
  }

  /** A server ends the connection of a client that opens more than it may: while one stalls, calls wait here. */
  #whenFree(call: () => void): void {
    if (this.#streams.size < MAX_STREAMS) call();
    else this.#waiting.push(call);
  }

  /** A call of many messages; `onMessages` hears how many came back. */
  stream(
    headers: Buffer,
    onMessages: (count: number) => void,
    onEnd: (messages: number) => void,
    kept?: Buffer[],
  ) {
    const id = this.#nextId;
    this.#nextId += 2;
    const stream: Stream = {
      window: this.#initialWindow,
      unsent: [],
      missing: 0,
      prefix: Buffer.alloc(0),
      messages: 0,
      kept,
      onMessages,
      onEnd,
    };
    this.#streams.set(id, stream);
    this.#write(frame(HEADERS, END_HEADERS, id, headers));
    return {
      send: (bytes: Buffer, isLast: boolean) => {
        stream.unsent.push({ bytes, isLast });
        this.#flush(id, stream);
      },
    };
  }

  close(): void {
    this.#socket.destroy();
  }

  /** What is written in one turn goes out in one piece. */
  #write(bytes: Buffer): void {
    if (!this.#isCorked) {
      this.#isCorked = true;
      this.#socket.cork();
      setImmediate(() => {
        this.#isCorked = false;
        this.#socket.uncork();
      });
    }
    this.#socket.write(bytes);
  }

  #flush(id: number, stream: Stream): void {
    while (stream.unsent.length > 0) {
      const { bytes, isLast } = stream.unsent[0]!;
      const size = Math.min(bytes.length, MAX_FRAME, stream.window, this.#window);
      if (size <= 0) return;
      stream.window -= size;
      this.#window -= size;
      const isAll = size === bytes.length;
      this.#write(frame(DATA, isAll && isLast ? END_STREAM : 0, id, bytes.subarray(0, size)));
      if (isAll) stream.unsent.shift();
      else stream.unsent[0] = { bytes: bytes.subarray(size), isLast };
    }
  }

  #flushAll(): void {
    for (const [id, stream] of this.#streams) if (stream.unsent.length > 0) this.#flush(id, stream);
  }

  #read(chunk: Buffer): void {
    let bytes = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    while (bytes.length >= 9) {
      const length = bytes.readUIntBE(0, 3);
      if (bytes.length < 9 + length) break;
      const [type, flags, id] = [bytes[3]!, bytes[4]!, bytes.readUInt32BE(5)];
      this.#handle(type, flags, id, bytes.subarray(9, 9 + length));
      bytes = bytes.subarray(9 + length);
    }
    this.#pending = bytes;
  }

  #handle(type: number, flags: number, id: number, body: Buffer): void {
    const stream = this.#streams.get(id);
    switch (type) {
      case DATA:
        this.#received += body.length;
        if (this.#received > WINDOW / 2) {
          this.#write(frame(WINDOW_UPDATE, 0, 0, uint32(this.#received)));
          this.#received = 0;
        }
        stream?.kept?.push(Buffer.from(body));
        if (stream !== undefined) countMessages(stream, body);
        break;
      case SETTINGS:
        if ((flags & ACK) === 0) this.#settings(body);
        break;
      case PING:
        if ((flags & ACK) === 0) this.#write(frame(PING, ACK, 0, body));
        break;
      case WINDOW_UPDATE:
        if (id === 0) this.#window += body.readUInt32BE();
        else if (stream !== undefined) stream.window += body.readUInt32BE();
        this.#flushAll();
        break;
      case GOAWAY:
        throw new Error(`the server closes the connection: HTTP/2 error ${body.readUInt32BE(4)}`);
    }
    const isOver = type === RST_STREAM || ((type === DATA || type === HEADERS) && (flags & END_STREAM) !== 0);
    if (stream === undefined || !isOver) return;
    this.#streams.delete(id);
    stream.onEnd(stream.messages);
    if (this.#streams.size < MAX_STREAMS) this.#waiting.shift()?.();
  }

  #settings(body: Buffer): void {
    for (let at = 0; at + 6 <= body.length; at += 6) {
      if (body.readUInt16BE(at) !== 4) continue; // SETTINGS_INITIAL_WINDOW_SIZE
      const window = body.readUInt32BE(at + 2);
      for (const stream of this.#streams.values()) stream.window += window - this.#initialWindow;
      this.#initialWindow = window;
    }
    this.#write(frame(SETTINGS, ACK, 0, Buffer.alloc(0)));
    this.#flushAll();
  }
}

/** Counts the messages of an answer as they become complete. */
function countMessages(stream: Stream, body: Buffer): void {
  let at = 0;
  let count = 0;
  while (at < body.length) {
    if (stream.missing > 0) {
      const step = Math.min(stream.missing, body.length - at);
      stream.missing -= step;
      at += step;
      if (stream.missing === 0) count++;
      continue;
    }
    const step = Math.min(5 - stream.prefix.length, body.length - at);
    stream.prefix = Buffer.concat([stream.prefix, body.subarray(at, at + step)]);
    at += step;
    if (stream.prefix.length < 5) break;
    stream.missing = stream.prefix.readUInt32BE(1);
    stream.prefix = Buffer.alloc(0);
    if (stream.missing === 0) count++;
  }
  stream.messages += count;
  if (count > 0) stream.onMessages(count);
}
