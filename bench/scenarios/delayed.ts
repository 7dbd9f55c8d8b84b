// What deliveries that wait for their time cost the rest: 1,000,000 that are due in an hour, in the queues of the very
// tenants that go on publishing, beside the same product and history with one in each queue. Latency, and the work of the
// database while nothing happens.
import { readFile } from 'node:fs/promises';
import pg from 'pg';
import { storeBacklogs } from '../../test/support/fleet.ts';
import { TENANTS } from '../support/payload.ts';
import { type Child, startChild, startProduct } from '../support/processes.ts';
import { RawGrpc } from '../support/raw-grpc.ts';
import { makeTenants } from '../support/setup.ts';
import { oneByOne } from './latency.ts';
import type { Scenario } from './scenario.ts';

const DELAYED = 1_000_000;
const PER_QUEUE = DELAYED / TENANTS.length;
const HOUR_S = 3_600;

/** CPU ns that a process has run for, from the scheduler's books; NaN where the system does not tell. */
async function cpuNs(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/schedstat`, 'utf8').catch(() => 'NaN');
  return Number(text.split(' ')[0]);
}

/** One after the other. Which comes first alternates: what the machine does meanwhile is not one side's. */
async function inTurn<T>(isFirst: boolean, a: () => Promise<T>, b: () => Promise<T>): Promise<[T, T]> {
  if (isFirst) return [await a(), await b()];
  const ofB = await b();
  return [await a(), ofB];
}

export const delayed: Scenario = {
  name: 'delayed',
  about: `${DELAYED} deliveries due in an hour beside one in each queue: latency in ms, and idle work per second`,
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const side = async (isDelayed: boolean) => {
      const sink: Child = stack.use(await startChild('../support/sink.ts', ['--times']));
      const product = stack.use(await startProduct(serverUrl));
      await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
      const owner = new pg.Client({ connectionString: product.databaseUrl });
      await owner.connect();
      stack.defer(() => owner.end());
      const { rows } = await owner.query<{ tenant_id: string; id: string }>(
        'SELECT tenant_id, id FROM subscriptions',
      );
      await storeBacklogs({ owner }, rows, PER_QUEUE, HOUR_S);
      if (!isDelayed) {
        await owner.query(`DELETE FROM deliveries WHERE (tenant_id, id) NOT IN
          (SELECT DISTINCT ON (tenant_id) tenant_id, id FROM deliveries ORDER BY tenant_id, id)`);
        await owner.query('VACUUM FULL deliveries');
      }
      await owner.query('VACUUM ANALYZE');
      await owner.query('CHECKPOINT');
      const connection = await RawGrpc.connect(product.grpcPort);
      stack.defer(() => connection.close());
      const state = async () => {
        const sessions = await owner.query<{ pid: number }>(
          'SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
        );
        const of = await Promise.all(sessions.rows.map(({ pid }) => cpuNs(pid)));
        const stat = await owner.query<{ n: string }>(
          'SELECT xact_commit AS n FROM pg_stat_database WHERE datname = current_database()',
        );
        return { ns: of.reduce((sum, ns) => sum + ns, 0), transactions: Number(stat.rows[0]!.n) };
      };
      const idle = async () => {
        const before = await state();
        // Not without what the leader does each ten seconds.
        await new Promise((done) => setTimeout(done, 20_000));
        const after = await state();
        return {
          databaseMs: (after.ns - before.ns) / 20e6,
          transactions: (after.transactions - before.transactions) / 20,
        };
      };
      return { idle, busy: () => oneByOne([connection], Number(sink.firstLine), seconds) };
    };
    const many = await side(true);
    const few = await side(false);
    let round = 0;
    const owned = stack.move();
    return {
      product: async () => {
        const isManyFirst = round++ % 2 === 0;
        const [busyMany, busyFew] = await inTurn(isManyFirst, many.busy, few.busy);
        // What the last events left behind is done by then.
        await new Promise((done) => setTimeout(done, 10_000));
        const [idleMany, idleFew] = await inTurn(isManyFirst, many.idle, few.idle);
        return {
          figures: {
            'p50 with': busyMany['p50']!,
            'p50 without': busyFew['p50']!,
            'p50 ratio': busyMany['p50']! / busyFew['p50']!,
            'p99 with': busyMany['p99']!,
            'p99 without': busyFew['p99']!,
            'idle transactions/s with': idleMany.transactions,
            'idle transactions/s without': idleFew.transactions,
            'idle database ms/s with': idleMany.databaseMs,
            'idle database ms/s without': idleFew.databaseMs,
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
