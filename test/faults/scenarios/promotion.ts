// The primary is lost and its synchronous standby takes over, again and again, behind an address that stays the same.
// Whatever was acked is on the standby; dispatch finds the new primary by itself.
import { startDatabaseLoad } from '../database-load.ts';
import { migrateServer, startPostgres } from '../postgres-server.ts';
import { startProxy } from '../proxy.ts';
import type { Scenario } from '../scenario.ts';

/** A standby gets what it missed while it was made from the primary's log. */
const SETTINGS = ['wal_keep_size=1GB'];

export const promotion: Scenario = {
  name: 'promotion',
  about: '5 × the primary killed and its synchronous standby promoted, at 300 events/s',
  promises: ['P1', 'P2'],
  seconds: 60,
  async run(world) {
    let primary = world.use(await startPostgres(SETTINGS));
    await migrateServer(primary);
    const proxy = world.use(await startProxy(primary.port));
    const address = new URL(primary.url);
    address.port = String(proxy.port);
    const load = await startDatabaseLoad(world, address.toString());
    const promotions = world.sized(5, 1);
    let backS = 0;
    for (let i = 1; i <= promotions; i++) {
      const standby = world.use(await primary.syncStandby());
      await load.acked(world.between(150, 450));
      world.timeline.fault(`primary ${i} lost`);
      await primary.crash();
      proxy.rules.isDown = true;
      proxy.cutAll();
      await standby.promote();
      proxy.target = { host: '127.0.0.1', port: standby.port };
      proxy.rules.isDown = false;
      world.timeline.fault('promoted');
      backS = Math.max(backS, await load.rateIsBack());
      primary = standby;
    }
    const figures = await load.stop();
    return {
      verdict: await world.judge(primary.url),
      figures: [
        { name: 'promotions', value: promotions },
        { name: 's until the rate is back', value: backS, atMost: 10 },
        ...figures,
      ],
    };
  },
};
