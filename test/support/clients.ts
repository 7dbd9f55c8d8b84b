// Real clients: grpc-js with @bufbuild/protobuf messages, and Connect over gRPC and over JSON.
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf';
import { type Client as ConnectClient, createClient, type Interceptor } from '@connectrpc/connect';
import { createConnectTransport, createGrpcTransport } from '@connectrpc/connect-node';
import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';

/** A unary caller over grpc-js. */
export type GrpcCaller = {
  readonly call: <I extends DescMessage, O extends DescMessage>(
    method: DescMethod & { readonly input: I; readonly output: O },
    request: MessageInitShape<I>,
    options?: { readonly deadlineMs?: number },
  ) => Promise<MessageShape<O>>;
  readonly client: Client;
  readonly metadata: Metadata;
  readonly close: () => void;
};

export function grpcCaller(port: number, key: string | undefined): GrpcCaller {
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure());
  const metadata = new Metadata();
  if (key !== undefined) metadata.set('authorization', `Bearer ${key}`);
  return {
    client,
    metadata,
    close: () => client.close(),
    call: (method, request, options) =>
      new Promise((resolve, reject) => {
        client.makeUnaryRequest(
          `/${method.parent.typeName}/${method.name}`,
          (value: MessageShape<typeof method.input>) => Buffer.from(toBinary(method.input, value)),
          (bytes: Buffer) => fromBinary(method.output, bytes),
          create(method.input, request),
          metadata,
          options?.deadlineMs === undefined ? {} : { deadline: Date.now() + options.deadlineMs },
          (error: ServiceError | null, value?: MessageShape<typeof method.output>) =>
            error === null && value !== undefined ? resolve(value) : reject(error),
        );
      }),
  };
}

function withKey(key: string | undefined): Interceptor[] {
  if (key === undefined) return [];
  return [
    (next) => (request) => {
      request.header.set('authorization', `Bearer ${key}`);
      return next(request);
    },
  ];
}

/** A Connect client that speaks JSON over HTTP/1.1. */
export function jsonClient<S extends DescService>(
  service: S,
  port: number,
  key: string | undefined,
): ConnectClient<S> {
  const baseUrl = `http://127.0.0.1:${port}`;
  const transport = createConnectTransport({
    baseUrl,
    httpVersion: '1.1',
    useBinaryFormat: false,
    interceptors: withKey(key),
  });
  return createClient(service, transport);
}

/** A Connect client that speaks gRPC over h2c. */
export function connectGrpcClient<S extends DescService>(
  service: S,
  port: number,
  key: string | undefined,
): ConnectClient<S> {
  return createClient(
    service,
    createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}`, interceptors: withKey(key) }),
  );
}
