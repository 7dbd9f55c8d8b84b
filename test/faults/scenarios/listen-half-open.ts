// The LISTEN connections go half-open: what is sent into them is gone, and nobody closes them. The heartbeat finds that out,
// and until it has, polling finds what other processes publish.
import type pg from 'pg';
import { eventually } from '../../support/eventually.ts';
import { startProducer } from '../producer.ts';
import { type Link, startProxy } from '../proxy.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const WORKERS = 3;
/** So few that a queue is empty, and nobody looks at it, when the next event comes. */
const PER_SECOND = 20;
const TENANTS = Array.from({ length: 20 }, (_, i) => `t${i}`);
const FOUND_WITHIN_S = 15;

export const listenHalfOpen: Scenario = {
  name: 'listen-half-open',
  about: 'LISTEN connections of an API and three workers go half-open, 5 ×; found ≤ 15 s, polling goes on',
  promises: ['P2'],
  seconds: 85,
  async run(world) {
    const { url, owner } = await world.database();
    const proxy = world.use(await startProxy(Number(new URL(url).port || '5432')));
    const endpoint = await startEndpoint(world);
    const direct = new URL(url);
    direct.host = `127.0.0.1:${proxy.port}`;
    const settings = { DISPATCH_DIRECT_DATABASE_URL: direct.toString() };
    const api = await world.dispatch(url, 'api', settings);
    for (let i = 0; i < WORKERS; i++) await world.dispatch(url, 'worker', settings);
    const admin = adminOf(api);
    for (const tenantId of TENANTS) await subscribe(admin, tenantId, endpoint.url);
    const clients = () => [admin];
    const producer = startProducer(world, { tenantIds: TENANTS, clients, perSecond: PER_SECOND, batch: 1 });
    const faults = world.sized(5, 1);
    let latestS = 0;
    const deaf: { readonly from: number; readonly to: number }[] = [];
    for (let fault = 1; fault <= faults; fault++) {
      const dead = await eventually(() => listening(proxy.links));
      const dies = performance.now();
      const from = await databaseNow(owner);
      const again: number[] = [];
      proxy.rules.onConnect = () => again.push(performance.now() - dies);
      proxy.rules.onChunk = (_chunk, _direction, link) => (dead.has(link) ? 'swallow' : 'pass');
      world.timeline.fault(`half-open ${fault}`);
      await eventually(
        () => {
          if (again.length < dead.size) throw new Error(`${again.length} of ${dead.size} connected again`);
        },
        3 * FOUND_WITHIN_S * 1000,
      );
      latestS = Math.max(latestS, ...again.map((ms) => ms / 1000));
      deaf.push({ from, to: await databaseNow(owner) });
      world.timeline.fault(`found ${fault}`);
    }
    await producer.stop();
    const verdict = await world.judge(url);
    const lags: number[] = [];
    for (const span of deaf) lags.push(...(await lagsOf(owner, span)));
    lags.sort((a, b) => a - b);
    return {
      verdict,
      figures: [
        { name: 'half-open connections', value: faults * (WORKERS + 1) },
        { name: 'found and reconnected, s', value: latestS, atMost: FOUND_WITHIN_S },
        { name: 'deliveries meanwhile', value: lags.length, atLeast: faults * PER_SECOND },
        { name: 'publish → sent meanwhile, p50 ms', value: lags[Math.floor(lags.length / 2)] ?? Number.NaN },
        { name: 'latest, ms', value: lags.at(-1) ?? Number.NaN, atMost: POLLED_MS },
      ],
    };
  },
};

/** A walk over the queues each second, and the claim and the request after it. */
const POLLED_MS = 2_000;

/** The links that are there once nothing but LISTEN uses the direct URL any more. */
function listening(links: ReadonlySet<Link>): ReadonlySet<Link> {
  if (links.size !== WORKERS + 1) throw new Error(`${links.size} direct connections`);
  return new Set(links);
}

async function databaseNow(owner: pg.Client): Promise<number> {
  const { rows } = await owner.query<{ now: number }>(
    'SELECT extract(epoch FROM clock_timestamp())::float8 * 1000 AS now',
  );
  return rows[0]!.now;
}

/** From publish to request, in ms, of what was published in a span: an id holds the ms of its making (UUIDv7). */
async function lagsOf(
  owner: pg.Client,
  span: { readonly from: number; readonly to: number },
): Promise<number[]> {
  const { rows } = await owner.query<{ lag: number }>(
    `SELECT extract(epoch FROM started_at)::float8 * 1000 - published AS lag
     FROM attempts, LATERAL (
       SELECT ('x' || left(translate(delivery_id::text, '-', ''), 12))::bit(48)::int8::float8 AS published) p
     WHERE published BETWEEN $1 AND $2`,
    [span.from, span.to],
  );
  return rows.map((row) => row.lag);
}
