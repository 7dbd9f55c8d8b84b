// Ingest: events in, with one delivery each, nothing sent (a process with the api role only).

import { startChild, startProduct } from '../support/processes.ts';
import { publish } from '../support/run-load.ts';
import { makeTenants } from '../support/setup.ts';
import { WARM_UP_S } from './end-to-end.ts';
import type { Scenario } from './scenario.ts';

type Kind = {
  readonly name: string;
  readonly about: string;
  readonly load: 'batch' | 'stream' | 'unary' | 'json';
  readonly floorServer: 'insert-grpc' | 'insert-stream' | 'echo-grpc' | 'echo-json';
  readonly callers: number;
  readonly size: number;
};

const BATCH = 200;

function ingest(kind: Kind): Scenario {
  return {
    name: kind.name,
    about: kind.about,
    async start({ serverUrl, seconds }) {
      await using stack = new AsyncDisposableStack();
      const product = stack.use(await startProduct(serverUrl, { DISPATCH_ROLES: 'api' }));
      // Port 9 of loopback: nothing is sent, the subscriptions only make deliveries.
      await makeTenants(product.httpPort, 'http://127.0.0.1:9/');
      const floor = stack.use(await startChild('../floor-servers.ts', [kind.floorServer, serverUrl]));
      const port = kind.load === 'json' ? product.httpPort : product.grpcPort;
      const { load, callers, size } = kind;
      const measure = (to: number, forSeconds = seconds) =>
        publish({ kind: load, port: to, seconds: forSeconds, callers, size });
      await measure(port, WARM_UP_S);
      await measure(Number(floor.firstLine), WARM_UP_S);
      const owned = stack.move();
      return {
        product: () => measure(port),
        floor: () => measure(Number(floor.firstLine)),
        [Symbol.asyncDispose]: () => owned.disposeAsync(),
      };
    },
  };
}

export const ingestBatch = ingest({
  name: 'ingest-batch',
  about: `PublishBatch of ${BATCH} over 100 tenants, grpc-js; floor: one multi-row insert behind a bare grpc-js call`,
  load: 'batch',
  floorServer: 'insert-grpc',
  callers: 8,
  size: BATCH,
});
export const ingestStream = ingest({
  name: 'ingest-stream',
  about:
    'PublishStream, 8 streams with 200 events on their way each; floor: multi-row inserts behind a bare grpc-js stream',
  load: 'stream',
  floorServer: 'insert-stream',
  callers: 8,
  size: BATCH,
});
export const ingestUnary = ingest({
  name: 'ingest-unary',
  about: 'Publish over gRPC, 512 at once on 8 connections; floor: a bare grpc-js echo',
  load: 'unary',
  floorServer: 'echo-grpc',
  callers: 512,
  size: 1,
});
export const ingestJson = ingest({
  name: 'ingest-json',
  about: 'Publish over Connect JSON on HTTP/1.1, 256 at once; floor: a bare connect-node echo',
  load: 'json',
  floorServer: 'echo-json',
  callers: 256,
  size: 1,
});
