// An API process is killed by SIGKILL at each point of a publish, under a load of others. The client tries again with the
// same idempotency key at another API: what was committed is a duplicate, what was not is stored now, and nothing is
// fanned out twice.
import { setTimeout as wait } from 'node:timers/promises';
import type { DispatchProcess } from '../../support/processes.ts';
import { throughPort } from '../postgres-wire.ts';
import { startProducer } from '../producer.ts';
import { startProxy } from '../proxy.ts';
import { PUBLISH_POINTS } from '../publish-points.ts';
import { figuresOf, noFindings, probePublish } from '../publish-probe.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const TENANT = 'acme';
const PER_SECOND = 200;

export const apiKill: Scenario = {
  name: 'api-kill',
  about: '100 × SIGKILL of an API, 20 at each of 5 points of a publish, under 200 events/s',
  promises: ['P1', 'P2', 'P3'],
  seconds: 120,
  async run(world) {
    const { url } = await world.database();
    const endpoint = await startEndpoint(world);
    const back = world.use(await startProxy(Number(new URL(url).port)));
    // As short as a lease may be: what is wrongly left under one is sent again before the run is judged.
    await world.dispatch(url, 'worker,maintenance', { DISPATCH_LEASE_SECONDS: '10' });
    const survivor = adminOf(await world.dispatch(url, 'api'));
    const start = () => world.dispatch(throughPort(url, back.port), 'api');
    let victim: DispatchProcess = await start();
    const front = world.use(await startProxy(victim.httpPort));
    for (const path of ['a', 'b']) await subscribe(survivor, TENANT, `${endpoint.url}/${path}`);

    let apis = [survivor, adminOf(victim)];
    const producer = startProducer(world, {
      tenantIds: [TENANT],
      clients: () => apis,
      perSecond: PER_SECOND,
    });
    const findings = noFindings();
    const kills = PUBLISH_POINTS.length * world.sized(20, 2);
    for (let kill = 0; kill < kills; kill++) {
      const isLast = kill === kills - 1;
      const next = isLast ? undefined : start();
      next?.catch(() => {}); // awaited below
      await probePublish(
        world,
        {
          point: PUBLISH_POINTS[kill % PUBLISH_POINTS.length]!,
          tenantId: TENANT,
          key: `probe-${kill}-`,
          front,
          back,
          first: adminOf({ httpPort: front.port }),
          second: survivor,
          strike: () => {
            apis = [survivor];
            void victim.kill('SIGKILL');
          },
        },
        findings,
      );
      if (next === undefined) break;
      victim = await next;
      front.target = { host: '127.0.0.1', port: victim.httpPort };
      apis = [survivor, adminOf(victim)];
      await wait(world.between(0, 100));
    }
    await producer.stop();
    const verdict = await world.judge(url);
    return {
      verdict,
      figures: [
        ...figuresOf(findings, 'kills', kills),
        // No worker was killed: whatever arrives twice was not recorded.
        { name: 'duplicates', value: verdict.duplicated, atMost: 0 },
      ],
    };
  },
};
