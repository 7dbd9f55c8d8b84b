// Fairness: 200 quiet tenants at an event a second each, alone, beside one with a backlog of 1,000,000, and beside one
// with 500 endpoints that hang until the deadline. And what the busy one gets beside them, of what it gets alone.
import { readFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import pg from 'pg';
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { uuidOf } from '../../src/domain/ids.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { storeBacklog } from '../../test/support/fleet.ts';
import { ADMIN_KEY, askSink, type Product, startChild, startProduct } from '../support/processes.ts';
import { QUIET, startQuiet } from '../support/quiet.ts';
import { truncate } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

const HANGING = 500;
const BACKLOG = 1_000_000;

/** Takes connections and requests and never answers. */
async function startHanging(): Promise<AsyncDisposable & { readonly port: number }> {
  const server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.resume();
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => void server.close(),
  };
}

/** Jiffies of all cores since the start of the machine. */
async function cpuTimes(): Promise<{ readonly busy: number; readonly all: number }> {
  const [line = ''] = (await readFile('/proc/stat', 'utf8')).split('\n');
  const times = line.split(/\s+/).slice(1, 9).map(Number);
  const all = times.reduce((sum, t) => sum + t, 0);
  return { busy: all - times[3]! - times[4]!, all };
}

async function subscribe(
  product: Product,
  tenantId: string,
  url: string,
  eventTypes = ['**'],
): Promise<string> {
  const subscriptions = jsonClient(SubscriptionService, product.httpPort, ADMIN_KEY);
  const subscription = { url, eventTypes, attemptTimeout: { seconds: 15n } };
  return (await subscriptions.createSubscription({ tenantId, subscription })).subscription!.subscriptionId;
}

export const fairness: Scenario = {
  name: 'fairness',
  about: `${QUIET} quiet tenants beside a backlog of ${BACKLOG} and beside ${HANGING} hanging endpoints, ms; share: what the busy one keeps`,
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const busySink = stack.use(await startChild('../support/sink.ts', []));
    const hanging = stack.use(await startHanging());
    const product = stack.use(
      await startProduct(serverUrl, {
        DISPATCH_LOG_LEVEL: 'info',
        DISPATCH_DEFAULT_QUOTA: '{"publishPerSecond": 0, "maxBacklog": 0}',
      }),
    );
    const load = stack.use(await startQuiet(product));
    const quiet = () => load.measure(seconds);
    const tenants = jsonClient(TenantService, product.httpPort, ADMIN_KEY);
    const publish = jsonClient(PublishService, product.httpPort, ADMIN_KEY);
    await tenants.createTenant({ tenant: { tenantId: 'busy' } });
    await tenants.createTenant({ tenant: { tenantId: 'stuck' } });
    const busyId = await subscribe(product, 'busy', `http://127.0.0.1:${busySink.firstLine}/`);
    for (let i = 0; i < HANGING; i++) {
      await subscribe(product, 'stuck', `http://127.0.0.1:${hanging.port}/${i}`, [`e${i}`]);
    }
    const owner = new pg.Client({ connectionString: product.databaseUrl });
    await owner.connect();
    stack.defer(() => owner.end());

    const busyRate = async (during: Promise<unknown>): Promise<number> => {
      const from = Number(await askSink(Number(busySink.firstLine), 'count'));
      const startedAt = performance.now();
      await during;
      const count = Number(await askSink(Number(busySink.firstLine), 'count')) - from;
      return count / ((performance.now() - startedAt) / 1000);
    };
    /** The part of the machine's cores that is used while something goes on. */
    const usedDuring = async <T>(
      work: () => Promise<T>,
    ): Promise<{ readonly used: number; readonly result: T }> => {
      const before = await cpuTimes();
      const result = await work();
      const after = await cpuTimes();
      return { used: (after.busy - before.busy) / (after.all - before.all), result };
    };
    /** What was stored or removed in one go is vacuumed and written: else that comes while something else is measured. */
    const atRest = async () => {
      await owner.query('VACUUM ANALYZE');
      await owner.query('CHECKPOINT');
      await new Promise((done) => setTimeout(done, 2_000));
    };
    /** Nothing of the last phase is left to be sent, vacuumed or written. */
    const cleared = async () => {
      await truncate(owner, 'deliveries, closed_deliveries, dead_letters, attempts, events');
      await atRest();
    };
    const owned = stack.move();
    return {
      product: async () => {
        await cleared();
        const { used, result: idle } = await usedDuring(quiet);
        await storeBacklog({ owner }, 'busy', uuidOf(busyId), BACKLOG);
        await atRest();
        const alone = await busyRate(new Promise((done) => setTimeout(done, seconds * 1000)));
        const measuring = quiet();
        const together = await busyRate(measuring);
        const beside = await measuring;
        await cleared();
        const hang = (async () => {
          for (let round = 0; round < seconds; round++) {
            const events = Array.from({ length: HANGING }, (_, i) => ({
              type: `e${i}`,
              body: { case: 'data' as const, value: { i } },
            }));
            await publish.publishBatch({ tenantId: 'stuck', events });
            await new Promise((done) => setTimeout(done, 1_000));
          }
        })();
        const stuck = await quiet();
        await hang;
        return {
          figures: {
            'idle p99': idle.p99,
            'backlog p99': beside.p99,
            'hanging p99': stuck.p99,
            'backlog ÷ idle': beside.p99 / idle.p99,
            'hanging ÷ idle': stuck.p99 / idle.p99,
            'busy alone /s': alone,
            'busy beside /s': together,
            // What the quiet ones need of the machine when they are alone is theirs; the rest is free.
            'used by quiet': used,
            share: together / (alone * (1 - used)),
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
