// Endpoints with a backlog come back after they were away: first nobody listens, then 503 with Retry-After, then all is
// well. None of them ever gets more than its caps and its breaker's ramp let through, nothing is lost, and what waited for
// the breaker is charged nothing (P8).
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { BreakerState, Jitter } from '../../../gen/dispatch/v1/subscription_service_pb.ts';
import { rampPerSecond } from '../../../src/domain/breaker.ts';
import { eventually } from '../../support/eventually.ts';
import { freePort } from '../../support/free-port.ts';
import { startRedis } from '../../support/redis.ts';
import { fullest } from '../figures.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe, type World } from '../world.ts';

/** Caps of the endpoints. What none of them limits, the ramp does. */
const ENDPOINTS = [
  { maxPerSecond: 25 },
  { maxInFlight: 3 },
  {},
  { maxPerSecond: 15, maxInFlight: 2 },
] as const;
/** What an endpoint takes for an answer: requests overlap where they may. */
const ANSWER_MS = 200;
/** The breaker opens for this long, and for twice as long after a probe that failed. */
const OPEN_MS = 30_000;
const RETRY_AFTER_S = 20;
/** Failures in a row that open a breaker; the first of them are refused connections. */
const REFUSED = 2;
const ANSWERED = 3;
/** The test hears of an open breaker this much later, at most. */
const TOLD_MS = 500;
/** Exactly: how often each endpoint is tried before its breaker opens is known. */
const RETRIES = {
  schedule: { case: 'list' as const, value: { delays: Array.from({ length: 5 }, () => ({ seconds: 10n })) } },
  jitter: Jitter.NONE,
};
const PROBES = 3;

type Place = {
  readonly tenantId: string;
  readonly caps: { readonly maxPerSecond?: number; readonly maxInFlight?: number };
  readonly port: number;
  subscriptionId: string;
  isWell: boolean;
  /** When requests came that were answered with 2xx; written when they are. */
  readonly goodAtMs: number[];
  badCount: number;
  /** When the third probe was answered. */
  closedAtMs: number;
  inFlight: number;
  mostInFlight: number;
  /** The most at once until the breaker has closed. */
  mostProbes: number;
};

const NEW = { isWell: false, badCount: 0, closedAtMs: 0, inFlight: 0, mostInFlight: 0, mostProbes: 0 };

export const endpointReturns: Scenario = {
  name: 'endpoint-returns',
  about: 'endpoints with a backlog that come back after refusing connections and answering 503',
  promises: ['P2', 'P8'],
  seconds: 150,
  isTimed: true,
  isQuiet: true,
  async run(world) {
    const { url, owner } = await world.database();
    const redis = world.use(await startRedis());
    const settings = { DISPATCH_REDIS_URL: redis.url };
    const api = await world.dispatch(url, 'api', settings);
    for (let i = 0; i < 2; i++) await world.dispatch(url, 'worker,maintenance', settings);
    const admin = adminOf(api);
    const places: Place[] = [];
    for (const [i, caps] of ENDPOINTS.entries()) {
      const port = await freePort();
      const place = { tenantId: `t${i}`, caps, port, subscriptionId: '', goodAtMs: [] };
      places.push({ ...place, ...NEW });
    }
    for (const place of places) {
      place.subscriptionId = await subscribe(admin, place.tenantId, `http://127.0.0.1:${place.port}/`, {
        ...place.caps,
        retryPolicy: RETRIES,
      });
    }
    const tenantIds = places.map(({ tenantId }) => tenantId);
    const publish = async (perTenant: number, batch: number): Promise<void> => {
      const count = perTenant * tenantIds.length;
      await startProducer(world, { tenantIds, clients: () => [admin], perSecond: 500, batch, count }).done;
    };
    const attemptsAre = (count: number) =>
      eventually(async () => {
        const { rows } = await owner.query<{ n: string }>('SELECT count(*) AS n FROM attempts');
        if (Number(rows[0]!.n) < count) throw new Error(`${rows[0]!.n} attempts, and not ${count}`);
      });
    world.timeline.fault('refused');
    await publish(REFUSED, 1);
    await attemptsAre(REFUSED * places.length);
    world.timeline.fault('503');
    for (const place of places) await listen(world, place);
    await publish(ANSWERED, 1);
    for (const { tenantId, subscriptionId } of places) {
      await eventually(async () => {
        const { subscription } = await admin.subscriptions.getSubscription({ tenantId, subscriptionId });
        if (subscription!.breaker?.state !== BreakerState.OPEN) throw new Error('the breaker is not open');
      });
    }
    const openAtMs = performance.now();
    // At full size the first probe fails too, and the breaker opens for twice as long.
    const failingProbes = world.scale >= 0.5 ? 1 : 0;
    if (failingProbes === 0) for (const place of places) place.isWell = true;
    const backlog = world.sized(400, 60);
    await publish(backlog, 20);
    await wait(openAtMs + OPEN_MS / 2 - performance.now());
    const { rows } = await owner.query<{ charged: string }>(
      'SELECT count(*) AS charged FROM deliveries WHERE attempt_count > 0',
    );
    const asked = places.map(({ badCount }) => badCount);
    for (const [i, place] of places.entries()) {
      if (failingProbes > 0) {
        await eventually(() => {
          if (place.badCount === asked[i]) throw new Error('no probe came');
        }, 2 * OPEN_MS);
      }
      place.isWell = true;
    }
    world.timeline.fault('well');
    const verdict = await world.judge(url, 180_000);
    const tried = REFUSED + ANSWERED + failingProbes;
    const early = places.filter(({ goodAtMs }) => goodAtMs[0]! < openAtMs + OPEN_MS - TOLD_MS).length;
    return {
      verdict,
      figures: [
        { name: 'backlog of each', value: backlog },
        {
          name: 'charged while open',
          value: Number(rows[0]!.charged),
          atMost: (REFUSED + ANSWERED) * places.length,
        },
        { name: 'attempts that failed', value: await failedAttempts(owner), atMost: tried * places.length },
        { name: 'asked before the breaker’s time', value: early, atMost: 0 },
        { name: 'probes at once', value: Math.max(...places.map((p) => p.mostProbes)), atMost: 1 },
        ...places.map((place) => ({
          name: `${nameOf(place.caps)}: fullest second ÷ its bound`,
          value: fullest(sinceClosed(place), 1_000, ({ toMs }) => boundOf(place, toMs)).share,
          atMost: 1,
        })),
        ...places
          .filter(({ caps }) => caps.maxInFlight !== undefined)
          .map(({ caps, mostInFlight }) => ({
            name: `${nameOf(caps)}: most in flight`,
            value: mostInFlight,
            atMost: caps.maxInFlight!,
          })),
        { name: 'sooner than Retry-After', value: await soonerThanHinted(owner), atMost: 0 },
        { name: 'duplicates', value: verdict.duplicated, atMost: 0 },
      ],
    };
  },
};

/** Listens at a place that refused connections so far. */
async function listen(world: World, place: Place): Promise<void> {
  const endpoint = await startEndpoint(world, place.port);
  endpoint.answer = async () => {
    if (!place.isWell) {
      place.badCount++;
      return { status: 503, headers: { 'retry-after': String(RETRY_AFTER_S) } };
    }
    const atMs = performance.now();
    place.inFlight++;
    place.mostInFlight = Math.max(place.mostInFlight, place.inFlight);
    if (place.goodAtMs.length < PROBES) place.mostProbes = Math.max(place.mostProbes, place.inFlight);
    await wait(ANSWER_MS);
    place.inFlight--;
    place.goodAtMs.push(atMs);
    if (place.goodAtMs.length === PROBES) place.closedAtMs = performance.now();
    return 204;
  };
}

const sinceClosed = ({ goodAtMs, closedAtMs }: Place) => goodAtMs.filter((atMs) => atMs > closedAtMs);

/** The most that a second may hold: its rate, and what a slot may be late and what may be caught up (0.4 s). */
function boundOf({ caps, closedAtMs }: Place, toMs: number): number {
  const ramp = rampPerSecond(toMs - closedAtMs) ?? Number.POSITIVE_INFINITY;
  return Math.min(caps.maxPerSecond ?? Number.POSITIVE_INFINITY, ramp) * 1.4;
}

const nameOf = ({ maxPerSecond, maxInFlight }: Place['caps']): string =>
  [
    maxPerSecond === undefined ? [] : `${maxPerSecond}/s`,
    maxInFlight === undefined ? [] : `${maxInFlight} at once`,
  ]
    .flat()
    .join(', ') || 'no cap';

async function failedAttempts(owner: pg.Client): Promise<number> {
  const { rows } = await owner.query<{ n: string }>(
    "SELECT count(*) AS n FROM attempts WHERE outcome <> 'succeeded'",
  );
  return Number(rows[0]!.n);
}

/** Attempts that came earlier after a 503 than it asked for. */
async function soonerThanHinted(owner: pg.Client): Promise<number> {
  const { rows } = await owner.query<{ n: string }>(
    `SELECT count(*) AS n FROM attempts a JOIN attempts b USING (tenant_id, delivery_id)
     WHERE a.status = 503 AND b.attempt = a.attempt + 1
       AND b.started_at < a.started_at + make_interval(secs => $1)`,
    [RETRY_AFTER_S],
  );
  return Number(rows[0]!.n);
}
