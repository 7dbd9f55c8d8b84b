// Hours in small: a steady load over many queues with a few endpoints that fail. Dead rows stay bounded, memory stays
// flat, claims stay quick.
import { readFile } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import type { DispatchProcess } from '../../support/processes.ts';
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
/** A full run is warm before it is measured; in a short one processes still grow to what the collector finds comfortable. */
const GROWTH_MB = { full: 40, short: 120 };
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
    const api = await world.dispatch(url, 'api');
    const worker = await world.dispatch(url, 'api,worker,maintenance');
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
    const warmAt = performance.now() + lastsMs / 4;
    while (performance.now() < warmAt) await wait(SAMPLE_MS);
    const claimsBefore = histogramOf(await readMetrics(worker), 'dispatch_claim_seconds');
    const sizes: number[][] = processes.map(() => []);
    let deadRows = 0;
    while (performance.now() < endsAt) {
      await wait(SAMPLE_MS);
      deadRows = Math.max(deadRows, await deadRowsOf(owner));
      for (const [i, process] of processes.entries()) sizes[i]!.push(await residentMb(process));
    }
    const claims = since(claimsBefore, histogramOf(await readMetrics(worker), 'dispatch_claim_seconds'));
    await producer.stop();
    const growth = sizes.map((each) => quartile(each, 3) - quartile(each, 0));
    const atMost = world.scale === 1 ? GROWTH_MB.full : GROWTH_MB.short;
    return {
      verdict: await world.judge(url),
      figures: [
        { name: 'most dead rows of the queues', value: deadRows, atMost: DEAD_ROWS },
        // From the median of the first quarter to that of the last: garbage comes and goes in between.
        { name: 'api, MB more', value: growth[0]!, atMost },
        { name: 'worker, MB more', value: growth[1]!, atMost },
        { name: 'claims', value: countOf(claims), atLeast: 10 },
        { name: 'claim p99, ms', value: 1000 * quantileOf(claims, 0.99), atMost: 20 },
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

async function residentMb({ child }: DispatchProcess): Promise<number> {
  const status = await readFile(`/proc/${child.pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1] ?? Number.NaN) / 1024;
}

/** The median of a quarter (0 to 3) of what was measured, in the order in which it was. */
function quartile(values: readonly number[], which: 0 | 3): number {
  const size = Math.max(1, Math.floor(values.length / 4));
  const part = which === 0 ? values.slice(0, size) : values.slice(-size);
  return [...part].sort((a, b) => a - b)[Math.floor(part.length / 2)] ?? Number.NaN;
}
