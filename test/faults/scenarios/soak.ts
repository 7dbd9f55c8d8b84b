// Hours in small: a steady load over many queues with a few endpoints that fail. Dead rows stay bounded, memory stays
// flat, claims stay quick.
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { p99Figures, startBareWrites } from '../bare-writes.ts';
import { INSPECTED, keptMb } from '../memory.ts';
import { countOf, histogramOf, quantileOf, readMetrics, since } from '../metrics.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const PER_SECOND = 500;
const TENANTS = Array.from({ length: 20 }, (_, i) => `t${i}`);
/** Each queue's leaf is vacuumed at 20,000 dead rows; what dies while that goes on, on each of the leaves, comes on top. */
const DEAD_ROWS = 4 * 20_000 * 1.5;
const SAMPLE_MS = 1_000;
const GROWTH_MB = 40;
const RETRIES = { schedule: { case: 'list' as const, value: { delays: Array(8).fill({ seconds: 1n }) } } };

export const soak: Scenario = {
  name: 'soak',
  about: '15 min at 500 deliveries/s to 20 tenants, 1 % of the attempts failing',
  promises: ['P2', 'P7'],
  seconds: 920,
  isTimed: true,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    endpoint.answer = () => (world.random() < 0.01 ? 500 : 204);
    const api = await world.dispatch(url, 'api', INSPECTED);
    const worker = await world.dispatch(url, 'api,worker,maintenance', INSPECTED);
    const admin = adminOf(api);
    for (const tenantId of TENANTS) await subscribe(admin, tenantId, endpoint.url, { retryPolicy: RETRIES });
    const producer = startProducer(world, {
      tenantIds: TENANTS,
      clients: () => [admin],
      perSecond: PER_SECOND,
    });
    const processes = [api, worker];
    // The shorter a run the less it says, and the less of the time it may take.
    const lastsMs = 900_000 * world.scale ** 1.6;
    const endsAt = performance.now() + lastsMs;
    let deadRows = 0;
    const watchUntil = async (untilMs: number): Promise<void> => {
      while (performance.now() < untilMs) {
        await wait(SAMPLE_MS);
        deadRows = Math.max(deadRows, await deadRowsOf(owner));
      }
    };
    await watchUntil(endsAt - (7 / 8) * lastsMs);
    const before = await Promise.all(processes.map(keptMb));
    // Claims are timed well after that: a process stands still meanwhile, throws away what it has compiled, and compiles
    // again on both cores while it serves.
    await watchUntil(endsAt - lastsMs / 2);
    const bareWrites = await startBareWrites(url);
    const claimsBefore = histogramOf(await readMetrics(worker), 'dispatch_claim_seconds');
    await watchUntil(endsAt);
    const claims = since(claimsBefore, histogramOf(await readMetrics(worker), 'dispatch_claim_seconds'));
    const claimP99 = 1000 * quantileOf(claims, 0.99);
    const bareMs = await bareWrites.stop();
    await producer.stop();
    const after = await Promise.all(processes.map(keptMb));
    const growth = after.map((mb, i) => mb - before[i]!);
    return {
      verdict: await world.judge(url),
      figures: [
        { name: 'most dead rows of the queues', value: deadRows, atMost: DEAD_ROWS },
        { name: 'api, MB more', value: growth[0]!, atMost: GROWTH_MB },
        { name: 'worker, MB more', value: growth[1]!, atMost: GROWTH_MB },
        { name: 'claims', value: countOf(claims), atLeast: 10 },
        ...p99Figures('claim', claimP99, bareMs, { atMost: 20, isFullSize: world.scale === 1 }),
      ],
    };
  },
};

async function deadRowsOf(owner: pg.Client): Promise<number> {
  const { rows } = await owner.query<{ n: string | null }>(
    "SELECT sum(n_dead_tup) AS n FROM pg_stat_user_tables WHERE relname LIKE 'deliveries%'",
  );
  return Number(rows[0]?.n ?? Number.NaN);
}
