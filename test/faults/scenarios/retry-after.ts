// Endpoints that answer 429 and 503 with every kind of Retry-After. The next attempt is stored for
// max(schedule, min(hint, 24 h)) after the answer, and hints that make no sense change nothing.
import { Jitter } from '../../../gen/dispatch/v1/subscription_service_pb.ts';
import { eventually } from '../../support/eventually.ts';
import { startProducer } from '../producer.ts';
import { type Answer, startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

/** The subscriptions' own delay before the next attempt. */
const SCHEDULE_S = 60;
const DAY_S = 24 * 3600;
/** Dates have whole seconds, and the stored time is that of the answer, not of the request. */
const OFF_BY_S = 1.5;

type Hint = {
  readonly name: string;
  readonly status: 429 | 500 | 503;
  readonly header: () => string;
  readonly delayS: number;
};

const date = (inS: number) => () => new Date(Date.now() + inS * 1000).toUTCString();
const HINTS: readonly Hint[] = [
  { name: 'seconds', status: 503, header: () => '300', delayS: 300 },
  { name: 'seconds, 429', status: 429, header: () => '120', delayS: 120 },
  { name: 'less than the schedule', status: 429, header: () => '7', delayS: SCHEDULE_S },
  { name: 'a date', status: 503, header: date(600), delayS: 600 },
  { name: 'a date, 429', status: 429, header: date(7200), delayS: 7200 },
  { name: 'a date that is over', status: 503, header: date(-600), delayS: SCHEDULE_S },
  { name: 'a date in years', status: 503, header: date(400 * DAY_S), delayS: DAY_S },
  { name: '0', status: 503, header: () => '0', delayS: SCHEDULE_S },
  { name: 'negative', status: 429, header: () => '-300', delayS: SCHEDULE_S },
  { name: '10^12', status: 503, header: () => '1000000000000', delayS: DAY_S },
  { name: '10^30', status: 503, header: () => `1${'0'.repeat(30)}`, delayS: SCHEDULE_S },
  { name: 'a fraction', status: 503, header: () => '300.5', delayS: SCHEDULE_S },
  { name: 'rubbish', status: 429, header: () => 'in a while', delayS: SCHEDULE_S },
  { name: 'nothing', status: 503, header: () => '', delayS: SCHEDULE_S },
  { name: 'on another status', status: 500, header: () => '300', delayS: SCHEDULE_S },
];
/** One less than opens a breaker. */
const PER_HINT = 4;

export const retryAfter: Scenario = {
  name: 'retry-after',
  about: 'every kind of Retry-After, and the next attempts that are stored',
  promises: ['P2'],
  seconds: 15,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    const admin = adminOf(await world.dispatch(url, 'api,worker,maintenance'));
    let isWell = false;
    endpoint.answer = ({ path }): Answer => {
      if (isWell) return 204;
      const { status, header } = HINTS[Number(path.split('/').pop())]!;
      return { status, headers: { 'retry-after': header() } };
    };
    const delays = [{ seconds: BigInt(SCHEDULE_S) }];
    const retryPolicy = { schedule: { case: 'list' as const, value: { delays } }, jitter: Jitter.NONE };
    const tenantIds = HINTS.map((_, i) => `t${i}`);
    for (const [i, tenantId] of tenantIds.entries()) {
      await subscribe(admin, tenantId, `${endpoint.url}/${i}`, { retryPolicy });
    }
    const count = HINTS.length * PER_HINT;
    const clients = () => [admin];
    await startProducer(world, { tenantIds, clients, perSecond: 200, batch: 1, count }).done;
    const stored = await eventually(async () => {
      // The deliveries say when they are due; the attempts, when they were answered, and what was then planned.
      const { rows } = await owner.query<{ tenant_id: string; due: number; planned: number }>(
        `SELECT d.tenant_id,
           extract(epoch FROM d.run_at - a.started_at)::float8 - a.duration_us / 1e6 AS due,
           extract(epoch FROM a.next_attempt_at - a.started_at)::float8 - a.duration_us / 1e6 AS planned
         FROM deliveries d JOIN attempts a ON a.tenant_id = d.tenant_id AND a.delivery_id = d.id
         WHERE d.lease IS NULL`,
      );
      if (rows.length < count) throw new Error(`${rows.length} of ${count} wait for their next attempt`);
      return rows;
    });
    let worstS = 0;
    for (const [i, { name, delayS }] of HINTS.entries()) {
      const rows = stored.filter(({ tenant_id }) => tenant_id === tenantIds[i]);
      const offByS = Math.max(
        ...rows.flatMap(({ due, planned }) => [due, planned].map((s) => Math.abs(s - delayS))),
      );
      if (offByS > OFF_BY_S) world.say(`${name}: off by ${offByS} s`);
      worstS = Math.max(worstS, offByS);
    }
    isWell = true;
    await owner.query('UPDATE deliveries SET run_at = now()'); // nobody waits a day for this
    const verdict = await world.judge(url);
    return {
      verdict,
      figures: [
        { name: 'hints', value: HINTS.length },
        { name: 'off by at most, s', value: worstS, atMost: OFF_BY_S },
        { name: 'duplicates', value: verdict.duplicated, atMost: 0 },
      ],
    };
  },
};
