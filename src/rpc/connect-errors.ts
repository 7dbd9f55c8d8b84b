// connect-node answers a body that it cannot decode before any of our code runs, with a message and no details.
// Those answers get the field violation that every other bad request has.
import { create, createRegistry, type DescMessage, type JsonValue, toBinary } from '@bufbuild/protobuf';
import type { ConnectRouter } from '@connectrpc/connect';
import { file_dispatch_v1_dead_letter_service } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { file_dispatch_v1_event } from '../../gen/dispatch/v1/event_pb.ts';
import { file_dispatch_v1_event_service } from '../../gen/dispatch/v1/event_service_pb.ts';
import { file_dispatch_v1_publish_service } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { file_dispatch_v1_subscription_service } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { file_dispatch_v1_tenant_service } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { BadRequestSchema } from '../../gen/google/rpc/error_details_pb.ts';
import { MAX_JSON_DEPTH } from '../domain/json.ts';
import { grpcMessage } from './errors.ts';
import { unreadableField } from './json-field.ts';

type Handlers = ConnectRouter['handlers'];
type Handler = Handlers[number];
type Request = Parameters<Handler>[0];

/** A body that keeps what was read of it, to say which field is wrong. */
type KeptBody = AsyncIterable<Uint8Array> & { readonly bytes: () => Buffer | undefined };

/** In larger ones the field that cannot be read is not looked for. */
const MAX_KEPT_BYTES = 128 * 1024;

/** Characters of a field's path: keys are the caller's, and as long as a caller likes. */
const MAX_PATH = 300;

/** One message of JSON as it is. */
const mayBeRead = (request: Request): request is Request & { readonly body: AsyncIterable<Uint8Array> } =>
  request.header.get('content-type')?.startsWith('application/json') === true &&
  request.header.get('content-encoding') === null &&
  typeof request.body === 'object' &&
  request.body !== null &&
  Symbol.asyncIterator in request.body;

function keptBody(body: AsyncIterable<Uint8Array>): KeptBody {
  let chunks: Uint8Array[] = [];
  let size = 0;
  return {
    bytes: () => (size > MAX_KEPT_BYTES ? undefined : Buffer.concat(chunks)),
    [Symbol.asyncIterator]() {
      const from = body[Symbol.asyncIterator]();
      const next = async () => {
        const result = await from.next();
        if (result.done === true) return result;
        size += result.value.length;
        if (size <= MAX_KEPT_BYTES) chunks.push(result.value);
        else chunks = [];
        return result;
      };
      return { next, return: async (value) => (await from.return?.(value)) ?? { done: true, value } };
    },
  };
}

/** The path of the field that cannot be read; empty if that cannot be said. */
function wrongField(schema: DescMessage, body: KeptBody | undefined): string {
  const bytes = body?.bytes();
  if (bytes === undefined) return '';
  try {
    return unreadableField(schema, JSON.parse(bytes.toString('utf8')) as JsonValue).slice(0, MAX_PATH);
  } catch {
    return ''; // it is no JSON
  }
}

/** Wraps the handlers of a router in place. */
export function describeDecodeErrors(handlers: Handlers): void {
  for (const [i, handler] of handlers.entries()) {
    const wrapped = async (request: Request) => {
      const body = mayBeRead(request) ? keptBody(request.body) : undefined;
      const response = await handler(body === undefined ? request : { ...request, body });
      if (response.trailer !== undefined) return { ...response, body: mendTrailer(response) };
      const isJson = response.header?.get('content-type') === 'application/json';
      const isPlain = response.header?.get('content-encoding') === null;
      const isDecodeError = response.status === 400 || response.status === 500;
      if (!isDecodeError || !isJson || !isPlain || response.body === undefined) return response;
      const chunks: Uint8Array[] = [];
      for await (const chunk of response.body) chunks.push(chunk);
      const original = Buffer.concat(chunks);
      const bytes = withViolation(original, () => wrongField(handler.method.input, body)) ?? original;
      if (response.header?.has('content-length')) response.header.set('content-length', String(bytes.length));
      return { ...response, status: bytes === original ? response.status : 400, body: once(bytes) };
    };
    handlers[i] = Object.assign(wrapped, {
      protocolNames: handler.protocolNames,
      service: handler.service,
      method: handler.method,
      requestPath: handler.requestPath,
      allowedMethods: handler.allowedMethods,
      supportedContentType: handler.supportedContentType,
    });
  }
}

/** Messages of connect-node that come as INTERNAL although the caller's bytes are what is wrong. */
const CALLERS_FAULT = /^(?:parse binary|received compressed envelope, but)/;

/**
 * gRPC tells its status after the body: by then the trailer can still be changed. Its message is encoded as a part of a URI,
 * of which clients decode less than that.
 */
async function* mendTrailer(response: Awaited<ReturnType<Handler>>): AsyncGenerator<Uint8Array> {
  if (response.body !== undefined) yield* response.body;
  const { trailer } = response;
  const encoded = trailer?.get('grpc-message') ?? '';
  if (trailer === undefined || encoded === '') return;
  const message = decodeURIComponent(encoded);
  trailer.set('grpc-message', grpcMessage(message));
  if (trailer.get('grpc-status') === '13' && CALLERS_FAULT.test(message)) trailer.set('grpc-status', '3');
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

type ErrorBody = { code?: string; message?: string; details?: unknown[] };

/** The same error with a violation, or undefined if it is not a decoding error; `findField`: see wrongField(). */
function withViolation(bytes: Buffer, findField: () => string): Buffer | undefined {
  const error = JSON.parse(bytes.toString('utf8')) as ErrorBody;
  const message = TOO_FINE.test(error.message ?? '') ? FINEST : (error.message ?? '');
  // The binary reader's errors come as INTERNAL, although it is the caller's bytes that are wrong.
  const isBinary = error.code === 'internal' && message.startsWith('parse binary');
  if ((error.code !== 'invalid_argument' && !isBinary) || (error.details?.length ?? 0) > 0) return undefined;
  const right = adviceOn(message);
  const described = violationOf(message, right);
  const violation = { ...described, field: findField() || described.field };
  const value = toBinary(BadRequestSchema, create(BadRequestSchema, { fieldViolations: [violation] }));
  const detail = {
    type: 'google.rpc.BadRequest',
    value: Buffer.from(value).toString('base64').replace(/=+$/, ''),
  };
  const told = right === undefined ? message : `${message}; ${right}`;
  return Buffer.from(
    JSON.stringify({ ...error, code: 'invalid_argument', message: told, details: [detail] }),
  );
}

/** How the JSON reader stumbles over a duration with more than nine decimals. */
const TOO_FINE = /^Invalid count value: -\d+$/;
const FINEST = 'cannot decode message google.protobuf.Duration from JSON: it has more than 9 decimals';

/** What is right for types whose messages name no field. */
const RIGHT = new Map([
  ['google.protobuf.Timestamp', 'a time is written as in RFC 3339, "2026-11-24T10:00:00Z"'],
  ['google.protobuf.Duration', 'a duration is written in seconds, "90s" or "0.5s"'],
  [
    'google.protobuf.Struct',
    '"data" is a JSON object; another body goes into "payload", its bytes in base64',
  ],
]);
const TYPES = createRegistry(
  file_dispatch_v1_dead_letter_service,
  file_dispatch_v1_event,
  file_dispatch_v1_event_service,
  file_dispatch_v1_publish_service,
  file_dispatch_v1_subscription_service,
  file_dispatch_v1_tenant_service,
);

/** What would be right for the type that a message of the JSON reader names. */
function adviceOn(message: string): string | undefined {
  const type = /cannot decode (?:message|enum) ([\w.]+) from JSON(?!.*is unknown$)/s.exec(message)?.[1] ?? '';
  const names = TYPES.getEnum(type)?.values.map((value) => value.name);
  if (names !== undefined) return `one of ${names.join(', ')}`;
  return RIGHT.get(type) ?? (TYPES.getMessage(type) === undefined ? undefined : 'it is a JSON object');
}

/** The field and the advice in a message of the JSON or binary reader of @bufbuild/protobuf. */
function violationOf(message: string, right: string | undefined): { field: string; description: string } {
  if (message.includes('maximum recursion depth'))
    return { field: 'event.data', description: `is JSON nested deeper than ${MAX_JSON_DEPTH} levels` };
  const unknown = /key "(.{1,200}?)" is unknown/.exec(message);
  if (unknown !== null) {
    return {
      field: unknown[1]!,
      description: 'is not a field of this message; see proto/dispatch/v1 for those there are',
    };
  }
  const wrong = /cannot decode (?:field|message) dispatch\.v1\.\w+\.(\w+) from JSON: (.*)$/s.exec(message);
  if (wrong !== null) return { field: wrong[1]!, description: wrong[2]!.slice(0, 300) };
  if (right !== undefined)
    return {
      field: message.includes('google.protobuf.Struct') ? 'data' : '', // the one field of that type
      description: `a field has a value that cannot be; ${right}: ${message.slice(0, 300)}`,
    };
  return {
    field: '',
    description: `the body must be a valid message of this call: ${message.slice(0, 300)}`,
  };
}
