// A worker is killed by SIGKILL at each point of a delivery. What it had claimed is sent again once its lease has run out,
// under the same webhook-id and uncharged; and only what was on the wire arrives twice.
import type pg from 'pg';
import { idFromUuid } from '../../../src/domain/ids.ts';
import { eventually } from '../../support/eventually.ts';
import { executes, throughPort } from '../postgres-wire.ts';
import { startProxy, type Proxy as TcpProxy } from '../proxy.ts';
import { numbered, publishAll } from '../publish.ts';
import { type Endpoint, type Request, startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe, type World } from '../world.ts';

const EVENTS = 20;
const LEASE_S = 10;

const POINTS = [
  /** Claimed in the database; the events are not read yet, and nobody is connected to. */
  'claimed',
  /** A connection to the endpoint is made, nothing was sent on it. */
  'connected',
  /** Requests were sent, none is answered. */
  'sent',
  /** The endpoint said 2xx; the statement that records it has not reached Postgres. */
  'answered',
] as const;
type Point = (typeof POINTS)[number];

/** A worker's life: it got requests out from `fromMs` to `toMs`, and held `leases` when it was killed. */
type Life = {
  readonly fromMs: number;
  readonly toMs: number;
  /** When each ends, in ms since 1970, by delivery. */
  readonly leases: ReadonlyMap<string, number>;
};

type Seen = Request & { readonly atMs: number };

type Wires = { readonly endpoint: Endpoint; readonly front: TcpProxy; readonly back: TcpProxy };

export const workerPoints: Scenario = {
  name: 'worker-points',
  about: '40 × SIGKILL of a worker, 10 at each of 4 points of a delivery',
  promises: ['P2', 'P3', 'P8'],
  seconds: 90,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    const back = world.use(await startProxy(Number(new URL(url).port)));
    const settings = { DISPATCH_LEASE_SECONDS: String(LEASE_S) };
    const admin = adminOf(await world.dispatch(url, 'api', settings));
    const seen: Seen[] = [];
    const lives: Life[] = [];
    const known = new Set<string>();
    disarm(endpoint, back, seen);
    const kills = POINTS.length * world.sized(10);
    for (let kill = 0; kill < kills; kill++) {
      // An address of its own: nobody is connected to it yet.
      const front = world.use(await startProxy(endpoint.port));
      const tenantId = `t${kill}`;
      await subscribe(admin, tenantId, `http://127.0.0.1:${front.port}/hook`);
      const fromMs = Date.now();
      const victim = await world.dispatch(throughPort(url, back.port), 'worker', settings);
      const struck = arm(world, POINTS[kill % POINTS.length]!, { endpoint, front, back }, seen);
      await publishAll(world, admin, tenantId, numbered(EVENTS, kill));
      await struck(() => victim.kill('SIGKILL'));
      lives.push({ fromMs, toMs: Date.now(), leases: await leasesOf(owner, known) });
      front.rules.onChunk = () => 'pass';
      front.rules.onConnect = () => {};
      disarm(endpoint, back, seen);
    }
    await world.dispatch(url, 'worker,maintenance', settings);
    const rescuedFromMs = Date.now();
    const verdict = await world.judge(url);
    const { inFlight, onTheWire, tooEarly, latestMs } = comparison(lives, seen, rescuedFromMs);
    return {
      verdict,
      figures: [
        { name: 'kills', value: lives.length, atLeast: kills },
        { name: 'claimed at the kills', value: inFlight, atLeast: kills },
        { name: 'of those sent', value: onTheWire, atLeast: kills / 2 },
        { name: 'duplicates ÷ sent', value: verdict.duplicated / onTheWire, atMost: 1 },
        { name: 'sent again before the lease ended', value: tooEarly, atMost: 0 },
        { name: 'latest after its lease, s', value: latestMs / 1000, atMost: 5 },
        { name: 'other webhook-ids', value: otherIds(seen), atMost: 0 },
        { name: 'attempts charged', value: seen.filter((r) => r.attempt !== 1).length, atMost: 0 },
      ],
    };
  },
};

/**
 * Stops everything on the wires once the worker comes to the point. What is returned waits until then and until the kill
 * that it is given has ended.
 */
function arm(world: World, point: Point, wires: Wires, seen: Seen[]) {
  const { endpoint, front, back } = wires;
  let isReached = false;
  const hold = () => {
    isReached = true;
    front.rules.onChunk = () => 'swallow';
    back.rules.onChunk = () => 'swallow';
    return 'swallow' as const;
  };
  const holdAt = (name: RegExp) => {
    back.rules.onChunk = (chunk, direction) =>
      direction === 'up' && executes(chunk, name) ? hold() : 'pass';
  };
  switch (point) {
    case 'claimed':
      holdAt(/^claimed-events$/);
      break;
    case 'connected':
      front.rules.onConnect = () => void hold();
      break;
    case 'sent': {
      let left = world.between(1, EVENTS);
      endpoint.answer = (request) => {
        seen.push({ ...request, atMs: Date.now() });
        if (--left === 0) hold();
        return undefined;
      };
      break;
    }
    case 'answered':
      holdAt(/^record-succeeded(-soon)?$/);
      break;
  }
  return async (kill: () => Promise<unknown>) => {
    await eventually(() => {
      if (!isReached) throw new Error(`no worker came to the point "${point}"`);
    });
    await kill();
    world.timeline.fault(point);
    front.cutAll();
    back.cutAll();
  };
}

/** Everything passes to and from Postgres, and every request is answered by 204. */
function disarm(endpoint: Endpoint, back: TcpProxy, seen: Seen[]): void {
  back.rules.onChunk = () => 'pass';
  endpoint.answer = (request) => {
    seen.push({ ...request, atMs: Date.now() });
    return 204;
  };
}

/** When the leases end that a killed worker left: it lived alone, so they are those that were not `known` before. */
async function leasesOf(owner: pg.Client, known: Set<string>): Promise<Map<string, number>> {
  const { rows } = await owner.query<{ id: string; lease: string; until_ms: number }>(
    `SELECT id, lease, extract(epoch FROM run_at)::float8 * 1000 AS until_ms FROM deliveries
     WHERE lease IS NOT NULL AND run_at > now()`,
  );
  const left = rows.filter((row) => !known.has(row.lease));
  for (const row of left) known.add(row.lease);
  return new Map(left.map((row) => [idFromUuid('dlv', row.id), row.until_ms]));
}

/** What the endpoint saw of what was claimed when its worker was killed. */
function comparison(lives: readonly Life[], seen: readonly Seen[], rescuedFromMs: number) {
  let inFlight = 0;
  let onTheWire = 0;
  let tooEarly = 0;
  let latestMs = Number.NaN;
  const byDelivery = Map.groupBy(seen, (request) => request.deliveryId);
  for (const { fromMs, toMs, leases } of lives) {
    inFlight += leases.size;
    for (const [deliveryId, untilMs] of leases) {
      const times = (byDelivery.get(deliveryId) ?? []).map((request) => request.atMs);
      if (times.some((atMs) => atMs >= fromMs && atMs < toMs)) onTheWire++;
      const againMs = Math.min(...times.filter((atMs) => atMs >= toMs));
      if (againMs < Math.floor(untilMs)) tooEarly++;
      if (untilMs > rescuedFromMs)
        latestMs = Math.max(againMs - untilMs, Number.isNaN(latestMs) ? 0 : latestMs);
    }
  }
  return { inFlight, onTheWire, tooEarly, latestMs };
}

/** Deliveries that came under more than one webhook-id. */
function otherIds(seen: readonly Request[]): number {
  const ids = new Map<string, string>();
  return seen.filter(({ deliveryId, eventId }) => {
    const first = ids.get(deliveryId) ?? eventId;
    ids.set(deliveryId, first);
    return first !== eventId;
  }).length;
}
