// A gRPC client as services have it: one channel to several addresses, with the retry policy of its service config.
import { create, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf';
import { type CallOptions, ConnectError } from '@connectrpc/connect';
import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import type { PublishClient } from './producer.ts';

/** gRPC allows five attempts at most. */
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{}],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: '0.1s',
        maxBackoff: '2s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE'],
      },
    },
  ],
};
/** Added by grpc-js to what it answers after a retry. */
const PREVIOUS_ATTEMPTS = 'grpc-previous-rpc-attempts';

const { publishBatch } = PublishService.method;

export type RetryingClient = PublishClient &
  AsyncDisposable & {
    /** Calls that the retry policy mended. */
    readonly retriedCount: () => number;
    /** Calls that were answered by each port. */
    readonly answeredBy: (port: number) => number;
  };

/** `ports` of loopback. */
export function retryingClient(ports: readonly number[], key: string): RetryingClient {
  const target = `ipv4:${ports.map((port) => `127.0.0.1:${port}`).join(',')}`;
  const client = new Client(target, credentials.createInsecure(), {
    'grpc.service_config': JSON.stringify(SERVICE_CONFIG),
    'grpc.max_reconnect_backoff_ms': 250,
    'grpc.initial_reconnect_backoff_ms': 100,
  });
  const metadata = new Metadata();
  metadata.set('authorization', `Bearer ${key}`);
  let retried = 0;
  const answered = new Map<string, number>();
  return {
    retriedCount: () => retried,
    answeredBy: (port) => answered.get(`127.0.0.1:${port}`) ?? 0,
    publish: {
      publishBatch: (request, options?: CallOptions) =>
        new Promise((resolve, reject) => {
          const deadline = Date.now() + (options?.timeoutMs ?? 10_000);
          const call = client.makeUnaryRequest(
            `/${PublishService.typeName}/${publishBatch.name}`,
            (value: MessageShape<typeof publishBatch.input>) =>
              Buffer.from(toBinary(publishBatch.input, value)),
            (bytes: Buffer) => fromBinary(publishBatch.output, bytes),
            create(publishBatch.input, request),
            metadata,
            { deadline },
            (error: ServiceError | null, value?: MessageShape<typeof publishBatch.output>) => {
              if (error === null && value !== undefined) resolve(value);
              else reject(new ConnectError(error?.details ?? 'no answer', Number(error?.code))); // the same numbers
            },
          );
          call.on('metadata', (told) => {
            if (told.get(PREVIOUS_ATTEMPTS).length > 0) retried++;
            answered.set(call.getPeer(), (answered.get(call.getPeer()) ?? 0) + 1);
          });
        }),
    },
    async [Symbol.asyncDispose]() {
      client.close();
    },
  };
}
