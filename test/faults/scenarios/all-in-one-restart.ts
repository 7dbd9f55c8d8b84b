// A process that publishes, delivers and looks after everything is restarted by SIGTERM under load, while what was just
// published waits in its memory and requests are on the wire. It is the only one: callers try again until it is back.
import { setTimeout as wait } from 'node:timers/promises';
import { freePort } from '../../support/free-port.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const PER_SECOND = 500;
/** What an endpoint takes for its answer: some requests are on the wire at any time. */
const ANSWER_MS = 5;

export const allInOneRestart: Scenario = {
  name: 'all-in-one-restart',
  about: '30 × SIGTERM of a process with all roles at 500 events/s',
  promises: ['P1', 'P2', 'P8'],
  seconds: 60,
  async run(world) {
    const { url } = await world.database();
    const endpoint = await startEndpoint(world);
    endpoint.answer = async () => {
      await wait(ANSWER_MS);
      return 204;
    };
    const [http, grpc] = [await freePort(), await freePort()];
    const settings = { DISPATCH_HTTP_PORT: String(http), DISPATCH_GRPC_PORT: String(grpc) };
    const start = () => world.dispatch(url, 'api,worker,maintenance', settings);
    let dispatch = await start();
    const admin = adminOf(dispatch);
    await subscribe(admin, 'acme', endpoint.url);
    const producer = startProducer(world, {
      tenantIds: ['acme'],
      clients: () => [admin],
      perSecond: PER_SECOND,
    });
    let errors = 0;
    const restarts = world.sized(30);
    for (let restart = 1; restart <= restarts; restart++) {
      const before = producer.ackedCount();
      while (producer.ackedCount() < before + PER_SECOND / 2) await wait(5);
      await wait(world.between(0, 50));
      world.timeline.fault(`SIGTERM ${restart}`);
      if ((await dispatch.kill('SIGTERM')) !== 0) errors++;
      dispatch = await start();
    }
    await producer.stop();
    const verdict = await world.judge(url);
    if ((await dispatch.kill('SIGTERM')) !== 0) errors++;
    return {
      verdict,
      figures: [
        { name: 'restarts', value: restarts },
        { name: 'ended with an error', value: errors, atMost: 0 },
        { name: 'calls cut off', value: producer.failures.get('Aborted') ?? 0, atMost: 0 },
        { name: 'refused, tried again', value: producer.failures.get('Unavailable') ?? 0 },
        { name: 'duplicates', value: verdict.duplicated, atMost: 0 },
      ],
    };
  },
};
