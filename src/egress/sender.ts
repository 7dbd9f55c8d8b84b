// Sends signed requests with undici: one pool an origin, a total deadline, a capped body, no redirects, no inflating.
// `Pool.dispatch` costs 43 µs a request where `fetch` costs 300 (design, section 6).
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { Socket } from 'node:net';
import { Client, type Dispatcher, Pool } from 'undici';
import type { EndpointTls } from '../domain/credentials.ts';
import type { AttemptTiming, ErrorClass, SendOutcome } from '../domain/delivery.ts';
import { type Connect, type ConnectionTiming, timingOf } from './connector.ts';
import { createOverdue, type Overdue } from './overdue.ts';

/** How much of a response body is kept. */
export const MAX_RESPONSE_BYTES = 64 * 1024;
/** How much of a response's headers is kept: names and values. */
const MAX_HEADER_BYTES = 4 * 1024;
/**
 * How much may come before the head of a response is complete. The parser bounds headers (16 KiB) but no status line: an
 * endless one cost 60 MB of garbage a second. It is looked at with every piece that comes: in one turn of the event loop up to
 * 32 pieces of 64 KiB are read from each connection.
 */
const MAX_HEAD_BYTES = 128 * 1024;
const MAX_POOLS = 2_000;
const KEEP_ALIVE_MS = 30_000;
const POOL_IDLE_MS = 120_000;
const NO_BODY = Buffer.alloc(0);
/** A deadline that is noticed this much later than it was: meanwhile nothing of this process ran. */
const STALL_MS = 1_000;

/** A request, signed and ready. */
export type SignedRequest = {
  readonly origin: string;
  /** Path and query. */
  readonly path: string;
  /** Names and values in turn. */
  readonly headers: string[];
  readonly body: Buffer;
  /** From now to the end of the response. */
  readonly timeoutMs: number;
  /** Names the identity in `tls`: requests of different ones never share a connection. */
  readonly tlsId: string;
  readonly tls: EndpointTls | undefined;
};

/** undici says here, right after a request started, which connection it goes out on. */
const SEND_HEADERS = 'undici:client:sendHeaders';

/** Sends requests. Disposing it waits for nothing: end what is in flight first. */
export type Sender = AsyncDisposable & {
  /** Sends one request; `done` is called exactly once, within a second of the deadline at the latest: what comes after it does not count. */
  readonly send: (request: SignedRequest, done: (result: SendOutcome) => void) => void;
  /** Origins with an open pool. */
  readonly poolCount: () => number;
};

type OpenPool = { readonly pool: Pool; inFlight: number; usedAtMs: number };

/** `now` is a monotonic clock in ms. */
export function createSender(connect: Connect, now: () => number): Sender {
  const usual = connect(undefined);
  const pools = new Map<string, OpenPool>(); // in the order of last use
  const sweep = setInterval(() => closeIdle(now() - POOL_IDLE_MS), POOL_IDLE_MS / 2);
  sweep.unref();
  /** Connections that have carried a request. */
  const carriers = new WeakMap<Socket, Carrier>();
  /** The exchange whose headers are about to be sent, in this very turn. */
  let starting: Exchange | undefined;
  const onSendHeaders = (message: unknown) => {
    const exchange = starting;
    starting = undefined;
    if (exchange === undefined) return;
    const { socket } = message as { readonly socket: Socket };
    const used = carriers.get(socket);
    const carrier: Carrier = used ?? { waiting: undefined };
    carrier.waiting = exchange;
    exchange.goesOver(socket, carrier, timingOf(socket), used !== undefined);
    if (used !== undefined) return;
    carriers.set(socket, carrier);
    // Before the parser has what came.
    socket.prependListener('readable', () => carrier.waiting?.boundHead());
  };
  subscribe(SEND_HEADERS, onSendHeaders);
  const overdue = createOverdue(now);
  const deps: ExchangeDeps = {
    now,
    overdue,
    starts(exchange) {
      starting = exchange;
    },
  };

  function closeIdle(before: number): void {
    for (const [origin, open] of pools) {
      if (open.inFlight > 0 || open.usedAtMs > before) continue;
      pools.delete(origin);
      void open.pool.destroy();
    }
  }

  function poolOf({ origin, tlsId, tls }: SignedRequest): OpenPool {
    const key = tlsId === '' ? origin : `${origin} ${tlsId}`;
    const known = pools.get(key);
    if (known !== undefined) return known;
    if (pools.size >= MAX_POOLS) closeIdle(now());
    // Connections are bounded by the scheduler's caps on deliveries in flight, not a second time here.
    const pool = new Pool(origin, optionsFor(tls));
    const open = { pool, inFlight: 0, usedAtMs: now() };
    pools.set(key, open);
    return open;
  }

  const optionsFor = (tls: EndpointTls | undefined) => ({
    connect: tls === undefined ? usual : connect(tls),
    pipelining: 1,
    keepAliveTimeout: KEEP_ALIVE_MS,
    headersTimeout: 0,
    bodyTimeout: 0,
  });

  /**
   * An endpoint may close a kept-alive connection in the very moment a request goes out on it: that is nobody's failure,
   * and the request is sent once more at once, on a connection of its own, within the same deadline.
   */
  function sendAgain(request: SignedRequest, startedAtMs: number, done: (result: SendOutcome) => void): void {
    const client = new Client(request.origin, optionsFor(request.tls));
    const nowMs = now();
    const leftMs = Math.max(1, startedAtMs + request.timeoutMs - nowMs);
    const settle = ({ result }: Settled) => {
      void client.destroy();
      done(result);
    };
    dispatch(client, request, new Exchange(deps, leftMs, nowMs, settle));
  }

  return {
    poolCount: () => pools.size,
    send(request, done) {
      const startedAtMs = now();
      const open = poolOf(request);
      open.inFlight++;
      open.usedAtMs = startedAtMs;
      const exchange = new Exchange(deps, request.timeoutMs, startedAtMs, ({ result, isRace }) => {
        open.inFlight--;
        if (isRace) sendAgain(request, startedAtMs, done);
        else done(result);
      });
      dispatch(open.pool, request, exchange);
    },
    async [Symbol.asyncDispose]() {
      unsubscribe(SEND_HEADERS, onSendHeaders);
      clearInterval(sweep);
      overdue[Symbol.dispose]();
      await Promise.all([...pools.values()].map((open) => open.pool.destroy()));
      pools.clear();
    },
  };
}

function dispatch(to: Pool | Client, { path, headers, body }: SignedRequest, exchange: Exchange): void {
  to.dispatch({ path, method: 'POST', headers, body }, exchange);
}

/** `isRace`: a kept-alive connection was closed before a byte of the response came. */
type Settled = { readonly result: SendOutcome; readonly isRace: boolean };

/** A connection, and the exchange on it whose response's head is not complete. */
type Carrier = { waiting: Exchange | undefined };

type ExchangeDeps = {
  readonly now: () => number;
  readonly overdue: Overdue;
  /** Hears that an exchange starts, right before its headers are sent. */
  readonly starts: (exchange: Exchange) => void;
};

/** One request and its response. States: waiting → (response started →) (overdue →) settled, exactly once. */
class Exchange implements Dispatcher.DispatchHandler {
  readonly #deps: ExchangeDeps;
  readonly #settle: (settled: Settled) => void;
  readonly #timer: NodeJS.Timeout;
  readonly #startedAtMs: number;
  #socket: Socket | undefined;
  #carrier: Carrier | undefined;
  #bytesBefore = 0;
  #connection: ConnectionTiming | undefined;
  #isReused = false;
  #firstByteUs: number | undefined;
  #control: string | undefined;
  #headers: Record<string, string> = {};
  #controller: Dispatcher.DispatchController | undefined;
  #settled = false;
  #status = 0;
  #retryAfter: string | undefined;
  #chunks: Buffer[] = [];
  #bodyBytes = 0;
  /** Of one that is overdue: its result, whatever comes now. */
  #late: SendOutcome | undefined;

  constructor(
    deps: ExchangeDeps,
    timeoutMs: number,
    startedAtMs: number,
    settle: (settled: Settled) => void,
  ) {
    this.#deps = deps;
    this.#settle = settle;
    this.#startedAtMs = startedAtMs;
    // Timers run before sockets are read: what has come by its time counts, however late that is noticed.
    this.#timer = setTimeout(() => {
      const noticedAtMs = deps.now();
      setImmediate(() => this.#expire(timeoutMs, noticedAtMs));
    }, timeoutMs);
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#settled || this.#late !== undefined)
      controller.abort(new Error('the deadline passed while the request waited for a connection'));
    else this.#deps.starts(this);
  }

  /** Over a connection that was made for it, or that others were sent over before. */
  goesOver(
    socket: Socket,
    carrier: Carrier,
    connection: ConnectionTiming | undefined,
    isReused: boolean,
  ): void {
    this.#socket = socket;
    this.#carrier = carrier;
    this.#bytesBefore = socket.bytesRead;
    this.#isReused = isReused;
    if (!isReused) this.#connection = connection;
  }

  onResponseStarted(): void {
    this.#firstByteUs ??= Math.round((this.#deps.now() - this.#startedAtMs) * 1000);
  }

  /** Ends a response whose head goes on and on. */
  boundHead(): void {
    if ((this.#socket?.bytesRead ?? 0) - this.#bytesBefore <= MAX_HEAD_BYTES) return;
    const timing = this.#timing();
    this.#finish({ kind: 'failure', errorClass: 'protocol', message: MESSAGES.protocol, timing });
    this.#controller?.abort(new Error('the head of the response is too long'));
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: Record<string, string | string[] | undefined>,
  ): void {
    if (status < 200) return; // 1xx comes before the response itself
    this.#headEnds();
    this.#status = status;
    const value = headers['retry-after'];
    this.#retryAfter = Array.isArray(value) ? value[0] : value;
    const control = headers['webhook-delivery'];
    this.#control = Array.isArray(control) ? control[0] : control;
    this.#headers = keptHeaders(headers);
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    const room = MAX_RESPONSE_BYTES - this.#bodyBytes;
    if (chunk.length <= room) {
      this.#chunks.push(chunk);
      this.#bodyBytes += chunk.length;
      return;
    }
    this.#chunks.push(chunk.subarray(0, room));
    this.#bodyBytes += room;
    this.#respond();
    controller.abort(new Error('the rest of the response body is not wanted'));
  }

  onResponseEnd(): void {
    this.#respond();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    const errorClass = classify(error);
    const isRace = errorClass === 'connect_reset' && this.#isReused && this.#firstByteUs === undefined;
    const timing = this.#timing();
    this.#finish({ kind: 'failure', errorClass, message: MESSAGES[errorClass], timing }, isRace);
  }

  #headEnds(): void {
    if (this.#carrier?.waiting === this) this.#carrier.waiting = undefined;
  }

  #timing(): AttemptTiming {
    return { ...this.#connection, firstByteUs: this.#firstByteUs };
  }

  #respond(): void {
    const body = this.#bodyBytes === 0 ? NO_BODY : joined(this.#chunks, this.#bodyBytes);
    this.#finish({
      kind: 'response',
      status: this.#status,
      retryAfter: this.#retryAfter,
      control: this.#control,
      body,
      headers: this.#headers,
      timing: this.#timing(),
    });
  }

  #expire(timeoutMs: number, noticedAtMs: number): void {
    if (this.#settled) return;
    const isStalled = noticedAtMs - this.#startedAtMs - timeoutMs > STALL_MS;
    const message = `no complete response within ${timeoutMs / 1000} s`;
    const late: SendOutcome = isStalled
      ? { kind: 'stalled' }
      : { kind: 'failure', errorClass: 'timeout', message, timing: this.#timing() };
    this.#late = late;
    this.#deps.overdue.add(this.#startedAtMs + timeoutMs, () => {
      if (this.#settled) return;
      this.#finish(late);
      this.#controller?.abort(new Error(isStalled ? 'this process stood still past the deadline' : message));
    });
  }

  #finish(result: SendOutcome, isRace = false): void {
    if (this.#settled) return;
    this.#settled = true;
    clearTimeout(this.#timer);
    this.#headEnds();
    this.#settle(this.#late === undefined ? { result, isRace } : { result: this.#late, isRace: false });
  }
}

/** In memory of its own: a few bytes that wait to be recorded must not keep all that was read beside them. */
function joined(chunks: readonly Buffer[], length: number): Buffer {
  const all = Buffer.allocUnsafeSlow(length);
  let at = 0;
  for (const chunk of chunks) at += chunk.copy(all, at);
  return all;
}

/** Headers of a response as far as they are kept: whole ones, in their order. */
export function keptHeaders(headers: Record<string, string | string[] | undefined>): Record<string, string> {
  const kept: Record<string, string> = {};
  let bytes = 0;
  for (const name in headers) {
    const value = headers[name];
    if (value === undefined) continue;
    const text = Array.isArray(value) ? value.join(', ') : value;
    bytes += name.length + text.length;
    if (bytes > MAX_HEADER_BYTES) break;
    kept[name] = text;
  }
  return kept;
}

// Fixed sentences: a tenant learns what kind of failure it was and nothing about the network behind it.
const MESSAGES: Readonly<Record<ErrorClass, string>> = {
  http_status: 'the endpoint answered with a status that is not 2xx',
  redirect: 'the endpoint answered with a redirect, which is not followed',
  timeout: 'no connection or no response in time',
  connect_refused: 'the connection was refused',
  connect_reset: 'the connection was closed before the response was complete',
  dns: 'the host name could not be resolved',
  tls: 'the TLS handshake failed, or the certificate is not valid for this host',
  protocol: 'the response was not valid HTTP/1.1',
  blocked_address: 'the URL leads to an address that endpoints may not have',
  credentials: 'the credentials for the endpoint could not be had',
  internal: 'the request could not be sent',
};

const CLASS_OF_CODE: Readonly<Record<string, ErrorClass>> = {
  DISPATCH_BLOCKED_ADDRESS: 'blocked_address',
  ECONNREFUSED: 'connect_refused',
  EHOSTUNREACH: 'connect_refused',
  ENETUNREACH: 'connect_refused',
  EADDRNOTAVAIL: 'connect_refused',
  ECONNRESET: 'connect_reset',
  EPIPE: 'connect_reset',
  UND_ERR_SOCKET: 'connect_reset',
  ENOTFOUND: 'dns',
  EAI_AGAIN: 'dns',
  EAI_FAIL: 'dns',
  EAI_NODATA: 'dns',
  ETIMEDOUT: 'timeout',
  UND_ERR_CONNECT_TIMEOUT: 'timeout',
  UND_ERR_HEADERS_OVERFLOW: 'protocol',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'protocol',
  EPROTO: 'tls',
};
const TLS_CODE = /^(?:ERR_TLS|ERR_SSL|CERT_|UNABLE_TO_|SELF_SIGNED|DEPTH_ZERO|HOSTNAME_MISMATCH|ERR_OSSL)/;

function classify(error: Error): ErrorClass {
  for (let e: unknown = error; e instanceof Error; e = e.cause) {
    const code = 'code' in e && typeof e.code === 'string' ? e.code : '';
    const known = CLASS_OF_CODE[code];
    if (known !== undefined) return known;
    if (TLS_CODE.test(code)) return 'tls';
    // undici's parser errors have a name and no code; an impossible status fails one of its assertions.
    if (code.startsWith('HPE_') || e.name === 'HTTPParserError' || e.name === 'AssertionError')
      return 'protocol';
  }
  return 'internal';
}
