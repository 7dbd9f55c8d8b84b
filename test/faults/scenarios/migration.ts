// The next version is rolled out while the one before it serves, and a long reader holds a table that its migration has to
// lock. Whoever waits behind the migration waits for no longer than it does at a time; once the reader is done, so is the
// migration, and both versions serve on the new schema.
import { copyFileSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import pg from 'pg';
import { migrate } from '../../../src/storage/migrate.ts';
import { cloneDatabaseOn } from '../../support/database.ts';
import { previousVersion } from '../previous-version.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe, type World } from '../world.ts';

const PER_SECOND = 200;
const TENANTS = ['t0', 't1'];
const LAYOUT = { hashPartitions: 4, partitionDays: 7 };

export const migration: Scenario = {
  name: 'migration',
  about:
    'a migration waits 40 s for a long reader while the version before it serves: no publish waits > 2.5 s',
  promises: ['P1', 'P2'],
  seconds: 60,
  isTimed: true,
  async run(world) {
    const previous = previousVersion(world.say);
    if (previous !== undefined) world.use(previous);
    // The previous version brings an empty database to its own schema; without it this one's has to do.
    const { url } =
      previous === undefined
        ? await world.database()
        : world.use(await cloneDatabaseOn(world.serverUrl, 'template1'));
    const endpoint = await startEndpoint(world);
    const olds = [
      await world.dispatch(url, 'api', {}, previous?.checkout),
      await world.dispatch(url, 'worker,maintenance', {}, previous?.checkout),
    ];
    const clients = [adminOf(olds[0]!)];
    for (const tenantId of TENANTS) await subscribe(clients[0]!, tenantId, endpoint.url);
    const producer = startProducer(world, {
      tenantIds: TENANTS,
      clients: () => clients,
      perSecond: PER_SECOND,
    });
    await wait(STEADY_MS);

    const reader = new pg.Client({ connectionString: url });
    await reader.connect();
    await reader.query('BEGIN');
    await reader.query('SELECT count(*) FROM deliveries');
    world.timeline.fault('reader begins');
    let isDone = false;
    const migrating = migrate(url, LAYOUT, nextMigrations(world)).finally(() => {
      isDone = true;
    });
    migrating.catch(() => {}); // awaited below
    await wait(world.sized(HELD_MS, 7_000));
    const waited = !isDone;
    await reader.end();
    world.timeline.fault('reader ends');
    const releasedAt = performance.now();
    const { applied } = await migrating;
    const doneS = (performance.now() - releasedAt) / 1000;
    world.timeline.fault('migrated');

    // The old ones go on, and the new ones beside them.
    clients.push(adminOf(await world.dispatch(url, 'api')));
    await world.dispatch(url, 'worker,maintenance');
    await wait(STEADY_MS);
    await producer.stop();
    const verdict = await world.judge(url);
    const failed = [...producer.failures.values()].reduce((sum, count) => sum + count, 0);
    return {
      verdict,
      figures: [
        { name: 'old version', value: previous === undefined ? 0 : 1 },
        { name: 'migrations applied', value: applied.length, atLeast: previous === undefined ? 1 : 2 },
        { name: 'waited for the reader', value: Number(waited), atLeast: 1 },
        { name: 'done after the reader, s', value: doneS, atMost: 10 },
        { name: 'failed publishes', value: failed, atMost: 0 },
        // At least half a second: somebody did wait behind the migration.
        { name: 'longest publish, ms', value: Math.max(...producer.latencies), atLeast: 500, atMost: 2_500 },
      ],
    };
  },
};

const STEADY_MS = 1_500;
const HELD_MS = 40_000;

/** This version's migrations, and one after them that needs the strongest lock on all that publishing and delivering use. */
function nextMigrations(world: World): URL {
  const from = fileURLToPath(new URL('../../../migrations/', import.meta.url));
  const to = mkdtempSync(join(tmpdir(), 'dispatch-migrations-'));
  world.use({ [Symbol.asyncDispose]: async () => rmSync(to, { recursive: true, force: true }) });
  for (const name of readdirSync(from)) copyFileSync(join(from, name), join(to, name));
  writeFileSync(
    join(to, '9999_strong_lock.sql'),
    'LOCK TABLE tenants, events, attempts, deliveries IN ACCESS EXCLUSIVE MODE;\n',
  );
  return pathToFileURL(`${to}/`);
}
