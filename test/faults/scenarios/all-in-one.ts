// The all-in-one process with its embedded database is killed by SIGKILL under load: every other time its database lives on
// and is found again, every other time it is killed, too, and recovers what was committed from its log.
import { mkdtemp, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { embeddedUrl, removeWithServer, signalEmbedded } from '../../support/embedded.ts';
import { eventually } from '../../support/eventually.ts';
import { freePort } from '../../support/free-port.ts';
import { clientsOf } from '../../support/rpc-clients.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { subscribe } from '../world.ts';

const TENANT = 'acme';
const PER_SECOND = 500;
const PER_KILL = 500;
const LEASE_S = 10;

export const allInOne: Scenario = {
  name: 'all-in-one',
  about: '20 × SIGKILL of everything in one process, 10 times with its embedded database, under 500 events/s',
  promises: ['P1', 'P2', 'P3'],
  seconds: 120,
  async run(world) {
    const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-kill-'));
    world.use({ [Symbol.asyncDispose]: () => removeWithServer(dataDir) });
    const endpoint = await startEndpoint(world);
    const settings = {
      // Nothing is given: the database, the keys and their files are its own.
      DISPATCH_DATABASE_URL: '',
      DISPATCH_ADMIN_KEY: '',
      DISPATCH_MASTER_KEYS: '',
      DISPATCH_DATA_DIR: dataDir,
      DISPATCH_HTTP_PORT: String(await freePort()),
      DISPATCH_GRPC_PORT: String(await freePort()),
      DISPATCH_LEASE_SECONDS: String(LEASE_S),
    };
    const start = () => world.dispatch('', 'api,worker,maintenance', settings);
    let dispatch = await start();
    const clients = clientsOf(dispatch.httpPort, await readFile(join(dataDir, 'admin-key'), 'utf8'));
    await subscribe(clients, TENANT, endpoint.url);
    const kills = world.sized(20, 2);
    const count = kills * PER_KILL;
    const producer = startProducer(world, {
      tenantIds: [TENANT],
      clients: () => [clients],
      perSecond: PER_SECOND,
      count,
    });
    let databaseKills = 0;
    const claimed = new Set<string>();
    for (let kill = 1; kill <= kills; kill++) {
      // In the middle of the work, wherever that is.
      const dueAt = (kill - 1) * PER_KILL + world.between(100, 300);
      const reached = eventually(() => {
        if (producer.ackedCount() < dueAt) throw new Error(`${producer.ackedCount()} of ${dueAt} are acked`);
      }, 60_000);
      await Promise.race([reached, producer.done]); // the producer may have failed
      await dispatch.kill('SIGKILL');
      const killedAtMs = Date.now();
      const isWhole = kill % 2 === 0;
      if (isWhole && (await signalEmbedded(dataDir, 'SIGKILL'))) databaseKills++;
      world.timeline.fault(isWhole ? 'both' : 'process');
      const [claims, next] = await Promise.all([claimedBefore(dataDir, killedAtMs), start()]);
      for (const claim of claims) claimed.add(claim);
      dispatch = next;
    }
    await producer.done;
    const verdict = await world.judge(await embeddedUrl(dataDir));
    const stopped = await dispatch.kill('SIGTERM');
    return {
      verdict,
      figures: [
        { name: 'acked', value: verdict.acked, atLeast: count },
        { name: 'kills', value: kills },
        { name: 'of the database, too', value: databaseKills, atLeast: Math.floor(kills / 2) },
        { name: 'claimed at the kills', value: claimed.size },
        { name: 'duplicates ÷ claimed', value: verdict.duplicated / Math.max(1, claimed.size), atMost: 1 },
        { name: 'code of the last, stopped by SIGTERM', value: stopped ?? Number.NaN, atMost: 0 },
      ],
    };
  },
};

/** The claims that a killed process left, by delivery and lease; asked once its database answers, before they end. */
function claimedBefore(dataDir: string, killedAtMs: number): Promise<string[]> {
  return eventually(async () => {
    const owner = new pg.Client({ connectionString: await embeddedUrl(dataDir) });
    owner.on('error', () => {}); // the query hears of it, too
    try {
      await owner.connect();
      const { rows } = await owner.query<{ claim: string }>(
        `SELECT id || '/' || lease AS claim FROM deliveries
         WHERE lease IS NOT NULL AND run_at <= to_timestamp($1 / 1000.0) + make_interval(secs => $2)`,
        [killedAtMs, LEASE_S],
      );
      return rows.map((row) => row.claim);
    } finally {
      await owner.end();
    }
  });
}
