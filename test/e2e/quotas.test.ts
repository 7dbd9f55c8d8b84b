// Quotas of tenants: what is refused, with which details, how soon; and usage that is exact.
import { Code, ConnectError } from '@connectrpc/connect';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DeliveryState } from '../../gen/dispatch/v1/event_pb.ts';
import { UsageInterval } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RetryInfoSchema,
} from '../../gen/google/rpc/error_details_pb.ts';
import { eventually } from '../support/eventually.ts';
import { startFleet } from '../support/fleet.ts';
import {
  ADMIN_KEY,
  type Clients,
  newTenant,
  startTestInstance,
  type TestInstance,
} from '../support/instance.ts';
import { type ProducerLedger, publishUntilAcked } from '../support/load.ts';
import { spawnDispatch } from '../support/processes.ts';
import { type Receiver, startReceiver } from '../support/receiver.ts';
import { clientsOf } from '../support/rpc-clients.ts';

let dispatch: TestInstance;
let receiver: Receiver;
let admin: Clients;
let calm: Clients;

beforeAll(async () => {
  dispatch = await startTestInstance();
  receiver = await startReceiver();
  admin = dispatch.clients();
  calm = dispatch.clients((await newTenant(admin, 'calm')).key);
});
afterAll(async () => {
  await dispatch[Symbol.asyncDispose]();
  await receiver[Symbol.asyncDispose]();
});

const event = (fields: object = {}) => ({
  type: 'order.created',
  body: { case: 'data' as const, value: { a: 1 } },
  ...fields,
});

/** What a refusal says about the quota, from its google.rpc details. */
function detailsOf(error: unknown) {
  const refusal = ConnectError.from(error);
  const [failure] = refusal.findDetails(QuotaFailureSchema);
  const [info] = refusal.findDetails(ErrorInfoSchema);
  const [retry] = refusal.findDetails(RetryInfoSchema);
  const violation = failure?.violations[0];
  return {
    code: refusal.code,
    quota: violation?.quotaId,
    subject: violation?.subject,
    limit: violation?.quotaValue,
    used: Number(violation?.quotaDimensions['used']),
    reason: info?.reason,
    metadata: info?.metadata,
    retryMs:
      retry?.retryDelay === undefined
        ? undefined
        : Number(retry.retryDelay.seconds) * 1000 + retry.retryDelay.nanos / 1e6,
  };
}

async function refused(work: Promise<unknown>) {
  const outcome = await work.then(
    () => undefined,
    (error) => error,
  );
  expect(outcome, 'it was not refused').toBeDefined();
  return detailsOf(outcome);
}

let tenants = 0;
async function tenantWith(quota: object): Promise<{ readonly tenantId: string; readonly clients: Clients }> {
  const tenantId = `q${++tenants}`;
  const { key } = await newTenant(admin, tenantId);
  await admin.tenants.setQuota({ tenantId, quota });
  return { tenantId, clients: dispatch.clients(key) };
}

describe('a tenant over its quota is refused, with the quota, its limit and what is used, and no other tenant', () => {
  const stillPublishes = async () => {
    const { results } = await calm.publish.publishBatch({
      events: Array.from({ length: 50 }, () => event()),
    });
    expect(results.every((r) => r.result.case === 'ok')).toBe(true);
  };

  test('of events a second, and may go on after the time it is told', async () => {
    const { tenantId, clients } = await tenantWith({ publishPerSecond: 2, publishBurst: 5n });
    const { results } = await clients.publish.publishBatch({
      events: Array.from({ length: 20 }, () => event()),
    });
    const stored = results.filter((r) => r.result.case === 'ok');
    expect(stored.length).toBeGreaterThanOrEqual(5);
    expect(stored.length).toBeLessThanOrEqual(6);
    const last = results[19]!.result;
    expect(last).toMatchObject({
      case: 'error',
      value: { code: Code.ResourceExhausted, reason: 'QUOTA_EXCEEDED', quota: 'publish_per_second' },
    });
    const details = await refused(clients.publish.publish({ event: event() }));
    expect(details).toMatchObject({
      code: Code.ResourceExhausted,
      quota: 'publish_per_second',
      subject: `tenant:${tenantId}`,
      limit: 2n,
      reason: 'QUOTA_EXCEEDED',
    });
    expect(details.retryMs).toBeGreaterThan(0);
    expect(details.retryMs).toBeLessThanOrEqual(500);
    await stillPublishes();
    await eventually(() => clients.publish.publish({ event: event() }), 2_000);
  });

  test.each([
    { field: 'eventsPerDay', quota: 'events_per_day' },
    { field: 'eventsPerMonth', quota: 'events_per_month' },
  ])(
    'of $field, exactly, however many publish at once; repeats of a key are answered all the same',
    async ({ field, quota }) => {
      const { tenantId, clients } = await tenantWith({ [field]: 500n });
      const batches = Array.from({ length: 30 }, (_, b) =>
        clients.publish.publishBatch({
          events: Array.from({ length: 20 }, (_, i) => event({ idempotencyKey: `${b}-${i}` })),
        }),
      );
      const results = (await Promise.all(batches)).flatMap((answer) => answer.results);
      const stored = results.filter((r) => r.result.case === 'ok');
      expect(stored).toHaveLength(500);
      const details = await refused(clients.publish.publish({ event: event() }));
      expect(details).toMatchObject({ quota, subject: `tenant:${tenantId}`, limit: 500n, used: 500 });
      expect(details.retryMs).toBeGreaterThan(0);
      const first = results.findIndex((r) => r.result.case === 'ok');
      const key = `${Math.floor(first / 20)}-${first % 20}`;
      const again = await clients.publish.publish({ event: event({ idempotencyKey: key }) });
      expect(again.duplicate).toBe(true);
      const usage = await clients.tenants.getUsage({});
      expect(usage.eventsToday).toBe(500n);
      await stillPublishes();
      await admin.tenants.setQuota({ tenantId, quota: { [field]: 501n } });
      await clients.publish.publish({ event: event() });
      expect((await refused(clients.publish.publish({ event: event() }))).quota).toBe(quota);
    },
  );

  test('of bytes of a body', async () => {
    const { clients } = await tenantWith({ maxPayloadBytes: 100 });
    const body = { case: 'payload' as const, value: Buffer.alloc(101, 'x') };
    const details = await refused(
      clients.publish.publish({ event: event({ body, contentType: 'text/plain' }) }),
    );
    expect(details).toMatchObject({ quota: 'max_payload_bytes', limit: 100n, used: 101 });
    await clients.publish.publish({ event: event() });
    await stillPublishes();
  });

  test('of subscriptions', async () => {
    const { clients } = await tenantWith({ maxSubscriptions: 2 });
    const subscription = { url: receiver.url, eventTypes: ['x'] };
    await clients.subscriptions.createSubscription({ subscription });
    const { subscription: second } = await clients.subscriptions.createSubscription({ subscription });
    const details = await refused(clients.subscriptions.createSubscription({ subscription }));
    expect(details).toMatchObject({ quota: 'max_subscriptions', limit: 2n, used: 2 });
    await clients.subscriptions.deleteSubscription({ subscriptionId: second!.subscriptionId });
    await clients.subscriptions.createSubscription({ subscription });
  });

  test('of unfinished deliveries', async () => {
    const { clients } = await tenantWith({ maxBacklog: 100n });
    const { subscription } = await clients.subscriptions.createSubscription({
      subscription: { url: receiver.url, eventTypes: ['**'] },
    });
    const { subscriptionId } = subscription!;
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    const publish = () => clients.publish.publishBatch({ events: Array.from({ length: 40 }, () => event()) });
    let stored = 0;
    // What was let in while the backlog was counted is counted twice until the next count: all of it is there in the end.
    await eventually(async () => {
      stored += (await publish()).results.filter((r) => r.result.case === 'ok').length;
      expect(stored).toBeGreaterThanOrEqual(100);
    });
    for (let i = 0; i < 4; i++) {
      stored += (await publish()).results.filter((r) => r.result.case === 'ok').length;
    }
    expect(stored).toBe(100);
    const details = await refused(clients.publish.publish({ event: event() }));
    expect(details).toMatchObject({ quota: 'max_backlog', limit: 100n, used: 100 });
    await stillPublishes();
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    await eventually(() => clients.publish.publish({ event: event() }), 10_000);
  });

  test('of endpoints without TLS', async () => {
    const { tenantId, clients } = await tenantWith({ allowHttpEndpoints: false });
    const subscription = { url: 'http://example.com/hook', eventTypes: ['x'] };
    await expect(clients.subscriptions.createSubscription({ subscription })).rejects.toThrow(/https/);
    await admin.tenants.setQuota({ tenantId, quota: { allowHttpEndpoints: true } });
    await clients.subscriptions.createSubscription({ subscription });
    // One that is there is sent nothing once it may not be, while one that the guard lets through is.
    const retryPolicy = { schedule: { case: 'list' as const, value: { delays: [{ nanos: 1_000_000 }] } } };
    await clients.subscriptions.createSubscription({
      subscription: { ...subscription, eventTypes: ['y'], retryPolicy },
    });
    await clients.subscriptions.createSubscription({
      subscription: { url: receiver.url, eventTypes: ['y'], retryPolicy },
    });
    await admin.tenants.setQuota({ tenantId, quota: { allowHttpEndpoints: false } });
    const { eventId } = await clients.publish.publish({ event: { ...event(), type: 'y' } });
    const dead = await eventually(async () => {
      const { deliveries } = await clients.events.listDeliveries({ eventId });
      const states = deliveries.map((d) => d.state).sort();
      expect(states).toEqual([DeliveryState.SUCCEEDED, DeliveryState.DEAD_LETTERED]);
      return deliveries.find((d) => d.state === DeliveryState.DEAD_LETTERED)!;
    }, 10_000);
    const { attempts } = await clients.events.listAttempts({ deliveryId: dead.deliveryId });
    expect(attempts.map((a) => a.errorMessage)).toEqual(
      Array(2).fill(expect.stringMatching(/https endpoints only/)),
    );
  });

  test('of days of history, which cannot be more than the installation keeps', async () => {
    await expect(admin.tenants.setQuota({ tenantId: 'calm', quota: { historyDays: 31 } })).rejects.toThrow(
      /history_days.*30/,
    );
    const error = await admin.tenants.setQuota({ tenantId: 'calm', quota: { historyDays: 5_000 } }).then(
      () => undefined,
      (e: ConnectError) => e,
    );
    const told = error?.findDetails(BadRequestSchema).flatMap((d) => d.fieldViolations.map((v) => v.field));
    expect(told).toEqual(['quota.history_days']);
  });
});

describe('near the end of a quota of events', () => {
  test('every publish is answered: with more deliveries than a commit holds, and while the configuration changes', async () => {
    const { clients } = await tenantWith({ eventsPerDay: 3_000n });
    const subscription = { url: receiver.url, eventTypes: ['**'] };
    for (let i = 0; i < 21; i++) {
      const made = await clients.subscriptions.createSubscription({ subscription });
      const { subscriptionId } = made.subscription!;
      await clients.subscriptions.pauseSubscription({ subscriptionId });
    }
    // 500 events × 21 subscriptions are more than one commit takes: some are put back.
    const batch = () => clients.publish.publishBatch({ events: Array.from({ length: 500 }, () => event()) });
    const changes = (async () => {
      for (let i = 0; i < 20; i++) {
        await clients.subscriptions.createSubscription({
          subscription: { ...subscription, eventTypes: ['no'] },
        });
      }
    })();
    const answers = await Promise.all([
      batch(),
      batch(),
      batch(),
      batch(),
      batch(),
      batch(),
      batch(),
      batch(),
    ]);
    await changes;
    const results = answers.flatMap((a) => a.results);
    expect(results).toHaveLength(4_000);
    const stored = results.filter((r) => r.result.case === 'ok').length;
    const refusedNow = results.filter((r) => r.result.case === 'error');
    expect(stored).toBe(3_000);
    for (const { result } of refusedNow) expect(result.value).toMatchObject({ quota: 'events_per_day' });
    expect((await clients.tenants.getUsage({})).eventsToday).toBe(3_000n);
    await clients.publish.publish({ event: event({ idempotencyKey: 'x' }) }).catch(() => {}); // answered, not hanging
  });
});

describe('SetQuota', () => {
  test('says what is wrong with each field at once, and changes nothing then', async () => {
    const { tenantId } = await tenantWith({ eventsPerDay: 7n });
    const wrong = { publishPerSecond: -1, maxPayloadBytes: 0, maxSubscriptions: 10_001, eventsPerDay: -5n };
    const error = await admin.tenants.setQuota({ tenantId, quota: wrong }).catch((e) => e);
    expect(String(error)).toContain('quota.publish_per_second');
    expect(String(error)).toContain('and 3 more');
    const { quota, own } = await admin.tenants.getQuota({ tenantId });
    expect(quota!.eventsPerDay).toBe(7n);
    expect(own!.publishPerSecond).toBeUndefined();
    expect(quota!.publishPerSecond).toBe(10_000); // the default
  });

  test('with a mask changes what it names, and gives back to the default what is not set', async () => {
    const { tenantId } = await tenantWith({ eventsPerDay: 7n, maxBacklog: 9n });
    const updateMask = { paths: ['events_per_day'] };
    const { own } = await admin.tenants.setQuota({ tenantId, quota: {}, updateMask });
    expect(own!.eventsPerDay).toBeUndefined();
    expect(own!.maxBacklog).toBe(9n);
    await expect(
      admin.tenants.setQuota({ tenantId, quota: {}, updateMask: { paths: ['nonsense'] } }),
    ).rejects.toThrow(/update_mask/);
  });

  test('holds on another instance within 5 s', async () => {
    await using fleet = await startFleet({ apis: 2, workers: 0, redis: false });
    await fleet.admin.tenants.createTenant({ tenant: { tenantId: 'acme' } });
    const other = clientsOf(fleet.apis[1]!.httpPort, ADMIN_KEY);
    await other.publish.publish({ tenantId: 'acme', event: event() });
    await fleet.admin.tenants.setQuota({ tenantId: 'acme', quota: { maxPayloadBytes: 3 } });
    // The statement that stores events checks the version of the configuration: the very next publish knows.
    expect((await refused(other.publish.publish({ tenantId: 'acme', event: event() }))).quota).toBe(
      'max_payload_bytes',
    );
  });

  test('of the rate holds for the very next publish on another instance, whatever that has leased of the old one', async () => {
    await using fleet = await startFleet({ apis: 2, workers: 0, redis: true });
    const [admin, other] = fleet.apis.map((api) => clientsOf(api.httpPort, ADMIN_KEY));
    await admin!.tenants.createTenant({ tenant: { tenantId: 'acme' } });
    for (let i = 0; i < 5; i++) await other!.publish.publish({ tenantId: 'acme', event: event() });
    await admin!.tenants.setQuota({ tenantId: 'acme', quota: { publishPerSecond: 1, publishBurst: 1n } });
    const events = Array.from({ length: 300 }, () => event());
    const { results } = await other!.publish.publishBatch({ tenantId: 'acme', events });
    expect(results.filter((r) => r.result.case === 'ok').length).toBeLessThanOrEqual(1);
    expect(results.filter((r) => r.result.case === 'error').length).toBeGreaterThanOrEqual(299);
  });
});

describe('usage', () => {
  test('equals the ledger exactly after 50,000 events from 4 processes, two of them killed and replaced', async () => {
    await using fleet = await startFleet({ apis: 4, workers: 0, redis: true });
    const ids = ['t0', 't1', 't2', 't3'];
    for (const tenantId of ids) await fleet.admin.tenants.createTenant({ tenant: { tenantId } });
    await fleet.admin.tenants.setQuota({ tenantId: 't0', quota: { eventsPerMonth: 1_000_000n } });
    await fleet.admin.tenants.setQuota({ tenantId: 't1', quota: { eventsPerDay: 20_000n } });
    const ledgers = ids.map((): ProducerLedger => new Map());
    const each = 12_500;
    const client = (n: number) => () => clientsOf(fleet.apis[n]!.httpPort, ADMIN_KEY).publish;
    const produced = Promise.all(
      ids.flatMap((tenantId, t) =>
        [0, 1].map((half) => {
          const from = (half * each) / 2;
          return publishUntilAcked(client((t + half) % 4), tenantId, from, from + each / 2, ledgers[t]!, 100);
        }),
      ),
    );
    const acked = () => ledgers.reduce((sum, ledger) => sum + ledger.size, 0);
    for (const victim of [2, 3]) {
      await eventually(() => expect(acked()).toBeGreaterThan(12_000 * (victim - 1)), 120_000);
      const { httpPort, grpcPort, kill } = fleet.apis[victim]!;
      await kill('SIGKILL');
      fleet.apis[victim] = await spawnDispatch(
        { ...fleet.environment, DISPATCH_HTTP_PORT: String(httpPort), DISPATCH_GRPC_PORT: String(grpcPort) },
        ['--roles=api'],
      );
    }
    await produced;
    expect(acked()).toBe(50_000);
    for (const [t, tenantId] of ids.entries()) {
      const daily = await fleet.admin.tenants.getUsage({ tenantId });
      const hourly = await fleet.admin.tenants.getUsage({ tenantId, interval: UsageInterval.HOUR });
      const sum = (rows: typeof daily.usage, pick: 'eventCount' | 'payloadBytes') =>
        rows.reduce((total, row) => total + Number(row[pick]), 0);
      const { rows } = await fleet.database.owner.query(
        'SELECT count(*)::int AS n, sum(octet_length(payload))::int AS bytes FROM events WHERE tenant_id = $1',
        [tenantId],
      );
      expect(ledgers[t]!.size).toBe(each);
      expect(rows[0]).toEqual({ n: each, bytes: sum(daily.usage, 'payloadBytes') });
      expect(sum(daily.usage, 'eventCount')).toBe(each);
      expect(sum(hourly.usage, 'eventCount')).toBe(each);
    }
    console.log('usage of 4 tenants equals the ledger: 4 × 12,500 events, 2 of 4 processes killed');
  }, 240_000);
});
