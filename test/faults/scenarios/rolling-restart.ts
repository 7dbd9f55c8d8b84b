// APIs and workers are restarted by SIGTERM, one of each at a time, at 1,000 events/s. Callers with a retry policy see no
// failed call, nothing is lost, and nothing is sent twice: what was claimed and not sent is given back.

import { eventually } from '../../support/eventually.ts';
import { freePort } from '../../support/free-port.ts';
import { ADMIN_KEY } from '../../support/instance.ts';
import type { DispatchProcess } from '../../support/processes.ts';
import { type Producer, startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import { retryingClient } from '../retrying-client.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const PER_SECOND = 1_000;
const TENANTS = Array.from({ length: 10 }, (_, i) => `t${i}`);
/** Of every two, one of each role may be away. */
const PAIRS = 2;

type Place = { readonly roles: string; readonly settings: Record<string, string>; process: DispatchProcess };

export const rollingRestart: Scenario = {
  name: 'rolling-restart',
  about: '50 rolling restarts by SIGTERM of two APIs and two workers at 1,000 events/s',
  promises: ['P1', 'P2', 'P8'],
  seconds: 200,
  isTimed: true,
  async run(world) {
    const { url } = await world.database();
    const endpoint = await startEndpoint(world);
    const place = async (roles: string): Promise<Place> => {
      const [http, grpc] = [await freePort(), await freePort()];
      const settings = { DISPATCH_HTTP_PORT: String(http), DISPATCH_GRPC_PORT: String(grpc) };
      return { roles, settings, process: await world.dispatch(url, roles, settings) };
    };
    const all = (roles: string) => Promise.all(Array.from({ length: PAIRS }, () => place(roles)));
    const apis = await all('api');
    const workers = await all('worker,maintenance');
    const clients = apis.map(({ process }) => adminOf(process));
    for (const [i, tenantId] of TENANTS.entries()) {
      // Made by one API and used by the other at once: what an API knows of a tenant is never stale.
      await subscribe(clients[i % PAIRS]!, tenantId, endpoint.url);
    }
    const grpc = world.use(
      retryingClient(
        apis.map(({ process }) => process.grpcPort),
        ADMIN_KEY,
      ),
    );
    const half = { tenantIds: TENANTS, perSecond: PER_SECOND / 2, batch: 10 };
    const byGrpc = startProducer(world, { ...half, clients: () => [grpc] });
    const byConnect = startProducer(world, { ...half, clients: () => [...clients].reverse() });
    const codes: (number | null)[] = [];
    const restart = async (place: Place): Promise<void> => {
      world.timeline.fault(`SIGTERM ${place.roles.split(',')[0]}`);
      codes.push(await place.process.kill('SIGTERM'));
      place.process = await world.dispatch(url, place.roles, place.settings);
    };
    const restarts = world.sized(50);
    for (let n = 0; n < restarts; n++) {
      for (let pair = 0; pair < PAIRS; pair++) {
        const api = apis[pair]!;
        await Promise.all([restart(api), restart(workers[pair]!)]);
        // The other one goes when callers have found this one: whoever restarts both at once has neither.
        const { grpcPort } = api.process;
        const before = grpc.answeredBy(grpcPort);
        await eventually(() => {
          if (grpc.answeredBy(grpcPort) === before) throw new Error(`nobody calls port ${grpcPort} any more`);
        });
      }
    }
    await Promise.all([byGrpc.stop(), byConnect.stop()]);
    const verdict = await world.judge(url);
    for (const { process } of [...apis, ...workers]) codes.push(await process.kill('SIGTERM'));
    return {
      verdict,
      figures: [
        { name: 'rolling restarts', value: restarts },
        { name: 'processes restarted', value: restarts * 2 * PAIRS },
        { name: 'ended with an error', value: codes.filter((code) => code !== 0).length, atMost: 0 },
        { name: 'failed gRPC calls', value: failed(byGrpc), atMost: 0 },
        { name: 'mended by the retry policy', value: grpc.retriedCount() },
        { name: 'Connect calls cut off', value: failed(byConnect, 'Unavailable'), atMost: 0 },
        { name: 'refused, tried again', value: byConnect.failures.get('Unavailable') ?? 0 },
        { name: 'duplicates', value: verdict.duplicated, atMost: 0 },
        { name: 'deliveries ÷ events', value: verdict.receivedRequests / verdict.acked, atLeast: 1 },
      ],
    };
  },
};

/** Failed calls of a producer with other codes than one. */
const failed = ({ failures }: Producer, except?: string): number =>
  [...failures].reduce((sum, [code, count]) => sum + (code === except ? 0 : count), 0);
