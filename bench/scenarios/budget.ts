// What an event costs from end to end: CPU of each process, statements and WAL, for the product and for the floor.
import pg from 'pg';
import { cpuSeconds, familySeconds } from '../support/cpu.ts';
import { postmasterOf, startChild, startProduct } from '../support/processes.ts';
import { type Load, publish, runLoad } from '../support/run-load.ts';
import { makeTenants } from '../support/setup.ts';
import { WARM_UP_S } from './end-to-end.ts';
import type { Scenario } from './scenario.ts';

export const budget: Scenario = {
  name: 'budget',
  about: 'end to end as above: µs of CPU, transactions and WAL bytes for each event',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const client = new pg.Client({ connectionString: serverUrl });
    await client.connect();
    stack.defer(() => client.end());
    const postmaster = await postmasterOf(client);
    const sink = stack.use(await startChild('../support/sink.ts', []));
    const product = stack.use(await startProduct(serverUrl));
    await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);

    await publish({
      kind: 'batch',
      port: product.grpcPort,
      seconds: WARM_UP_S,
      callers: 4,
      size: 200,
      sink: sink.firstLine,
    });
    const books = async () => {
      const { rows } = await client.query<{ wal: string; transactions: string }>(`
        SELECT (SELECT wal_bytes FROM pg_stat_wal) AS wal,
          (SELECT sum(xact_commit) FROM pg_stat_database) AS transactions`);
      return {
        node: await cpuSeconds(product.process.pid),
        postgres: await familySeconds(postmaster),
        sink: await cpuSeconds(sink.process.pid),
        wal: Number(rows[0]!.wal),
        transactions: Number(rows[0]!.transactions),
      };
    };
    const settled = () => new Promise((done) => setTimeout(done, 1_500)); // statistics are told once a second
    const costs = async (run: () => Promise<Load>, isProduct: boolean) => {
      await settled();
      const before = await books();
      const load = await run();
      await settled();
      const after = await books();
      const each = (key: keyof typeof before, unit: number) =>
        ((after[key] - before[key]) / load.events) * unit;
      const loadUs = (load.cpuSeconds / load.events) * 1e6;
      return {
        'events/s': load.perSecond,
        'µs node': isProduct ? each('node', 1e6) : loadUs,
        'µs postgres': each('postgres', 1e6),
        'µs load': isProduct ? loadUs : 0,
        'µs receiver': each('sink', 1e6),
        'transactions per 1,000': each('transactions', 1_000),
        'WAL bytes': each('wal', 1),
      };
    };
    const owned = stack.move();
    return {
      product: async () => {
        const load = { seconds, callers: 4, size: 200, sink: sink.firstLine };
        const ours = await costs(() => publish({ kind: 'batch', port: product.grpcPort, ...load }), true);
        const floors = await costs(
          () => runLoad('floor-pipeline.ts', [serverUrl, sink.firstLine, seconds]),
          false,
        );
        const bare = Object.entries(floors).map(([name, value]) => [`floor ${name}`, value] as const);
        return { figures: { ...ours, ...Object.fromEntries(bare) } };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
