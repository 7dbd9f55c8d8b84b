// What size costs: end to end with 10 and 10,000 subscriptions, with 10,000,000 stored events and none, and a backlog of
// 1,000,000 beside one of 10,000.
import pg from 'pg';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { storeBacklogs } from '../../test/support/fleet.ts';
import { residentMb } from '../support/cpu.ts';
import { inTurn, type Rate } from '../support/in-turn.ts';
import { BODY, TENANTS } from '../support/payload.ts';
import {
  ADMIN_KEY,
  askSink,
  type Product,
  startChild,
  startProduct,
  startServe,
} from '../support/processes.ts';
import { batchRate, publish } from '../support/run-load.ts';
import { makeTenants, truncate } from '../support/setup.ts';
import { WARM_UP_S } from './end-to-end.ts';
import type { Scenario } from './scenario.ts';

const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

async function connectTo(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  return client;
}

const FEW_TENANTS = 10;
const PER_TENANT = 1_000;

/** A subscription for each of 1,000 event types of a tenant; a publish matches one. */
async function subscribeToTypes(product: Product, url: string): Promise<void> {
  const subscriptions = jsonClient(SubscriptionService, product.httpPort, ADMIN_KEY);
  for (const tenantId of TENANTS.slice(0, FEW_TENANTS)) {
    const one = (i: number) =>
      subscriptions.createSubscription({ tenantId, subscription: { url, eventTypes: [`order.kind-${i}`] } });
    for (let i = 0; i < PER_TENANT; i += 10) {
      await Promise.all(Array.from({ length: 10 }, (_, n) => one(i + n)));
    }
  }
}

export const subscriptions: Scenario = {
  name: 'subscriptions',
  about: 'end to end over 10,000 subscriptions of 10 tenants beside 10, one of each, and the memory of both',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const side = async (isMany: boolean) => {
      const sink = stack.use(await startChild('../support/sink.ts', []));
      const product = stack.use(await startProduct(serverUrl));
      const url = `http://127.0.0.1:${sink.firstLine}/`;
      await makeTenants(product.httpPort, isMany ? undefined : url);
      if (isMany) await subscribeToTypes(product, url);
      const load = {
        kind: 'batch',
        port: product.grpcPort,
        callers: 4,
        size: 200,
        sink: sink.firstLine,
        tenants: FEW_TENANTS,
        types: isMany ? PER_TENANT : 1,
      } as const;
      await publish({ ...load, seconds: WARM_UP_S });
      const rate = async () => (await publish({ ...load, seconds })).perSecond;
      return { rate, memory: () => residentMb(product.process.pid) };
    };
    // Two of each kind: equal services differ, too, for as long as they live.
    const pairs = [
      { many: await side(true), few: await side(false) },
      { many: await side(true), few: await side(false) },
    ];
    let round = 0;
    const owned = stack.move();
    return {
      async product() {
        const rates = { many: 0, few: 0 };
        for (const [i, { many, few }] of pairs.entries()) {
          const [large, small] = await inTurn(round + i, many.rate, few.rate);
          rates.many += large / pairs.length;
          rates.few += small / pairs.length;
        }
        round++;
        await pause(5_000);
        const memory = { many: 0, few: 0 };
        for (const { many, few } of pairs) {
          memory.many = Math.max(memory.many, await many.memory());
          memory.few = Math.max(memory.few, await few.memory());
        }
        return {
          figures: {
            '10,000 /s': rates.many,
            '10 /s': rates.few,
            ratio: rates.many / rates.few,
            '10,000 MB': memory.many,
            '10 MB': memory.few,
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};

const STORED = 10_000_000;

/** Events of the history, as large as those that are published. */
async function storeHistory(owner: pg.Client): Promise<void> {
  const each = STORED / TENANTS.length;
  for (const tenantId of TENANTS) {
    await owner.query(
      `INSERT INTO events (tenant_id, id, type, payload)
       SELECT $1, (lpad(to_hex((extract(epoch FROM now()) * 1000)::int8), 12, '0') || '70008000'
         || lpad(to_hex(i), 6, '0') || '000000')::uuid, 'order.created', $2
       FROM generate_series(1, $3::int) AS i`,
      [tenantId, BODY, each],
    );
  }
  await owner.query('VACUUM (FREEZE, ANALYZE) events');
  await owner.query('CHECKPOINT');
}

export const stored: Scenario = {
  name: 'stored',
  about:
    'end to end beside 10,000,000 stored events and beside none (takes 10 GB of disk, and minutes to fill)',
  isLong: true,
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const side = async (isFull: boolean): Promise<Rate> => {
      const sink = stack.use(await startChild('../support/sink.ts', []));
      const product = stack.use(await startProduct(serverUrl));
      await makeTenants(product.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
      if (isFull) {
        const owner = await connectTo(product.databaseUrl);
        await storeHistory(owner);
        await owner.end();
      }
      const rate = batchRate(product, sink);
      await rate(WARM_UP_S);
      return () => rate(seconds);
    };
    const full = await side(true);
    const empty = await side(false);
    let round = 0;
    const owned = stack.move();
    return {
      async product() {
        const [large, small] = await inTurn(round++, full, empty);
        return { figures: { 'beside 10,000,000 /s': large, 'beside none /s': small, ratio: large / small } };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};

const BACKLOGS = { large: 1_000_000, small: 10_000 };
/** The part of a small backlog that is measured: from when it runs to before it runs out. */
const FROM = 1_000;
const TO = 9_000;

export const backlog: Scenario = {
  name: 'backlog',
  about: 'deliveries per second out of a backlog of 1,000,000, and of 10,000 again and again; 100 tenants',
  isLong: true,
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const sink = stack.use(await startChild('../support/sink.ts', []));
    const api = stack.use(await startProduct(serverUrl, { DISPATCH_ROLES: 'api' }));
    await makeTenants(api.httpPort, `http://127.0.0.1:${sink.firstLine}/`);
    const owner = await connectTo(api.databaseUrl);
    stack.defer(() => owner.end());
    const { rows: all } = await owner.query<{ tenant_id: string; id: string }>(
      'SELECT tenant_id, id FROM subscriptions',
    );
    const count = async () => Number(await askSink(Number(sink.firstLine), 'count'));
    const fill = async (total: number) => {
      await truncate(owner, 'deliveries, closed_deliveries, attempts, events');
      await storeBacklogs({ owner }, all, total / all.length);
      await owner.query('VACUUM ANALYZE');
      await owner.query('CHECKPOINT');
    };
    const reaches = async (from: number, more: number) => {
      while ((await count()) < from + more) await pause(2);
      return { at: performance.now(), count: await count() };
    };
    const serve = () => startServe(api.databaseUrl, { DISPATCH_ROLES: 'worker,maintenance' });
    const largeRate = async () => {
      await fill(BACKLOGS.large);
      await using _worker = await serve();
      const from = await reaches(await count(), 3 * BACKLOGS.small); // compiled by then
      await pause(seconds * 1_000);
      return (((await count()) - from.count) / (performance.now() - from.at)) * 1_000;
    };
    const smallRate = async () => {
      await fill(BACKLOGS.small);
      await using _worker = await serve();
      let before = await count();
      await reaches(before, BACKLOGS.small);
      let delivered = 0;
      let tookMs = 0;
      for (let n = 0; n < 2 || tookMs < seconds * 1_000; n++) {
        // Those of one time lie beside each other: they become due together once they are all there.
        await truncate(owner, 'deliveries, closed_deliveries, attempts, events');
        await storeBacklogs({ owner }, all, BACKLOGS.small / all.length, 3_600);
        before = await count();
        await owner.query('UPDATE deliveries SET run_at = now()');
        const from = await reaches(before, FROM);
        const to = await reaches(before, TO);
        await reaches(before, BACKLOGS.small);
        if (n < 2) continue; // not compiled yet
        delivered += to.count - from.count;
        tookMs += to.at - from.at;
      }
      return (delivered / tookMs) * 1_000;
    };
    let round = 0;
    const owned = stack.move();
    return {
      async product() {
        const [large, small] = await inTurn(round++, largeRate, smallRate);
        return { figures: { '1,000,000 /s': large, '10,000 /s': small, ratio: large / small } };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
