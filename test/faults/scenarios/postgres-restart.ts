// PostgreSQL crashes and comes back, again and again, under a steady load: whatever was acked is there and is delivered,
// producers hear nothing worse than "try again", and dispatch needs no restart of its own.
import { startDatabaseLoad } from '../database-load.ts';
import { migrateServer, startPostgres } from '../postgres-server.ts';
import type { Scenario } from '../scenario.ts';

/** Acked between one crash and the next. */
const BETWEEN = { from: 150, to: 450 };

export const postgresRestart: Scenario = {
  name: 'postgres-restart',
  about: '20 × SIGQUIT to the postmaster (an immediate restart) at 300 events/s',
  promises: ['P1', 'P2'],
  seconds: 110,
  async run(world) {
    const server = world.use(await startPostgres());
    await migrateServer(server);
    const load = await startDatabaseLoad(world, server.url);
    const restarts = world.sized(20, 2);
    let backS = 0;
    for (let restart = 1; restart <= restarts; restart++) {
      await load.acked(world.between(BETWEEN.from, BETWEEN.to));
      world.timeline.fault(`crash ${restart}`);
      await server.crash();
      await server.start();
      world.timeline.fault('it answers');
      backS = Math.max(backS, await load.rateIsBack());
    }
    const figures = await load.stop();
    return {
      verdict: await world.judge(server.url),
      figures: [
        { name: 'restarts', value: restarts },
        { name: 's until the rate is back', value: backS, atMost: 10 },
        ...figures,
      ],
    };
  },
};
