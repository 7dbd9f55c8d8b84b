// Workers are killed by SIGKILL at random moments under a steady load. Whatever a worker had claimed is sent again once its
// lease has run out: nothing is lost, and no more is sent twice than was in flight at the kills.
import { execFile } from 'node:child_process';
import { setTimeout as wait } from 'node:timers/promises';
import { promisify } from 'node:util';
import type pg from 'pg';
import { eventually } from '../../support/eventually.ts';
import type { DispatchProcess } from '../../support/processes.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe, type World } from '../world.ts';

const WORKERS = 3;
const PER_SECOND = 600;
/** Events between two kills, at least. Each new process takes a second of a core to start. */
const PER_KILL = 1_000;
const LEASE_S = 10;
const TENANTS = ['t0', 't1', 't2', 't3'];

export const workerKill: Scenario = {
  name: 'worker-kill',
  about: `200 × SIGKILL of a worker under 200,000 deliveries at ${PER_SECOND}/s`,
  promises: ['P2', 'P3'],
  seconds: 420,
  isTimed: true,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    const settings = { DISPATCH_LEASE_SECONDS: String(LEASE_S) };
    const api = await world.dispatch(url, 'api', settings);
    const start = () => world.dispatch(url, 'worker,maintenance', settings);
    const workers = new Set<DispatchProcess>();
    for (let i = 0; i < WORKERS; i++) workers.add(await start());
    const admin = adminOf(api);
    for (const tenantId of TENANTS) await subscribe(admin, tenantId, endpoint.url);
    const kills = world.sized(200, 20);
    const producer = startProducer(world, {
      tenantIds: TENANTS,
      clients: () => [admin],
      perSecond: PER_SECOND,
    });
    const acked = async (count: number) => {
      while (producer.ackedCount() < count) await wait(5);
    };
    const inFlight = new Set<string>();
    for (let kill = 1, startedAt = 0; kill <= kills; kill++) {
      await acked(startedAt + PER_KILL * 0.9);
      startedAt = producer.ackedCount();
      await caughtUp(world);
      const victim = [...workers][world.between(0, workers.size - 1)]!;
      workers.delete(victim);
      await killFromOutside(victim, world.between(20, 120));
      world.timeline.fault(`kill ${kill}`);
      const starting = start();
      await wait(SETTLED_MS);
      for (const claimed of await leftBehind(owner)) inFlight.add(claimed);
      workers.add(await starting);
    }
    await acked(kills * PER_KILL);
    await producer.stop();
    const verdict = await world.judge(url);
    return {
      verdict,
      figures: [
        { name: 'kills', value: kills },
        { name: 'claimed at the kills', value: inFlight.size },
        { name: 'duplicates ÷ claimed', value: verdict.duplicated / Math.max(1, inFlight.size), atMost: 1 },
        { name: 'duplicates ÷ deliveries', value: verdict.duplicated / verdict.acked, atMost: 0.01 },
      ],
    };
  },
};

/**
 * Kills after a time that another process waits for. This one is the endpoint, too: its timers come right after it has
 * answered, which is the worst moment for the worker, and not a random one.
 */
async function killFromOutside(victim: DispatchProcess, afterMs: number): Promise<void> {
  const { pid } = victim.child;
  await promisify(execFile)('sh', ['-c', `sleep ${afterMs / 1000}; kill -KILL ${pid}`]);
  await victim.kill('SIGKILL'); // it is gone
}

/** Deliveries that may be on their way in the steady state, those of workers that were killed before included. */
const ON_THEIR_WAY = 200;

/**
 * Waits until the workers keep up with the load again. A worker that works off a backlog has as much in flight as it can
 * have: what a kill costs then says how slow the machine was just before.
 */
async function caughtUp({ ledger }: World): Promise<void> {
  await eventually(() => {
    const left = ledger.acked.size - ledger.arrivals.length;
    if (left > ON_THEIR_WAY) throw new Error(`${left} deliveries behind`);
  }, 60_000);
}

/** Under this load a worker that lives has finished by then what it had claimed when another was killed. */
const SETTLED_MS = 250;

/** Claims that are older than that: those of dead workers, by delivery and lease. */
async function leftBehind(owner: pg.Client): Promise<string[]> {
  const { rows } = await owner.query<{ claimed: string }>(
    `SELECT id || '/' || lease AS claimed FROM deliveries
     WHERE lease IS NOT NULL AND run_at <= now() + make_interval(secs => $1)`,
    [LEASE_S - SETTLED_MS / 1000],
  );
  return rows.map((row) => row.claimed);
}
