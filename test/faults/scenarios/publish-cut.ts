// The connection is cut at each point of a publish, and the API stays: between the client and it, or between it and
// Postgres, before or after COMMIT. What a client sees is the same as when the API is killed, and so is what must hold.
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

export const publishCut: Scenario = {
  name: 'publish-cut',
  about: '200 connections cut, 40 at each of 5 points of a publish, before and after COMMIT',
  promises: ['P1', 'P2', 'P3'],
  seconds: 30,
  async run(world) {
    const { url } = await world.database();
    const endpoint = await startEndpoint(world);
    const back = world.use(await startProxy(Number(new URL(url).port)));
    await world.dispatch(url, 'worker,maintenance', { DISPATCH_LEASE_SECONDS: '10' });
    const api = await world.dispatch(throughPort(url, back.port), 'api');
    const front = world.use(await startProxy(api.httpPort));
    const direct = adminOf(api);
    for (const path of ['a', 'b']) await subscribe(direct, TENANT, `${endpoint.url}/${path}`);

    const producer = startProducer(world, {
      tenantIds: [TENANT],
      clients: () => [direct],
      perSecond: PER_SECOND,
    });
    const findings = noFindings();
    const first = adminOf({ httpPort: front.port });
    const cuts = PUBLISH_POINTS.length * world.sized(40, 4);
    for (let cut = 0; cut < cuts; cut++) {
      const point = PUBLISH_POINTS[cut % PUBLISH_POINTS.length]!;
      const strike = (link: { readonly cut: () => void }) => link.cut();
      const key = `probe-${cut}-`;
      await probePublish(
        world,
        { point, tenantId: TENANT, key, front, back, first, second: direct, strike },
        findings,
      );
    }
    await producer.stop();
    const verdict = await world.judge(url);
    return {
      verdict,
      figures: [
        ...figuresOf(findings, 'cuts', cuts),
        { name: 'duplicates', value: verdict.duplicated, atMost: 0 },
        { name: 'processes that ended', value: api.child.exitCode === null ? 0 : 1, atMost: 0 },
      ],
    };
  },
};
