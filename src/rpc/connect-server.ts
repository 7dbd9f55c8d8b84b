// The HTTP port: Connect, gRPC-Web and gRPC by connect-node, over HTTP/1.1 and h2c on one port, with /healthz,
// /readyz and /metrics beside them. Only transport: every call goes through the call path.
import { createServer as createHttp1Server, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createHttp2Server } from 'node:http2';
import type { Socket } from 'node:net';
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodBiDiStreaming,
  type DescMethodUnary,
  type MessageInitShape,
  type MessageShape,
} from '@bufbuild/protobuf';
import {
  Code,
  ConnectError,
  type ConnectRouter,
  createContextKey,
  createContextValues,
  type HandlerContext,
} from '@connectrpc/connect';
import { errorToJson } from '@connectrpc/connect/protocol-connect';
import { compressionBrotli, compressionGzip, connectNodeAdapter } from '@connectrpc/connect-node';
import { DispatchError, type ErrorCode } from '../domain/errors.ts';
import type { BoundService, CallPath, StreamHandler, TransportCall, UnaryHandler } from './call-path.ts';
import { describeDecodeErrors } from './connect-errors.ts';
import { CODE_NUMBER, detailsOf, grpcMessage, statusBytes } from './errors.ts';
import { MAX_REQUEST_BYTES, type RpcServer, type ServerAddress } from './grpc-server.ts';
import { answerPage, type Pages } from './health-pages.ts';
import { openListener } from './listener.ts';

/** What both versions of HTTP share, in Node's compatibility API. */
type Request = IncomingMessage;
type Response = ServerResponse;

const HTTP2_PREFACE = 'PRI * HTTP/2.0';
const MAX_STREAMS = 100;
const MAX_TIMEOUT_MS = 24 * 3600 * 1000;
const STREAM_FULL = 1_000;
/** How long a new connection may take until it is known to speak HTTP/1.1 or HTTP/2. */
const PREFACE_MS = 10_000;
/** How long an HTTP/2 session may do nothing. */
const IDLE_MS = 300_000;
/**
 * How long HTTP/1.1 connections that are idle are kept when the server stops. There is no GOAWAY: a caller whose call
 * is under way when its connection is closed cannot know whether it was served. A response says that its connection
 * ends, and nothing of the caller's others: as long as one calls again within this time, all are kept.
 */
const LINGER_MS = 500;
/** A caller with more idle connections than it uses up in this time is closed under its calls. */
const MAX_LINGER_MS = 10_000;

export async function startConnectServer(
  services: readonly BoundService[],
  path: CallPath,
  pages: Pages,
  address: ServerAddress,
): Promise<RpcServer> {
  const shutdown = new AbortController();
  const rpc = connectNodeAdapter({
    routes: (router) => addRoutes(router, services, path),
    readMaxBytes: MAX_REQUEST_BYTES,
    maxTimeoutMs: MAX_TIMEOUT_MS,
    // Small answers, all errors among them, are not worth the CPU of compressing.
    compressMinBytes: 64 * 1024,
    jsonOptions: { ignoreUnknownFields: false },
    binaryOptions: { readUnknownFields: false },
    acceptCompression: [compressionGzip, compressionBrotli].map(callersFault),
    contextValues: (request) => createContextValues().set(PEER, peerOf(request as Request)),
    shutdownSignal: shutdown.signal,
    fallback: (request, response) =>
      answerPage(
        pages,
        request as Request,
        response as Response,
        'RPCs are POSTs to /dispatch.v1.<Service>/<Method>',
      ),
  });
  /** No more connections are taken. */
  let isStopped = false;
  /** When the last call over HTTP/1.1 came. */
  let calledAtMs = Number.NEGATIVE_INFINITY;
  const responses = new Set<Response>();
  const onRequest = async (request: Request, response: Response) => {
    if (request.httpVersionMajor === 1) {
      calledAtMs = performance.now();
      if (isStopped) response.shouldKeepAlive = false;
      responses.add(response);
      response.once('close', () => responses.delete(response));
    }
    try {
      // Before a byte of the body is read: connect-node decodes first.
      if (request.method === 'POST') await path.authenticate(request.headers.authorization, peerOf(request));
    } catch (error) {
      refuse(request, response, error instanceof DispatchError ? error : undefined);
      return;
    }
    try {
      rpc(request, response);
    } catch {
      // No usable Host header or path: connect-node throws before it has a handler to blame.
      response.writeHead(400, { 'content-type': 'text/plain' });
      response.end('the request has no valid host or path\n');
    }
  };
  const http1 = createHttp1Server(
    { headersTimeout: 15_000, requestTimeout: 60_000, keepAliveTimeout: 65_000 },
    onRequest,
  );
  const http2 = createHttp2Server({ settings: { maxConcurrentStreams: MAX_STREAMS } });
  // The compatibility API of http2 has the same requests and responses; its types differ in details not used here.
  http2.on('request', onRequest as never);
  // Node watches the deadlines of a server's connections from 'listening' on; this one never listens by itself.
  http1.emit('listening');
  const sessions = new Set<{ close: () => void; destroy: () => void }>();
  http2.on('session', (session) => {
    session.setTimeout(IDLE_MS, () => session.close());
    sessions.add(session);
    session.once('close', () => sessions.delete(session));
    if (isStopped) session.close();
    session.on('error', () => {}); // a client that breaks its session loses it; nothing of ours is lost
  });
  const serve = (socket: Socket, isHttp2: boolean) => (isHttp2 ? http2 : http1).emit('connection', socket);
  const listener = await openListener({
    ...address,
    alpn: ['h2', 'http/1.1'],
    onSocket: (socket, protocol) => {
      if (protocol !== undefined) serve(socket, protocol === 'h2');
      else sniff(socket, (isHttp2) => serve(socket, isHttp2));
    },
  });
  const { sockets } = listener;
  return {
    port: listener.port,
    close: (graceMs) =>
      new Promise((done) => {
        const timer = setTimeout(() => {
          shutdown.abort(new ConnectError('the server is shutting down', Code.Unavailable));
          for (const session of sessions) session.destroy();
          for (const socket of sockets) socket.destroy();
        }, graceMs);
        const closeIdle = () => {
          http1.close();
          http1.closeIdleConnections();
          http1.keepAliveTimeout = 1;
          for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy();
        };
        const linger = () => {
          const stoppedAtMs = performance.now();
          const lingerMs = Math.min(LINGER_MS, graceMs);
          const lingersUntilMs = stoppedAtMs + Math.min(MAX_LINGER_MS, graceMs / 2);
          const look = () => {
            const nowMs = performance.now();
            const leftMs = Math.max(stoppedAtMs, calledAtMs) + lingerMs - nowMs;
            if (leftMs > 0 && nowMs < lingersUntilMs) lookAgain(leftMs);
            else closeIdle();
          };
          // Once what has come was read: when this process had to wait for a core, a request may lie there for longer than that.
          const lookAgain = (afterMs: number) => setTimeout(() => setImmediate(look), afterMs).unref();
          lookAgain(lingerMs);
        };
        // Callers that are told to go connect again at once: nobody is told before no more connections are taken.
        const onStopped = () => {
          isStopped = true;
          for (const session of sessions) session.close(); // GOAWAY, then ends with its last stream
          // From now on each HTTP/1.1 response closes its connection, and says so.
          for (const response of responses) response.shouldKeepAlive = false;
          linger();
        };
        void listener.close(onStopped).then(() => {
          clearTimeout(timer);
          done();
        });
      }),
  };
}

const PEER = createContextKey('', { description: 'the caller’s IP address' });

const peerOf = (request: Request): string => request.socket?.remoteAddress ?? '';

/** A body that cannot be decompressed is its sender's mistake; connect-node says INTERNAL to some of them. */
function callersFault(compression: typeof compressionGzip): typeof compressionGzip {
  return {
    ...compression,
    decompress: async (bytes, maxBytes) => {
      try {
        return await compression.decompress(bytes, maxBytes);
      } catch (error) {
        const known = ConnectError.from(error);
        if (known.code !== Code.Internal) throw known;
        throw new ConnectError('the body cannot be decompressed', Code.InvalidArgument);
      }
    },
  };
}

/** HTTP statuses of what authentication can answer, as the Connect protocol has them. */
const HTTP_STATUS: Readonly<Partial<Record<ErrorCode, number>>> = {
  UNAUTHENTICATED: 401,
  RESOURCE_EXHAUSTED: 429,
  UNAVAILABLE: 503,
};

/** Answers a caller that is not known in the form of its protocol, without reading what it sent. */
function refuse(request: Request, response: Response, known: DispatchError | undefined): void {
  const error = known ?? new DispatchError('UNAVAILABLE', 'keys cannot be checked now; try again');
  const contentType = request.headers['content-type'] ?? '';
  // No writeHead(): over HTTP/2 that sends headers which do not end the stream, and gRPC clients pass over a status in those.
  if (contentType.startsWith('application/grpc')) {
    response.setHeader('content-type', contentType);
    response.setHeader('grpc-status', String(CODE_NUMBER[error.code]));
    response.setHeader('grpc-message', grpcMessage(error.message));
    response.setHeader('grpc-status-details-bin', Buffer.from(statusBytes(error)).toString('base64'));
    response.end();
    return;
  }
  response.statusCode = HTTP_STATUS[error.code] ?? 503;
  response.setHeader('content-type', 'application/json');
  if (request.httpVersionMajor === 1) response.setHeader('connection', 'close');
  response.end(JSON.stringify(errorToJson(toConnectError(error), undefined)));
}

/** Tells HTTP/2 from HTTP/1.1 by the first bytes, and puts them back. */
function sniff(socket: Socket, decided: (isHttp2: boolean) => void): void {
  // A first word that is never finished counts as silence.
  const timer = setTimeout(() => socket.destroy(), PREFACE_MS);
  socket.once('close', () => clearTimeout(timer));
  let seen: Buffer = Buffer.alloc(0);
  const look = (chunk: Buffer) => {
    seen = seen.length === 0 ? chunk : Buffer.concat([seen, chunk]);
    const head = seen.toString('latin1', 0, HTTP2_PREFACE.length);
    const maybe = HTTP2_PREFACE.startsWith(head);
    if (maybe && head.length < HTTP2_PREFACE.length) return;
    socket.off('data', look);
    socket.pause();
    clearTimeout(timer);
    socket.unshift(seen);
    decided(maybe);
    // HTTP/1.1 reads what was put back as it flows; an HTTP/2 session fetches it by itself.
    if (!maybe) socket.resume();
  };
  socket.on('data', look);
}

function addRoutes(router: ConnectRouter, services: readonly BoundService[], path: CallPath): void {
  for (const service of services) {
    for (const method of service.desc.methods) {
      if (method.methodKind === 'unary') {
        router.rpc(method as DescMethodUnary, unary(method, service.unary(method), path));
      } else if (method.methodKind === 'bidi_streaming') {
        router.rpc(method as DescMethodBiDiStreaming, bidirectional(method, service.stream(method), path));
      }
    }
  }
  describeDecodeErrors(router.handlers);
}

function unary(method: DescMethod, handler: UnaryHandler, path: CallPath) {
  return async (request: MessageShape<DescMessage>, context: HandlerContext) => {
    try {
      const answer = path.unary(method, handler, () => request, transportCall(context));
      return await unlessAborted(answer, context.signal);
    } catch (error) {
      throw wireError(error);
    }
  };
}

/** The answer, or the error of the deadline or the vanished client, whichever comes first. */
function unlessAborted<T>(answer: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    answer.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}

function transportCall(context: HandlerContext): TransportCall {
  return {
    authorization: context.requestHeader.get('authorization') ?? undefined,
    address: context.values.get(PEER),
    isLive: () => !context.signal.aborted,
  };
}

const wireError = (error: unknown): unknown =>
  error instanceof DispatchError ? toConnectError(error) : error;

function toConnectError(error: DispatchError): ConnectError {
  const connectError = new ConnectError(error.message, CODE_NUMBER[error.code]);
  connectError.details = detailsOf(error);
  return connectError;
}

function bidirectional(method: DescMethod, handler: StreamHandler, path: CallPath) {
  return async function* (
    requests: AsyncIterable<MessageShape<DescMessage>>,
    context: HandlerContext,
  ): AsyncGenerator<MessageInitShape<DescMessage>> {
    const answers: MessageInitShape<DescMessage>[] = [];
    let wake = () => {};
    let changed = new Promise<void>((resolve) => {
      wake = resolve;
    });
    const signal = () => {
      wake();
      changed = new Promise((resolve) => {
        wake = resolve;
      });
    };
    let stream: Awaited<ReturnType<CallPath['stream']>>;
    let ended = false;
    let failure: unknown;
    try {
      const onAnswer = (answer: MessageInitShape<DescMessage>) => {
        answers.push(answer);
        signal();
      };
      stream = await path.stream(method, handler, transportCall(context), onAnswer, (error) => {
        failure ??= error;
        ended = true;
        signal();
      });
    } catch (error) {
      throw wireError(error);
    }
    const reading = (async () => {
      for await (const request of requests) {
        if (ended) return;
        stream.message(request);
        while (stream.outstanding() + answers.length >= STREAM_FULL) await changed;
      }
      await stream.end();
    })()
      .catch((error) => {
        failure = error;
      })
      .finally(() => {
        ended = true;
        signal();
      });
    while (!ended || (answers.length > 0 && !(failure instanceof DispatchError))) {
      const answer = answers.shift();
      if (answer === undefined) await changed;
      else {
        yield create(method.output, answer);
        signal();
      }
    }
    if (failure instanceof DispatchError) {
      stream.closed(failure);
      throw wireError(failure);
    }
    await reading;
    const shown =
      failure === undefined
        ? undefined
        : new DispatchError('CANCELLED', 'the stream broke', { cause: failure });
    stream.closed(shown);
    if (failure !== undefined) throw failure;
  };
}
