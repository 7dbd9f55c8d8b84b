// Throughput by the number of worker processes: a backlog of 100 tenants, delivered by 1, 2 and 4 workers on one database.
// And that of as many bare pipelines, which share nothing but the cores and the disk: what the machine takes from both.
import pg from 'pg';
import { storeBacklogs } from '../../test/support/fleet.ts';
import { askSink, startChild, startProduct, startServe } from '../support/processes.ts';
import { runLoad } from '../support/run-load.ts';
import { makeTenants, truncate } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

/** More than any number of workers delivers for a tenant in a second. */
const PER_TENANT_AND_SECOND = 400;
const WARM_UP_MS = 4_000;

export const workers: Scenario = {
  name: 'workers',
  about: 'deliveries per second of a backlog by 1, 2 and 4 worker processes on one database and these cores',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const sink = stack.use(await startChild('../support/sink.ts', []));
    const api = stack.use(await startProduct(serverUrl, { DISPATCH_ROLES: 'api' }));
    await makeTenants(api.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
    const owner = new pg.Client({ connectionString: api.databaseUrl });
    await owner.connect();
    stack.defer(() => owner.end());
    const { rows: subscriptions } = await owner.query<{ tenant_id: string; id: string }>(
      'SELECT tenant_id, id FROM subscriptions',
    );
    const count = async () => Number(await askSink(Number(sink.firstLine), 'count'));

    const rateOf = async (processes: number): Promise<number> => {
      await truncate(owner, 'deliveries, closed_deliveries, attempts, events');
      const each = PER_TENANT_AND_SECOND * Math.ceil((WARM_UP_MS * processes) / 1_000 + seconds);
      await storeBacklogs({ owner }, subscriptions, each);
      await owner.query('VACUUM ANALYZE');
      await owner.query('CHECKPOINT');
      await using running = new AsyncDisposableStack();
      for (let i = 0; i < processes; i++) {
        running.use(await startServe(api.databaseUrl, { DISPATCH_ROLES: 'worker,maintenance' }));
      }
      // Each process has work enough behind it to be compiled: that takes the same time of a core from any number.
      await new Promise((done) => setTimeout(done, WARM_UP_MS * processes));
      const from = await count();
      const startedAt = performance.now();
      await new Promise((done) => setTimeout(done, seconds * 1_000));
      const rate = ((await count()) - from) / ((performance.now() - startedAt) / 1_000);
      const { rows } = await owner.query<{ n: string }>('SELECT count(*) AS n FROM deliveries');
      if (Number(rows[0]!.n) === 0) throw new Error('the backlog was too short to measure with');
      return rate;
    };
    const bareOf = async (processes: number): Promise<number> => {
      const all = await Promise.all(
        Array.from({ length: processes }, (_, i) =>
          runLoad('floor-pipeline.ts', [serverUrl, sink.firstLine, seconds, `floor_${i}`]),
        ),
      );
      return all.reduce((sum, { perSecond }) => sum + perSecond, 0);
    };
    const owned = stack.move();
    return {
      product: async () => {
        const one = await rateOf(1);
        const two = await rateOf(2);
        const four = await rateOf(4);
        const [bareTwo, bareFour] = [await bareOf(2), await bareOf(4)];
        return {
          figures: {
            '1 /s': one,
            '2 /s': two,
            '4 /s': four,
            '2 ÷ 1': two / one,
            '4 ÷ 2': four / two,
            'bare 4 ÷ 2': bareFour / bareTwo,
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
