// More processes where one Node core is what limits: a backlog of large bodies, each signed by HMAC and by five ed25519 keys
// (a subscription with four rotations under way, the most there can be), by `--processes` 1 and 2. CPU figures say what
// was busy. A backlog of 5 s is 1.6 GB. With small bodies PostgreSQL and the receiver take too much of the other core on
// machines that sign fast.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { SignatureScheme, SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { storeBacklogs } from '../../test/support/fleet.ts';
import { familySeconds } from '../support/cpu.ts';
import {
  ADMIN_KEY,
  askSink,
  postmasterOf,
  startChild,
  startProduct,
  startServe,
} from '../support/processes.ts';
import { makeTenants, truncate } from '../support/setup.ts';
import type { Scenario } from './scenario.ts';

const ROTATIONS = 4;
/** An event with a document in it: 250 KB of base64, which does not compress. */
const BODY = Buffer.from(
  JSON.stringify({ order_id: '12345', document: randomBytes(187_500).toString('base64') }),
);
const WARM_UP = 3_000;
/** Deliveries a second that the backlog suffices for. */
const MAX_RATE = 700;
const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

export const processes: Scenario = {
  name: 'processes',
  about:
    'deliveries per second of 250 KB with an HMAC and five ed25519 signatures each, by 1 and 2 processes; cores in use',
  async start({ serverUrl, seconds }) {
    await using stack = new AsyncDisposableStack();
    const sink = stack.use(await startChild('../support/sink.ts', []));
    const api = stack.use(await startProduct(serverUrl, { DISPATCH_ROLES: 'api' }));
    await makeTenants(api.httpPort, `http://127.0.0.1:${sink.firstLine}/`, {
      signatureSchemes: [SignatureScheme.V1, SignatureScheme.V1A],
    });
    const owner = new pg.Client({ connectionString: api.databaseUrl });
    await owner.connect();
    stack.defer(() => owner.end());
    const postmaster = await postmasterOf(owner);
    const { rows: subscriptions } = await owner.query<{ tenant_id: string; id: string }>(
      'SELECT tenant_id, id FROM subscriptions',
    );
    const rpc = jsonClient(SubscriptionService, api.httpPort, ADMIN_KEY);
    for (const { tenant_id: tenantId } of subscriptions) {
      const { subscriptions: own } = await rpc.listSubscriptions({ tenantId });
      const { subscriptionId } = own[0]!;
      for (let i = 0; i < ROTATIONS; i++) {
        await rpc.rotateSecret({ tenantId, subscriptionId, scheme: SignatureScheme.V1A });
      }
    }
    const count = async () => Number(await askSink(Number(sink.firstLine), 'count'));
    const measure = async (processCount: number) => {
      await truncate(owner, 'deliveries, closed_deliveries, attempts, events');
      const each = Math.ceil((WARM_UP + MAX_RATE * seconds) / subscriptions.length);
      await storeBacklogs({ owner }, subscriptions, each, 0, BODY);
      await owner.query('VACUUM ANALYZE');
      await owner.query('CHECKPOINT');
      const roles = { DISPATCH_ROLES: 'worker,maintenance' };
      await using worker = await startServe(api.databaseUrl, roles, [`--processes=${processCount}`]);
      const before = await count();
      while ((await count()) < before + WARM_UP) await pause(20); // compiled by then
      const cpu = async () => ({
        node: await familySeconds(worker.process.pid ?? 0),
        postgres: await familySeconds(postmaster),
      });
      const cpuBefore = await cpu();
      const from = await count();
      const startedAt = performance.now();
      await pause(seconds * 1_000);
      const took = (performance.now() - startedAt) / 1_000;
      const rate = ((await count()) - from) / took;
      const cpuAfter = await cpu();
      const { rows } = await owner.query<{ n: string }>('SELECT count(*) AS n FROM deliveries');
      if (Number(rows[0]!.n) === 0) throw new Error('the backlog was too short to measure with');
      return {
        rate,
        node: (cpuAfter.node - cpuBefore.node) / took,
        postgres: (cpuAfter.postgres - cpuBefore.postgres) / took,
      };
    };
    const owned = stack.move();
    return {
      async product() {
        const one = await measure(1);
        const two = await measure(2);
        return {
          figures: {
            '1 /s': one.rate,
            '2 /s': two.rate,
            '2 ÷ 1': two.rate / one.rate,
            'cores of node, 1': one.node,
            'cores of postgres, 1': one.postgres,
            'cores of node, 2': two.node,
            'cores of postgres, 2': two.postgres,
          },
        };
      },
      floor: undefined,
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  },
};
