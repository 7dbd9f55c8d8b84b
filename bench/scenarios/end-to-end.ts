// End to end: published in batches, delivered, recorded; one process with every role.
import { startChild, startProduct } from '../support/processes.ts';
import { runLoad } from '../support/run-load.ts';
import { makeTenants } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

export const endToEnd: Scenario = {
  name: 'end-to-end',
  about:
    'batch publish → signed POST → recorded, fan-out 1, 100 tenants; floor: the same I/O with no product logic',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const sink = stack.use(await startChild('../support/sink.ts', []));
    const product = stack.use(await startProduct(serverUrl));
    await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
    const floorSink = stack.use(await startChild('../support/sink.ts', []));
    const owned = stack.move();
    return {
      product: () => runLoad('load.ts', ['batch', product.grpcPort, seconds, 2, 200, sink.firstLine]),
      floor: () => runLoad('floor-pipeline.ts', [serverUrl, floorSink.firstLine, seconds]),
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
