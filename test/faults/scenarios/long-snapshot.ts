// A transaction that stays open keeps vacuum from removing what was delivered since: the rows stay at the head of every
// queue. Claims must not become slow by it, and must be as before soon after it ends.
import { setTimeout as wait } from 'node:timers/promises';
import pg from 'pg';
import type { SubscriptionId } from '../../../src/domain/ids.ts';
import { uuidOf } from '../../../src/domain/ids.ts';
import { eventually } from '../../support/eventually.ts';
import type { DispatchProcess } from '../../support/processes.ts';
import { countOf, gaugeOf, type Histogram, histogramOf, quantileOf, readMetrics, since } from '../metrics.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const PER_SECOND = 300;
const TENANTS = ['t0', 't1', 't2', 't3'];
const AGE = 'dispatch_database_oldest_snapshot_seconds';

export const longSnapshot: Scenario = {
  name: 'long-snapshot',
  about:
    'a transaction of 5 min pins 300,000 deleted rows under 300 deliveries/s; claims ≤ 100 ms, recovery ≤ 60 s',
  promises: ['P2', 'P7'],
  seconds: 330,
  isTimed: true,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    const api = await world.dispatch(url, 'api');
    // It publishes nothing itself, so all that it delivers it has claimed; the api role has the page with its figures.
    const worker = await world.dispatch(url, 'api,worker');
    const admin = adminOf(api);
    const queues: (readonly [string, string])[] = [];
    for (const tenantId of TENANTS) queues.push([tenantId, await subscribe(admin, tenantId, endpoint.url)]);
    const clients = () => [admin];
    const producer = startProducer(world, { tenantIds: TENANTS, clients, perSecond: PER_SECOND });
    await wait(STEADY_MS);
    const start = await claimsOf(worker);
    await wait(STEADY_MS);
    const usual = since(start, await claimsOf(worker));

    const pinning = new pg.Client({ connectionString: url });
    await pinning.connect();
    await pinning.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
    await pinning.query('SELECT 1');
    world.timeline.fault('snapshot taken');
    for (const [tenantId, subscriptionId] of queues) {
      const count = world.sized(DEAD_ROWS, 100_000) / TENANTS.length;
      await leaveDeadRows(owner, tenantId, subscriptionId, count);
    }
    const leader = await world.dispatch(url, 'api,maintenance');
    const alarmed = await eventually(async () => aboveZero(gaugeOf(await readMetrics(leader), AGE)));
    const pinnedMs = Math.max(LEAST_PINNED_MS, PINNED_MS * world.scale ** 2);
    const before = await claimsOf(worker);
    await wait(pinnedMs);
    const pinned = since(before, await claimsOf(worker));
    await pinning.end();
    world.timeline.fault('snapshot released');
    const releasedAt = performance.now();
    await eventually(() => asUsual(worker, usual), 2 * RECOVERED_WITHIN_S * 1000);
    const recoveredS = (performance.now() - releasedAt) / 1000;
    await producer.stop();
    const verdict = await world.judge(url);
    return {
      verdict,
      figures: [
        { name: 'claims', value: countOf(pinned), atLeast: pinnedMs / 100 },
        { name: 'claim p99 before, ms', value: 1000 * quantileOf(usual, 0.99) },
        { name: 'claim p99 pinned, ms', value: 1000 * quantileOf(pinned, 0.99), atMost: 100 },
        { name: 'recovered, s', value: recoveredS, atMost: RECOVERED_WITHIN_S },
        { name: 'age that the leader saw, s', value: alarmed },
      ],
    };
  },
};

const STEADY_MS = 2_000;
const DEAD_ROWS = 300_000;
/** The full run spends most of its time here, so a small one does with less than its share. */
const PINNED_MS = 290_000;
const LEAST_PINNED_MS = 5_000;
const RECOVERED_WITHIN_S = 60;

const claimsOf = async (worker: DispatchProcess): Promise<Histogram> =>
  histogramOf(await readMetrics(worker), 'dispatch_claim_seconds');

function aboveZero(age: number): number {
  if (!(age > 0)) throw new Error('the leader has not seen the snapshot');
  return age;
}

/** One second of claims is no slower than twice what was usual; the bound of the lowest bucket is the least that shows. */
async function asUsual(worker: DispatchProcess, usual: Histogram): Promise<void> {
  const before = await claimsOf(worker);
  await wait(1_000);
  const median = quantileOf(since(before, await claimsOf(worker)), 0.5);
  const atMost = Math.max(0.001, 2 * quantileOf(usual, 0.5));
  if (!(median <= atMost)) throw new Error(`a claim takes ${median} s, usually ${atMost / 2}`);
}

/** Due deliveries that came and went since the snapshot was taken: what minutes of traffic leave, in one transaction. */
async function leaveDeadRows(
  owner: pg.Client,
  tenantId: string,
  subscriptionId: string,
  count: number,
): Promise<void> {
  await owner.query('BEGIN');
  await owner.query(
    `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at)
     SELECT $1, gen_random_uuid(), $2, now() - interval '1 h' + i * interval '1 ms' FROM generate_series(1, $3::int) AS i`,
    [tenantId, uuidOf(subscriptionId as SubscriptionId), Math.round(count)],
  );
  await owner.query("DELETE FROM deliveries WHERE tenant_id = $1 AND run_at < now() - interval '1 min'", [
    tenantId,
  ]);
  await owner.query('COMMIT');
}
