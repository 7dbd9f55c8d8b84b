// The gRPC port: grpc-js, with grpc.health.v1 and reflection. Only transport: every call goes through the call path.
import { dirname } from 'node:path';
import {
  create,
  type DescFile,
  type DescMessage,
  type DescMethod,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import {
  type handleBidiStreamingCall,
  type handleUnaryCall,
  Metadata,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerInterceptingCall,
  type ServerInterceptor,
  type ServerUnaryCall,
  type ServiceDefinition,
  type StatusObject,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { loadSync, type PackageDefinition } from '@grpc/proto-loader';
import { ReflectionService } from '@grpc/reflection';
import { HealthImplementation, protoPath as healthProto } from 'grpc-health-check';
import { DispatchError, invalidField } from '../domain/errors.ts';
import type { BoundService, CallPath, StreamHandler, TransportCall, UnaryHandler } from './call-path.ts';
import { CODE_NUMBER, statusBytes } from './errors.ts';
import { type ListenerOptions, openListener } from './listener.ts';

/** Largest request: a full batch. A single event is held to its own limit (1 MiB) by validation. */
export const MAX_REQUEST_BYTES = 4 * 1024 * 1024;
const MAX_STREAMS = 100;
/** Unanswered events of a stream at which reading stops, and at which it goes on. */
const STREAM_FULL = 1_000;
const STREAM_LOW = 500;

/** A listening server. */
export type RpcServer = {
  readonly port: number;
  /** Turns new calls away, lets those under way end, and closes; forcibly after `graceMs`. */
  readonly close: (graceMs: number) => Promise<void>;
};

/** Where and how a server listens. */
export type ServerAddress = Pick<ListenerOptions, 'host' | 'port' | 'maxConnections' | 'tls' | 'onReload'>;

export async function startGrpcServer(
  services: readonly BoundService[],
  path: CallPath,
  address: ServerAddress,
): Promise<RpcServer> {
  const server = new Server({
    interceptors: [adjust],
    'grpc.max_receive_message_length': MAX_REQUEST_BYTES,
    'grpc.max_concurrent_streams': MAX_STREAMS,
    'grpc.max_metadata_size': 16 * 1024,
    // Its statistics of every call are not served anywhere: /metrics has ours.
    'grpc.enable_channelz': 0,
    'grpc.max_connection_idle_ms': 300_000,
  });
  const health = new HealthImplementation({ '': 'SERVING' });
  for (const service of services) {
    server.addService(definitionOf(service), implementationOf(service, path));
    health.setStatus(service.desc.typeName, 'SERVING');
  }
  health.addToServer(server);
  addReflection(server, services);
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  let isStopped = false;
  const listener = await openListener({
    ...address,
    alpn: ['h2'],
    onSocket: (socket) => {
      // After a handshake that took its time: nothing was asked on it yet.
      if (isStopped) socket.destroy();
      else injector.injectConnection(socket);
    },
  });
  return {
    port: listener.port,
    close: (graceMs) =>
      new Promise((done) => {
        health.setStatus('', 'NOT_SERVING');
        const timer = setTimeout(() => {
          server.forceShutdown();
          for (const socket of listener.sockets) socket.destroy();
        }, graceMs);
        // Callers connect again as soon as they are told to go: not before no more connections are taken.
        const onStopped = () => {
          isStopped = true;
          server.tryShutdown(() => {});
          for (const socket of listener.sockets) if (socket.bytesRead === 0) socket.destroy();
        };
        // For injected connections tryShutdown calls back at once: the end of the last socket is what counts.
        void listener.close(onStopped).then(() => {
          clearTimeout(timer);
          done();
        });
      }),
  };
}

/** What grpc-js says INTERNAL to although the caller's bytes are what is wrong. */
const CALLERS_FAULT =
  /^(?:Failed to decompress message|Invalid grpc-timeout value|Error deserializing request)/;

const nothing = () => {};

/** How far grpc-js has read a call's message, and what it still has of the last. */
type Decoder = {
  readonly readMessageRemaining: number;
  readPartialMessage: Buffer[];
  readCompressFlag: Buffer;
};
const FLAGS = [Buffer.alloc(1, 0), Buffer.alloc(1, 1)] as const;

/**
 * Node and grpc-js keep the objects of a call that has ended until V8 collects all of its heap: with them, but for this and
 * `Undecoded`, all that was read together with the request, which is up to 64 KiB for a small one (ADR 0028).
 */
function letGoOf(call: object): void {
  const { decoder } = call as { readonly decoder: Decoder };
  decoder.readCompressFlag = FLAGS[decoder.readCompressFlag[0] === 1 ? 1 : 0];
  // A message that is still coming is put together of what came before.
  if (decoder.readMessageRemaining === 0) decoder.readPartialMessage = [];
}

/**
 * The call that grpc-js hands to the first interceptor, changed and handed on: statuses that it sends by itself pass through
 * it, and one more call around it would be made for every call.
 */
const adjust: ServerInterceptor = ({ responseStream }, call) => {
  // The address without the port, read once already: each property of an HTTP/2 session's socket goes through a proxy.
  const { remoteAddress = 'unknown' } = call.getConnectionInfo();
  call.getPeer = () => remoteAddress;
  const sendStatus = call.sendStatus.bind(call);
  call.sendStatus = (answer) => {
    const theirs = answer.code === status.INTERNAL && CALLERS_FAULT.test(String(answer.details));
    sendStatus(theirs ? { ...answer, code: status.INVALID_ARGUMENT } : answer);
    letGoOf(call);
  };
  if (!responseStream) {
    // The status is not held back until the only message was written: both leave in one write to the socket, not in two.
    const sendMessage = call.sendMessage.bind(call);
    call.sendMessage = (message, sent) => {
      sendMessage(message, nothing);
      sent();
    };
  }
  return call as ServerInterceptingCall;
};

/** Reflection describes the contract as buf compiled it, with all that it imports: proto-loader’s own descriptors lack the latter. */
function addReflection(server: Server, services: readonly BoundService[]): void {
  const files = new Map<string, Buffer>();
  const add = (file: DescFile): void => {
    if (files.has(file.name)) return;
    files.set(file.name, Buffer.from(toBinary(FileDescriptorProtoSchema, file.proto)));
    file.dependencies.forEach(add);
  };
  for (const service of services) add(service.desc.file);
  const health = loadSync(healthProto, { includeDirs: [dirname(healthProto)] });
  const contract = { format: '', type: {}, fileDescriptorProtos: [...files.values()] };
  const names = services.map((service) => service.desc.typeName);
  const definition = { ...health, contract } as PackageDefinition;
  new ReflectionService(definition, { services: [...names, 'grpc.health.v1.Health'] }).addToServer(server);
}

/** A request that is decoded when it is asked for, which is after its caller was authenticated. Keeps its bytes no longer. */
class Undecoded {
  readonly #schema: DescMessage;
  #bytes: Buffer | undefined;

  constructor(schema: DescMessage, bytes: Buffer) {
    this.#schema = schema;
    this.#bytes = bytes;
  }

  /** Once. INVALID_ARGUMENT for bytes that are not of the schema. */
  decode(): MessageShape<DescMessage> {
    const bytes = this.#bytes;
    if (bytes === undefined) throw new Error('a request is decoded once');
    this.drop();
    try {
      return fromBinary(this.#schema, bytes, { readUnknownFields: false });
    } catch {
      throw invalidField('', `the request is not a valid ${this.#schema.typeName} in protobuf`);
    }
  }

  /** For one that nobody decodes. */
  drop(): void {
    this.#bytes = undefined;
  }
}

function definitionOf(service: BoundService): ServiceDefinition {
  const entries = service.desc.methods.map((method) => [
    method.localName,
    {
      path: `/${service.desc.typeName}/${method.name}`,
      requestStream: method.methodKind === 'client_streaming' || method.methodKind === 'bidi_streaming',
      responseStream: method.methodKind === 'server_streaming' || method.methodKind === 'bidi_streaming',
      requestSerialize: (value: MessageShape<DescMessage>) => Buffer.from(toBinary(method.input, value)),
      requestDeserialize: (bytes: Buffer) => new Undecoded(method.input, bytes),
      responseSerialize: (value: MessageInitShape<DescMessage>) => encode(method.output, value),
      responseDeserialize: (bytes: Buffer) => fromBinary(method.output, bytes),
    },
  ]);
  return Object.fromEntries(entries);
}

function encode(schema: DescMessage, value: MessageInitShape<DescMessage>): Buffer {
  const bytes = toBinary(schema, create(schema, value));
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function implementationOf(service: BoundService, path: CallPath): UntypedServiceImplementation {
  const entries = service.desc.methods.map((method) => [
    method.localName,
    method.methodKind === 'unary'
      ? unary(method, service.unary(method), path)
      : bidirectional(method, service.stream(method), path),
  ]);
  return Object.fromEntries(entries);
}

function unary(
  method: DescMethod,
  handler: UnaryHandler,
  path: CallPath,
): handleUnaryCall<Undecoded, MessageInitShape<DescMessage>> {
  return (call, callback) => {
    const { request } = call;
    path
      .unary(method, handler, () => request.decode(), transportCall(call))
      .then(
        (answer) => callback(null, answer),
        (error: DispatchError) => {
          request.drop();
          callback(statusOf(error));
        },
      );
  };
}

function transportCall(
  call: ServerUnaryCall<Undecoded, unknown> | ServerDuplexStream<Undecoded, unknown>,
): TransportCall {
  const value = call.metadata.get('authorization')[0];
  return {
    authorization: value === undefined ? undefined : String(value),
    address: call.getPeer(),
    isLive: () => !call.cancelled,
  };
}

function statusOf(error: DispatchError): Partial<StatusObject> {
  const metadata = new Metadata();
  metadata.set('grpc-status-details-bin', Buffer.from(statusBytes(error)));
  return { code: CODE_NUMBER[error.code], details: error.message, metadata };
}

function bidirectional(
  method: DescMethod,
  handler: StreamHandler,
  path: CallPath,
): handleBidiStreamingCall<Undecoded, MessageInitShape<DescMessage>> {
  return (call) => {
    // Requests that come while the caller is authenticated wait in the stream.
    call.pause();
    let paused = false;
    let over = false;
    let maybeResume = () => {};
    const fail = (error: DispatchError) => {
      if (over) return;
      over = true;
      call.emit('error', statusOf(error));
    };
    const onAnswer = (answer: MessageInitShape<DescMessage>) => {
      if (over) return;
      call.write(answer);
      if (paused) maybeResume();
    };
    const opened = path.stream(method, handler, transportCall(call), onAnswer, (error) => {
      void opened.then((stream) => stream.closed(error));
      fail(error);
    });
    opened.then((stream) => {
      maybeResume = () => {
        // What is answered and not yet read by the client counts too: it must not pile up here.
        if (!paused || stream.outstanding() + call.writableLength > STREAM_LOW) return;
        paused = false;
        call.resume();
      };
      call.on('data', (request: Undecoded) => {
        if (over) return;
        try {
          stream.message(request.decode());
        } catch (error) {
          const shown =
            error instanceof DispatchError ? error : new DispatchError('INTERNAL', 'the stream failed');
          stream.closed(shown);
          fail(shown);
          return;
        }
        if (stream.outstanding() + call.writableLength >= STREAM_FULL) {
          paused = true;
          call.pause();
        }
      });
      call.on('drain', () => maybeResume());
      call.on('end', () => {
        void stream.end().then(() => {
          if (over) return;
          over = true;
          stream.closed(undefined);
          call.end();
        });
      });
      call.resume();
      call.on('cancelled', () => {
        if (over) return;
        over = true;
        stream.closed(new DispatchError('CANCELLED', 'the caller ended the stream'));
      });
    }, fail);
  };
}
