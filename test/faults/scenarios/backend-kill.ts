// Backends are terminated one after the other, whatever they are at: publishing, claiming, recording, listening. The
// promises are those of a restart, and the rate is kept while it goes on.
import { setTimeout as wait } from 'node:timers/promises';
import { startDatabaseLoad } from '../database-load.ts';
import type { Scenario } from '../scenario.ts';

const KILL_EVERY_MS = 200;

export const backendKill: Scenario = {
  name: 'backend-kill',
  about: '5 backends/s terminated for 5 min at 300 events/s',
  promises: ['P1', 'P2'],
  seconds: 330,
  async run(world) {
    const { url, owner } = await world.database();
    const load = await startDatabaseLoad(world, url);
    // Shorter runs are much shorter: what takes five minutes to show is for the full size.
    const kills = world.sized(1_500 * world.scale, 50);
    const startedAt = performance.now();
    const killed = new Map<string, number>();
    for (let kill = 0; kill < kills; kill++) {
      await wait(Math.max(0, startedAt + kill * KILL_EVERY_MS - performance.now()));
      // Every other one is at work just then, if any is. The owner's session asks, so it is not among them.
      const { rows } = await owner.query<{ name: string }>(
        `SELECT name, pg_terminate_backend(pid) FROM (
           SELECT pid, application_name AS name FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
           ORDER BY ($1 AND state = 'active') DESC, md5(pid || $2) LIMIT 1) victim`,
        [kill % 2 === 0, String(world.random())],
      );
      const victim = rows[0];
      if (victim === undefined) continue;
      world.timeline.fault('kill');
      killed.set(victim.name, (killed.get(victim.name) ?? 0) + 1);
    }
    const tookS = (performance.now() - startedAt) / 1000;
    const backS = await load.rateIsBack();
    const figures = await load.stop();
    world.say(`terminated: ${JSON.stringify(Object.fromEntries(killed))}`);
    return {
      verdict: await world.judge(url),
      figures: [
        { name: 'kills/s', value: kills / tookS, atLeast: 4.5 },
        { name: 's until the rate is back', value: backS, atMost: 10 },
        ...figures,
      ],
    };
  },
};
