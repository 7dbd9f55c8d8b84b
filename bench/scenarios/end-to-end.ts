// End to end: published in batches, delivered, recorded; one process with every role.
import { startChild, startProduct } from '../support/processes.ts';
import { publish, runLoad } from '../support/run-load.ts';
import { makeTenants } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

/** A service is compiled after some thousand events; its floors are in a second. */
export const WARM_UP_S = 3;

function endToEndTo(
  fanOut: number,
  batchSize: number,
  name: string,
  about: string,
  args: readonly string[] = [],
): Scenario {
  return {
    name,
    about,
    async start({ serverUrl, seconds }) {
      await using stack = new AsyncDisposableStack();
      const sink = stack.use(await startChild('../support/sink.ts', []));
      const product = stack.use(await startProduct(serverUrl, {}, args));
      await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`, {}, fanOut);
      const load = { callers: 4, size: batchSize, sink: sink.firstLine, fanOut };
      const run = (forSeconds: number) =>
        publish({ kind: 'batch', port: product.grpcPort, seconds: forSeconds, ...load });
      await run(WARM_UP_S);
      const floorSink = stack.use(await startChild('../support/sink.ts', []));
      const owned = stack.move();
      return {
        async product() {
          const { perSecond } = await run(seconds);
          return { perSecond: perSecond * fanOut };
        },
        floor: () => {
          const stored = fanOut === 1 ? [] : ['floor_stored', 'stored'];
          return runLoad('floor-pipeline.ts', [serverUrl, floorSink.firstLine, seconds, ...stored]);
        },
        [Symbol.asyncDispose]: () => owned.disposeAsync(),
      };
    },
  };
}

export const endToEnd = endToEndTo(
  1,
  200,
  'end-to-end',
  'batch publish → signed POST → recorded, fan-out 1, 100 tenants; floor: the same I/O with no product logic',
);
export const endToEnd10 = endToEndTo(
  10,
  50,
  'end-to-end-10',
  'deliveries of events with fan-out 10; floor: sign → POST → record of rows that are there already',
);
export const endToEnd10By2 = endToEndTo(
  10,
  50,
  'end-to-end-10-by-2',
  'the same, by two processes of the product: one is bound by a core before the machine is',
  ['--processes=2'],
);
export const endToEnd100 = endToEndTo(
  100,
  10,
  'end-to-end-100',
  'deliveries of events with fan-out 100; floor: sign → POST → record of rows that are there already',
);
