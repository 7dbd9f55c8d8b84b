// Two processes work through a real PgBouncer in transaction mode, which has fewer connections than they have, and which is
// stopped and killed under load. What a session would have to remember is asked of nobody.
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { startPgBouncer } from '../../support/pgbouncer.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const PER_SECOND = 300;
const LEASE_S = 10;
const POOL_SIZE = 5;
const TENANTS = ['t0', 't1', 't2', 't3'];

export const pgbouncer: Scenario = {
  name: 'pgbouncer',
  about: 'two processes through a PgBouncer in transaction mode, restarted 20 × under 300 events/s',
  promises: ['P1', 'P2', 'P3', 'P6'],
  seconds: 75,
  async run(world) {
    const { url, owner } = await world.database();
    const pooler = world.use(await startPgBouncer(url, POOL_SIZE));
    const endpoint = await startEndpoint(world);
    const settings = {
      DISPATCH_DIRECT_DATABASE_URL: url,
      DISPATCH_DATABASE_POOL_SIZE: '8',
      DISPATCH_LEASE_SECONDS: String(LEASE_S),
    };
    const instances = [
      await world.dispatch(pooler.url, 'api,worker,maintenance', settings),
      await world.dispatch(pooler.url, 'api,worker', settings),
    ];
    const clients = instances.map(adminOf);
    for (const tenantId of TENANTS) await subscribe(clients[0]!, tenantId, endpoint.url);
    const restarts = world.sized(20, 2);
    const producer = startProducer(world, {
      tenantIds: TENANTS,
      clients: () => clients,
      perSecond: PER_SECOND,
    });
    await wait(STEADY_MS);
    /** Sent and not answered, or answered and not recorded: what a restart may have sent twice. */
    const inFlight = new Set<string>();
    const sessions = await sessionsOf(owner);
    for (let i = 1; i <= restarts; i++) {
      world.timeline.fault(`stop ${i}`);
      await pooler.stop(i % 2 === 0 ? 'SIGKILL' : 'SIGTERM');
      const { rows } = await owner.query<{ id: string }>('SELECT id FROM deliveries WHERE lease IS NOT NULL');
      for (const { id } of rows) inFlight.add(id);
      await pooler.start();
      world.timeline.fault(`start ${i}`);
      await wait(STEADY_MS + world.between(0, 500));
    }
    await producer.stop();
    const alive = instances.filter(({ child }) => child.exitCode === null && child.signalCode === null);
    const verdict = await world.judge(url);
    return {
      verdict,
      figures: [
        { name: 'restarts', value: restarts },
        { name: 'processes alive', value: alive.length, atLeast: instances.length },
        { name: 'sessions through the pooler', value: sessions.pooled, atMost: POOL_SIZE },
        { name: 'direct sessions', value: sessions.direct, atMost: DIRECT_EACH * instances.length },
        { name: 'claimed at the restarts', value: inFlight.size },
        { name: 'duplicates − claimed', value: verdict.duplicated - inFlight.size, atMost: 0 },
      ],
    };
  },
};

const STEADY_MS = 2_000;
/** LISTEN, and maintenance while it does something. */
const DIRECT_EACH = 2;

type Sessions = { readonly pooled: number; readonly direct: number };

/** Who is connected to the database, this asker aside; a pooler's sessions have the names of its clients' pools. */
async function sessionsOf(owner: pg.Client): Promise<Sessions> {
  const { rows } = await owner.query<Sessions>(
    `SELECT count(*) FILTER (WHERE NOT is_direct)::int AS pooled, count(*) FILTER (WHERE is_direct)::int AS direct
     FROM (SELECT application_name IN ('dispatch-listen', 'dispatch-owner') AS is_direct FROM pg_stat_activity
       WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend') s`,
  );
  return rows[0]!;
}
