// Every tenant-scoped RPC × own tenant, another tenant, no tenant, no key, a revoked key. And platform calls.
import { randomBytes } from 'node:crypto';
import type { DescMethod } from '@bufbuild/protobuf';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DeadLetterService } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { EventService } from '../../gen/dispatch/v1/event_service_pb.ts';
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { formatApiKey } from '../../src/domain/api-key.ts';
import type { KeyId } from '../../src/domain/ids.ts';
import { accessOf } from '../../src/rpc/access.ts';
import { connectGrpcClient, type GrpcCaller, grpcCaller } from '../support/clients.ts';
import { eventually } from '../support/eventually.ts';
import {
  ADMIN_KEY,
  type Clients,
  newTenant,
  startTestInstance,
  type TestInstance,
} from '../support/instance.ts';
import { type Receiver, startReceiver } from '../support/receiver.ts';

let dispatch: TestInstance;
let receiver: Receiver;
let admin: Clients;
let own: GrpcCaller;
let foreign: GrpcCaller;
let platform: GrpcCaller;
/** Ids of things that belong to tenant `own`. */
let ids: {
  subscriptionId: string;
  eventId: string;
  deadId: string;
  waitingId: string;
  replayId: string;
  keyId: string;
};

const CANARY = 'canary-7f3a';

beforeAll(async () => {
  dispatch = await startTestInstance();
  receiver = await startReceiver();
  receiver.answer = () => ({ status: 500, body: CANARY });
  admin = dispatch.clients();
  const { key } = await newTenant(admin, 'own');
  own = grpcCaller(dispatch.grpcPort, key);
  foreign = grpcCaller(dispatch.grpcPort, (await newTenant(admin, 'other')).key);
  platform = grpcCaller(dispatch.grpcPort, ADMIN_KEY);
  const clients = dispatch.clients(key);
  const retryPolicy = {
    schedule: { case: 'list' as const, value: { delays: [{ seconds: 0n, nanos: 1_000_000 }] } },
  };
  const slow = { schedule: { case: 'list' as const, value: { delays: [{ seconds: 3_600n, nanos: 0 }] } } };
  const { subscription } = await clients.subscriptions.createSubscription({
    subscription: { url: receiver.url, eventTypes: ['a.*'], retryPolicy, description: CANARY },
  });
  await clients.subscriptions.createSubscription({
    subscription: { url: receiver.url, eventTypes: ['b.*'], retryPolicy: slow },
  });
  const body = { case: 'data' as const, value: { secret: CANARY } };
  const { eventId } = await clients.publish.publish({ event: { type: 'a.x', body } });
  const waiting = await clients.publish.publish({ event: { type: 'b.x', body } });
  const deadId = await eventually(async () => {
    const { deadLetters } = await clients.deadLetters.listDeadLetters({});
    expect(deadLetters).toHaveLength(1);
    return deadLetters[0]!.deliveryId;
  });
  const waitingId = (await clients.events.listDeliveries({ eventId: waiting.eventId })).deliveries[0]!
    .deliveryId;
  const { replay } = await clients.deadLetters.replayDeadLetters({
    filter: { eventType: 'nothing.matches' },
  });
  ids = {
    subscriptionId: subscription!.subscriptionId,
    eventId,
    deadId,
    waitingId,
    replayId: replay!.replayId,
    keyId: (await clients.tenants.createApiKey({ displayName: CANARY })).apiKey!.keyId,
  };
});
afterAll(async () => {
  for (const caller of [own, foreign, platform]) caller.close();
  await dispatch[Symbol.asyncDispose]();
  await receiver[Symbol.asyncDispose]();
});

/** A valid request of every tenant-scoped unary RPC, naming things of tenant `own`. Destructive ones come last. */
function requests(): readonly (readonly [DescMethod, object])[] {
  const event = { type: 'a.y', body: { case: 'data' as const, value: {} } };
  const subscription = { url: receiver.url, eventTypes: ['z'] };
  return [
    [PublishService.method.publish, { event }],
    [PublishService.method.publishBatch, { events: [event] }],
    [SubscriptionService.method.createSubscription, { subscription }],
    [SubscriptionService.method.getSubscription, { subscriptionId: ids.subscriptionId }],
    [SubscriptionService.method.listSubscriptions, {}],
    [
      SubscriptionService.method.updateSubscription,
      {
        subscription: { subscriptionId: ids.subscriptionId, description: 'x' },
        updateMask: { paths: ['description'] },
      },
    ],
    [SubscriptionService.method.pauseSubscription, { subscriptionId: ids.subscriptionId }],
    [SubscriptionService.method.resumeSubscription, { subscriptionId: ids.subscriptionId }],
    [SubscriptionService.method.rotateSecret, { subscriptionId: ids.subscriptionId }],
    [SubscriptionService.method.testSubscription, { subscriptionId: ids.subscriptionId }],
    [SubscriptionService.method.verifySubscription, { subscriptionId: ids.subscriptionId }],
    [TenantService.method.getTenant, {}],
    [TenantService.method.getQuota, {}],
    [TenantService.method.getUsage, {}],
    [TenantService.method.createApiKey, { displayName: 'by the matrix' }],
    [TenantService.method.listApiKeys, {}],
    [TenantService.method.revokeApiKey, { keyId: ids.keyId }],
    [TenantService.method.listAuditLog, {}],
    [EventService.method.getEvent, { eventId: ids.eventId }],
    [EventService.method.listEvents, {}],
    [EventService.method.listDeliveries, { eventId: ids.eventId }],
    [EventService.method.getDelivery, { deliveryId: ids.deadId }],
    [EventService.method.listAttempts, { deliveryId: ids.deadId }],
    [EventService.method.retryDelivery, { deliveryId: ids.waitingId }],
    [EventService.method.cancelDelivery, { deliveryId: ids.waitingId }],
    [EventService.method.cancelDeliveries, { subscriptionId: ids.subscriptionId }],
    [
      EventService.method.replayEvents,
      { subscriptionId: ids.subscriptionId, filter: { eventIds: [ids.eventId] }, dryRun: true },
    ],
    [DeadLetterService.method.listDeadLetters, {}],
    [DeadLetterService.method.getDeadLetter, { deliveryId: ids.deadId }],
    [DeadLetterService.method.getReplay, { replayId: ids.replayId }],
    [DeadLetterService.method.listReplays, {}],
    [DeadLetterService.method.cancelReplay, { replayId: ids.replayId }],
    [DeadLetterService.method.replayDeadLetters, { filter: { eventType: 'nothing.matches' } }],
    [DeadLetterService.method.replayDeadLetter, { deliveryId: ids.deadId }],
    [DeadLetterService.method.discardDeadLetters, { deliveryIds: [ids.deadId] }],
    [SubscriptionService.method.deleteSubscription, { subscriptionId: ids.subscriptionId }],
  ];
}

type Outcome = { readonly code: number; readonly text: string };

async function ask(caller: GrpcCaller, method: DescMethod, request: object): Promise<Outcome> {
  try {
    const answer = await caller.call(method, request as Record<string, unknown>);
    const text = JSON.stringify(answer, (_key, v) =>
      typeof v === 'bigint' ? String(v) : v instanceof Uint8Array ? Buffer.from(v).toString() : v,
    );
    return { code: 0, text };
  } catch (error) {
    const { code, message } = error as { code: number; message: string };
    return { code, text: message };
  }
}

/** RPCs that name no resource: with another tenant's key they concern that tenant's own, empty, world. */
const LISTS = new Set([
  'Publish',
  'PublishBatch',
  'CreateSubscription',
  'ListSubscriptions',
  'ListEvents',
  'ListDeliveries',
  'ListDeadLetters',
  'ReplayDeadLetters',
  'ListReplays',
  'DiscardDeadLetters',
  'GetTenant',
  'GetQuota',
  'GetUsage',
  'CreateApiKey',
  'ListApiKeys',
  'ListAuditLog',
]);

/** RPCs that a platform key may make for no tenant: they are about the platform itself then. */
const OF_THE_PLATFORM = new Set(['CreateApiKey', 'ListApiKeys', 'RevokeApiKey', 'ListAuditLog']);
/** RPCs that only a platform key may make. */
const OPERATORS = TenantService.methods.filter(
  (m) => accessOf(TenantService.typeName, m.name).scope === 'platform',
);

describe('every tenant-scoped RPC', () => {
  test('is in this matrix', () => {
    const services = [PublishService, SubscriptionService, EventService, DeadLetterService, TenantService];
    const all = services.flatMap((s): readonly DescMethod[] => s.methods);
    const scoped = all.filter(
      (m) => m.methodKind === 'unary' && accessOf(m.parent.typeName, m.name).scope !== 'platform',
    );
    expect(new Set(requests().map(([m]) => m.name))).toEqual(new Set(scoped.map((m) => m.name)));
    expect(OPERATORS.map((m) => m.name)).toEqual([
      'CreateTenant',
      'ListTenants',
      'UpdateTenant',
      'SuspendTenant',
      'ResumeTenant',
      'DeleteTenant',
      'SetQuota',
    ]);
  });

  test('answers another tenant as if nothing were there, and shows nothing of the owner', async () => {
    for (const [method, request] of requests()) {
      const { code, text } = await ask(foreign, method, request);
      expect([method.name, code]).toEqual([method.name, LISTS.has(method.name) ? 0 : 5]);
      expect(text, method.name).not.toContain(CANARY);
      if (code === 0) expect(text, method.name).not.toContain('"tenantId":"own"');
    }
  });

  test('is PERMISSION_DENIED for another tenant that names the owner', async () => {
    for (const [method, request] of requests()) {
      expect([method.name, (await ask(foreign, method, { ...request, tenantId: 'own' })).code]).toEqual([
        method.name,
        7,
      ]);
    }
    const event = { tenantId: 'own', type: 'a.y', body: { case: 'data' as const, value: {} } };
    const { results } = await foreign.call(PublishService.method.publishBatch, { events: [event] });
    expect(results[0]!.result).toMatchObject({ case: 'error', value: { code: 7 } });
  });

  test('holds for PublishStream: own tenant, another’s, none', async () => {
    const event = { type: 'a.y', body: { case: 'data' as const, value: {} } };
    const codeOf = async (key: string, tenantId: string) => {
      const client = connectGrpcClient(PublishService, dispatch.httpPort, key);
      const one = async function* () {
        yield { sequence: 1n, tenantId, event };
      };
      for await (const { result } of client.publishStream(one())) {
        return result?.result.case === 'error' ? result.result.value.code : 0;
      }
      return -1;
    };
    const { key: ownKey } = await admin.tenants.createApiKey({ tenantId: 'own' });
    const { key: otherKey } = await admin.tenants.createApiKey({ tenantId: 'other' });
    expect([await codeOf(ownKey, ''), await codeOf(ownKey, 'own'), await codeOf(ADMIN_KEY, 'own')]).toEqual([
      0, 0, 0,
    ]);
    expect([await codeOf(otherKey, 'own'), await codeOf(ADMIN_KEY, '')]).toEqual([7, 3]);
  });

  test('needs a tenant from a platform key, and a key from everyone', async () => {
    const nobody = grpcCaller(dispatch.grpcPort, undefined);
    const stranger = grpcCaller(dispatch.grpcPort, 'dsp_live_nonsense');
    for (const [method, request] of requests()) {
      const { code, text } = await ask(platform, method, request);
      if (OF_THE_PLATFORM.has(method.name)) expect([method.name, text]).not.toContain(CANARY);
      else if (method.name === 'PublishBatch') expect(text).toContain('tenant_id');
      else expect([method.name, code]).toEqual([method.name, 3]);
      expect([method.name, (await ask(nobody, method, request)).code]).toEqual([method.name, 16]);
      expect([method.name, (await ask(stranger, method, request)).code]).toEqual([method.name, 16]);
    }
    nobody.close();
    stranger.close();
  });

  test('works for the owner, and changed nothing before', async () => {
    for (const [method, request] of requests()) {
      const expected = method.name === 'DiscardDeadLetters' ? '"discardedCount":0' : '';
      const { code, text } = await ask(own, method, request);
      expect([method.name, code, text]).toEqual([method.name, 0, expect.stringContaining(expected)]);
    }
  });
});

describe('keys', () => {
  test('what is about tenants as such is for platform keys only', async () => {
    for (const method of OPERATORS) {
      expect([method.name, (await ask(own, method, { tenantId: 'own' })).code]).toEqual([method.name, 7]);
    }
  });

  test('another secret is refused while the key with its id is in use, and the admin key but for a character', async () => {
    const { key, apiKey } = await admin.tenants.createApiKey({ tenantId: 'own' });
    const codeOf = async (token: string, tenantId?: string) => {
      const caller = grpcCaller(dispatch.grpcPort, token);
      const { code } = await ask(caller, EventService.method.listEvents, { tenantId });
      caller.close();
      return code;
    };
    const forged = formatApiKey(apiKey!.keyId as KeyId, randomBytes(32));
    expect(forged.length).toBe(key.length);
    expect([await codeOf(forged), await codeOf(key), await codeOf(forged), await codeOf(key)]).toEqual([
      16, 0, 16, 0,
    ]);
    const last = ADMIN_KEY.at(-1) === 'x' ? 'y' : 'x';
    expect(await codeOf(ADMIN_KEY.slice(0, -1) + last, 'own')).toBe(16);
    expect(await codeOf(`${ADMIN_KEY}x`, 'own')).toBe(16);
    expect(await codeOf(ADMIN_KEY, 'own')).toBe(0);
  });

  test('a revoked or expired key stops working, everywhere, within 5 s', async () => {
    const { key, apiKey } = await admin.tenants.createApiKey({ tenantId: 'own' });
    const caller = grpcCaller(dispatch.grpcPort, key);
    const codeNow = async () => (await ask(caller, EventService.method.listEvents, {})).code;
    expect(await codeNow()).toBe(0);
    await admin.tenants.revokeApiKey({ tenantId: 'own', keyId: apiKey!.keyId });
    await eventually(async () => expect(await codeNow()).toBe(16), 6_000);
    await expect(admin.tenants.revokeApiKey({ tenantId: 'other', keyId: apiKey!.keyId })).rejects.toThrow(
      'not_found',
    );
    caller.close();
    const { apiKeys } = await admin.tenants.listApiKeys({ tenantId: 'own' });
    expect(apiKeys.length).toBeGreaterThanOrEqual(3);
    expect(
      JSON.stringify(apiKeys.map((k) => ({ ...k, createTime: 0, revokeTime: 0, lastUseTime: 0 }))),
    ).not.toContain('dsp_live');
  });

  test('a suspended tenant cannot publish and gets nothing delivered until it is resumed', async () => {
    const { key } = await newTenant(admin, 'naughty');
    const clients = dispatch.clients(key);
    const calm = await startReceiver();
    await clients.subscriptions.createSubscription({ subscription: { url: calm.url, eventTypes: ['**'] } });
    const event = { type: 'a.x', body: { case: 'data' as const, value: {} } };
    await clients.publish.publish({ event });
    await eventually(() => expect(calm.received).toHaveLength(1));
    await admin.tenants.suspendTenant({ tenantId: 'naughty' });
    await expect(clients.publish.publish({ event })).rejects.toThrow('suspended');
    await admin.tenants.resumeTenant({ tenantId: 'naughty' });
    await clients.publish.publish({ event });
    await eventually(() => expect(calm.received).toHaveLength(2));
    await calm[Symbol.asyncDispose]();
  });
});

describe('deletion', () => {
  /** What was deleted is looked at every half minute, and that can be just over. */
  const LOOKED_AT_MS = 90_000;
  const countsOf = async (tenantId: string): Promise<Record<string, number>> => {
    const tables = [
      'deliveries',
      'dead_letters',
      'closed_deliveries',
      'attempts',
      'events',
      'idempotency_keys',
      'replays',
      'subscription_secrets',
      'subscription_credentials',
      'subscriptions',
      'breakers',
      'subscription_health',
      'subscription_probes',
      'quota_alerts',
      'usage',
      'audit_log',
      'api_keys',
      'tenants',
    ];
    const counts: Record<string, number> = {};
    for (const table of tables) {
      const { rows } = await dispatch.database.owner.query(
        `SELECT count(*) AS n FROM ${table} WHERE tenant_id = $1`,
        [tenantId],
      );
      counts[table] = Number(rows[0].n);
    }
    return counts;
  };
  const rowsOf = async (tenantId: string) =>
    Object.values(await countsOf(tenantId)).reduce((sum, count) => sum + count, 0);

  test('of a subscription cancels what it has pending', async () => {
    const { key } = await newTenant(admin, 'shop');
    const clients = dispatch.clients(key);
    const { subscription } = await clients.subscriptions.createSubscription({
      subscription: { url: receiver.url, eventTypes: ['**'] },
    });
    const { subscriptionId } = subscription!;
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    const { eventId } = await clients.publish.publish({
      event: { type: 'a.x', body: { case: 'data', value: {} } },
    });
    await clients.subscriptions.deleteSubscription({ subscriptionId });
    await expect(clients.subscriptions.getSubscription({ subscriptionId })).rejects.toThrow('not_found');
    // Rows go a minute after the deletion, when no publish from before it can still commit: as if that had passed.
    await dispatch.database.owner.query(
      "UPDATE subscriptions SET deleted_at = deleted_at - interval '61 s' WHERE deleted_at IS NOT NULL",
    );
    await eventually(async () => {
      const { deliveries } = await clients.events.listDeliveries({ eventId });
      expect(deliveries[0]!.state).toBe(5); // CANCELLED
    }, LOOKED_AT_MS);
  });

  test('of a tenant removes every row it owned, and no other tenant’s', async () => {
    // The subscription that its owner deleted above is to be gone before rows are counted.
    await eventually(async () => {
      const { rows } = await dispatch.database.owner.query(
        'SELECT id FROM subscriptions WHERE deleted_at IS NOT NULL',
      );
      expect(rows).toEqual([]);
    }, LOOKED_AT_MS);
    const before = await countsOf('own');
    expect(await rowsOf('shop')).toBeGreaterThanOrEqual(4);
    await admin.tenants.deleteTenant({ tenantId: 'shop' });
    await dispatch.database.owner.query(
      "UPDATE tenants SET updated_at = updated_at - interval '61 s' WHERE tenant_id = 'shop'",
    );
    await eventually(async () => expect(await rowsOf('shop')).toBe(0), LOOKED_AT_MS);
    const after = await countsOf('own');
    // What is under way may add rows, deliver deliveries and fold usage; nothing else may go.
    for (const table of Object.keys(before).filter((name) => name !== 'deliveries' && name !== 'usage'))
      expect(after[table], table).toBeGreaterThanOrEqual(before[table]!);
    // What was known of the one before it is not believed.
    const publish = () =>
      admin.publish.publish({ tenantId: 'shop', event: { type: 'a', body: { case: 'data', value: {} } } });
    await admin.tenants.createTenant({ tenant: { tenantId: 'shop' } });
    expect((await publish()).deliveryCount).toBe(0);
  });
});
