// What the service costs while nothing happens.
import pg from 'pg';
import { cpuSeconds } from '../support/cpu.ts';
import { startChild, startProduct } from '../support/processes.ts';
import { publish } from '../support/run-load.ts';
import { makeTenants } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

const LOOK_MS = 20_000;
/** A connection of the server's tells its statistics what it did up to 10 s after it has: those of the load would be counted, too. */
const STATISTICS_MS = 12_000;
const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

export const idle: Scenario = {
  name: 'idle',
  about: `the service with 100 tenants that have published, then nothing for ${LOOK_MS / 1_000} s`,
  async start({ serverUrl }) {
    await using stack = new AsyncDisposableStack();
    const sink = stack.use(await startChild('../support/sink.ts', []));
    const product = stack.use(await startProduct(serverUrl));
    await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
    const load = { seconds: 2, callers: 4, size: 200, sink: sink.firstLine };
    await publish({ kind: 'batch', port: product.grpcPort, ...load });
    const client = new pg.Client({ connectionString: serverUrl });
    await client.connect();
    stack.defer(() => client.end());
    const database = new URL(product.databaseUrl).pathname.slice(1);
    const books = async () => {
      const { rows } = await client.query<{ transactions: string }>(
        'SELECT xact_commit AS transactions FROM pg_stat_database WHERE datname = $1',
        [database],
      );
      return { cpu: await cpuSeconds(product.process.pid), transactions: Number(rows[0]!.transactions) };
    };
    const owned = stack.move();
    return {
      async product() {
        await pause(STATISTICS_MS); // and what the load left behind is done
        const before = await books();
        await pause(LOOK_MS);
        const after = await books();
        const each = 1_000 / LOOK_MS;
        return {
          figures: {
            'transactions/s': (after.transactions - before.transactions) * each,
            '% of a core': (after.cpu - before.cpu) * each * 100,
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
