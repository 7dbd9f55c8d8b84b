// Every process has a clock that is an hour off, and that is set anew while it works. Leases, retries, delays and limits go
// by the database's clock and by monotonic ones: all arrives once, and in time.
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { idFromUuid } from '../../../src/domain/ids.ts';
import { eventually } from '../../support/eventually.ts';
import { createFakeClock } from '../../support/faketime.ts';
import { hashOf } from '../../support/ledger.ts';
import type { DispatchProcess } from '../../support/processes.ts';
import type { Clients } from '../../support/rpc-clients.ts';
import { gaugeOf, readMetrics } from '../metrics.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe, type World } from '../world.ts';

const PER_SECOND = 150;
const TENANTS = ['t0', 't1', 'limited'];
const HOUR_S = 3_600;
const LEASE_S = 10;
/** A retry or a delay is in time if its request comes no later than this after it was due. */
const IN_TIME_MS = 2_000;

export const clockSteps: Scenario = {
  name: 'clock-steps',
  about:
    'clocks ± 1 h off and stepping 100 ×; retries, delays, leases and limits are unaffected, and an alarm says so',
  promises: ['P2', 'P8'],
  seconds: 75,
  isTimed: true,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    const clocks = [HOUR_S, -HOUR_S, HOUR_S].map((ahead) => world.use(createFakeClock(ahead)));
    const settings = { DISPATCH_LEASE_SECONDS: String(LEASE_S) };
    const start = (roles: string, i: number) =>
      world.dispatch(url, roles, { ...settings, ...clocks[i]!.environment });
    const api = await start('api,maintenance', 0);
    for (const i of [1, 2]) await start('worker', i);
    const admin = adminOf(api);
    const skewS = gaugeOf(await readMetrics(api), 'dispatch_clock_skew_seconds');
    const saysSo = (await readiness(api)).includes('clocks');
    await startTenants(admin, endpoint.url);

    const receivedAt = new Map<string, number>();
    const failedLast = new Set<string>();
    endpoint.answer = async ({ deliveryId, attempt, path }) => {
      receivedAt.set(`${deliveryId}/${attempt}`, Date.now());
      const kind = deliveryId.charCodeAt(deliveryId.length - 8) % 8;
      // Never twice in a row: five would open the breaker, and its 30 s are not what is looked at here.
      const fails = kind === 0 && attempt === 1 && !failedLast.has(path);
      if (fails) failedLast.add(path);
      else failedLast.delete(path);
      if (fails) return 500;
      if (kind === 1) await wait(SLOW_MS); // a lease is under way while the clock of its worker leaps over its end
      return 204;
    };
    const clients = () => [admin];
    const producer = startProducer(world, { tenantIds: TENANTS, clients, perSecond: PER_SECOND });
    const due = await publishDelayed(world, admin);
    const steps = world.sized(100, 10);
    for (let step = 1; step <= steps; step++) {
      await wait(world.between(300, 700));
      const ahead = world.between(-HOUR_S, HOUR_S);
      clocks[world.between(0, clocks.length - 1)]!.set(ahead);
      world.timeline.fault(`${ahead} s`);
    }
    await producer.stop();
    for (const clock of clocks) clock.set(0);
    const verdict = await world.judge(url, 30_000);
    const lates = [...(await retriesOf(owner)), ...due].map(
      ([key, dueMs]) => (receivedAt.get(key) ?? Number.NaN) - dueMs,
    );
    const isQuiet = await eventually(async () => isReady(await readiness(api)), 15_000);
    return {
      verdict,
      figures: [
        { name: 'steps', value: steps },
        { name: 'sent twice', value: verdict.duplicated, atMost: 0 },
        { name: 'retries and delays', value: lates.length, atLeast: due.size + steps },
        { name: 'earliest, ms', value: Math.min(...lates), atLeast: -5 },
        { name: 'latest, ms', value: Math.max(...lates), atMost: IN_TIME_MS },
        { name: 'alarm: skew, s', value: skewS, atLeast: HOUR_S - 1, atMost: HOUR_S + 1 },
        { name: 'alarms in /readyz, and gone again', value: Number(saysSo) + Number(isQuiet), atLeast: 2 },
      ],
    };
  },
};

const SLOW_MS = 3_000;
const DELAYED = 20;

const readiness = async ({ httpPort }: DispatchProcess): Promise<string> =>
  (await fetch(`http://127.0.0.1:${httpPort}/readyz`)).text();

function isReady(text: string): true {
  if (text.trim() !== 'ready') throw new Error(text);
  return true;
}

/** Retries after 2 s at most, and never an hour after the publish; one tenant with limits that are never reached. */
async function startTenants(admin: Clients, url: string): Promise<void> {
  const delays = Array.from({ length: 3 }, () => ({ seconds: 2n }));
  const retryPolicy = { schedule: { case: 'list', value: { delays } }, maxAge: { seconds: 600n } };
  for (const tenantId of TENANTS) {
    const limits = tenantId === 'limited' ? { maxPerSecond: 1_000 } : {};
    await subscribe(admin, tenantId, `${url}/${tenantId}`, { retryPolicy, ...limits });
  }
  await admin.tenants.setQuota({ tenantId: 'limited', quota: { publishPerSecond: 10_000 } });
}

/** Events that are due some seconds from now, by the database's clock. Returns when, by delivery and attempt. */
async function publishDelayed(world: World, admin: Clients): Promise<ReadonlyMap<string, number>> {
  const due = new Map<string, number>();
  for (let i = 0; i < DELAYED; i++) {
    const dueMs = Date.now() + world.between(2_000, 5_000);
    const value = Buffer.from(`{"delayed":${i}}`);
    const deliverAfter = { seconds: BigInt(Math.floor(dueMs / 1000)), nanos: (dueMs % 1000) * 1_000_000 };
    const event = { type: 'order.later', body: { case: 'payload' as const, value }, deliverAfter };
    const { eventId, deliveryCount } = await admin.publish.publish({ tenantId: 't0', event });
    world.ledger.acked.set(eventId, { bodyHash: hashOf(value), deliveryCount });
    const { deliveries } = await admin.events.listDeliveries({ tenantId: 't0', eventId });
    for (const { deliveryId } of deliveries) due.set(`${deliveryId}/1`, dueMs);
  }
  return due;
}

/** When each retry was due by the database's clock, in ms since 1970, by delivery and attempt. */
async function retriesOf(owner: pg.Client): Promise<(readonly [string, number])[]> {
  const { rows } = await owner.query<{ id: string; attempt: number; due: number }>(
    `SELECT delivery_id AS id, attempt, extract(epoch FROM next_attempt_at)::float8 * 1000 AS due
     FROM attempts WHERE outcome = 'retry_scheduled'`,
  );
  return rows.map(({ id, attempt, due }) => [`${idFromUuid('dlv', id)}/${attempt + 1}`, due] as const);
}
