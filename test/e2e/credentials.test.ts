// Who may call: roles, expiry, JWTs, the throttle, the audit log. And how dispatch shows itself to endpoints: both
// signature schemes, credentials, mTLS, and secrets that move to a new master key under load.
import { createHmac, createPublicKey, randomBytes, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { Code, ConnectError } from '@connectrpc/connect';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';
import { Webhook } from 'standardwebhooks';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DeadLetterService } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { EventService } from '../../gen/dispatch/v1/event_service_pb.ts';
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { SignatureScheme, SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { Role, TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { type KeyRole, ROLES } from '../../src/domain/roles.ts';
import { ACCESS } from '../../src/rpc/access.ts';
import { openDatabase } from '../../src/storage/database.ts';
import { createRewrap } from '../../src/storage/secret-keys.ts';
import { createAuthority } from '../support/certificates.ts';
import { grpcCaller } from '../support/clients.ts';
import { eventually } from '../support/eventually.ts';
import {
  ADMIN_KEY,
  type Clients,
  MASTER_KEY,
  newTenant,
  startTestInstance,
  type TestInstance,
} from '../support/instance.ts';
import { type Receiver, startReceiver } from '../support/receiver.ts';

let dispatch: TestInstance;
let receiver: Receiver;
let admin: Clients;

beforeAll(async () => {
  dispatch = await startTestInstance();
  receiver = await startReceiver();
  admin = dispatch.clients();
});
afterAll(async () => {
  await dispatch[Symbol.asyncDispose]();
  await receiver[Symbol.asyncDispose]();
});

const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => 0,
    (error) => ConnectError.from(error).code as number,
  );
const data = { case: 'data' as const, value: { a: 1 } };

describe('the table of RPC × role', () => {
  const services = [PublishService, SubscriptionService, EventService, DeadLetterService, TenantService];

  test('has every method of the contract and no other', () => {
    for (const service of services) {
      expect(Object.keys(ACCESS[service.typeName] ?? {}).sort()).toEqual(
        service.methods.map((m) => m.name).sort(),
      );
    }
    expect(Object.keys(ACCESS).sort()).toEqual(services.map((s) => s.typeName).sort());
  });

  test('is what docs/roles.md shows', () => {
    const page = readFileSync(new URL('../../docs/roles.md', import.meta.url), 'utf8');
    const shown = [...page.matchAll(/^\| (\w+)\.(\w+) \|(.*)\|$/gm)].map(([, service, method, cells]) => {
      const may = (cells ?? '').split('|').map((cell) => cell.trim() === 'yes');
      return [`${service}.${method}`, ROLES.filter((_, i) => may[i])];
    });
    const table = Object.entries(ACCESS).flatMap(([service, methods]) =>
      Object.entries(methods).map(([method, { roles }]) => [
        `${service.split('.').pop()}.${method}`,
        ROLES.filter((role) => roles.includes(role)),
      ]),
    );
    expect(shown).toEqual(table);
  });

  test('is what every RPC does for every role, with a key of the tenant', async () => {
    const { key: adminKey } = await newTenant(admin, 'roles');
    const keys: Partial<Record<KeyRole, string>> = { 'platform-admin': ADMIN_KEY, 'tenant-admin': adminKey };
    for (const [role, wire] of [
      ['publisher', Role.PUBLISHER],
      ['viewer', Role.VIEWER],
    ] as const) {
      keys[role] = (await admin.tenants.createApiKey({ tenantId: 'roles', role: wire })).key;
    }
    let checked = 0;
    for (const [role, key] of Object.entries(keys)) {
      const caller = grpcCaller(dispatch.grpcPort, key);
      for (const service of services) {
        for (const method of service.methods) {
          if (method.methodKind !== 'unary') continue;
          // An empty request: what gets past the role fails for want of something, or works.
          const code = await caller.call(method, { tenantId: 'roles' }).then(
            () => 0,
            (error: { code: number }) => error.code,
          );
          const allowed = ACCESS[service.typeName]![method.name]!.roles.includes(role as KeyRole);
          expect([role, method.name, code === 7], `code ${code}`).toEqual([role, method.name, !allowed]);
          checked++;
        }
      }
      caller.close();
    }
    expect(checked).toBe(
      4 * services.flatMap((s) => s.methods).filter((m) => m.methodKind === 'unary').length,
    );
  });

  test('a tenant-admin makes keys for its own tenant and no more than its own role', async () => {
    const { key } = await newTenant(admin, 'keys');
    const clients = dispatch.clients(key);
    const made = await clients.tenants.createApiKey({ role: Role.PUBLISHER });
    expect(made.apiKey!.tenantId).toBe('keys');
    expect(await codeOf(clients.tenants.createApiKey({ role: Role.PLATFORM_ADMIN }))).toBe(
      Code.InvalidArgument,
    );
    expect(await codeOf(clients.tenants.createApiKey({ tenantId: 'roles' }))).toBe(Code.PermissionDenied);
    expect(await codeOf(clients.tenants.createApiKey({ tenantId: '*' }))).toBe(Code.PermissionDenied);
    const publisher = dispatch.clients(made.key);
    await publisher.publish.publish({ event: { type: 'a.b', body: data } });
    expect(await codeOf(publisher.subscriptions.listSubscriptions({}))).toBe(Code.PermissionDenied);
    await eventually(async () => {
      const { apiKeys } = await clients.tenants.listApiKeys({});
      expect(apiKeys.find((k) => k.keyId === made.apiKey!.keyId)!.lastUseTime).toBeDefined();
    });
  });

  test('a second platform key acts for every tenant, expires, and is revoked within 5 s', async () => {
    const made = await admin.tenants.createApiKey({ role: Role.PLATFORM_ADMIN, displayName: 'ci' });
    expect(made.apiKey!.tenantId).toBe('');
    const second = dispatch.clients(made.key);
    await second.tenants.listTenants({});
    expect(await codeOf(admin.tenants.createApiKey({ role: Role.VIEWER }))).toBe(Code.InvalidArgument);
    expect(await codeOf(admin.tenants.createApiKey({ tenantId: 'keys', role: Role.PLATFORM_ADMIN }))).toBe(
      Code.InvalidArgument,
    );
    await second.tenants.revokeApiKey({ keyId: made.apiKey!.keyId });
    await eventually(
      async () => expect(await codeOf(second.tenants.listTenants({}))).toBe(Code.Unauthenticated),
      6_000,
    );
  });
});

describe('JWTs', () => {
  test('are accepted from configured issuers, by their published keys, with tenant and role from claims; anything else is not', async () => {
    const { privateKey, publicKey } = await generateKeyPair('ES256', { extractable: true });
    const stranger = await generateKeyPair('ES256', { extractable: true });
    const jwk = { ...(await exportJWK(publicKey)), kid: 'k1', alg: 'ES256' };
    let fetched = 0;
    const issuer = createServer((_request, response) => {
      fetched++;
      response.end(JSON.stringify({ keys: [jwk] }));
    });
    await new Promise<void>((done) => issuer.listen(0, '127.0.0.1', done));
    const jwksUrl = `http://127.0.0.1:${(issuer.address() as AddressInfo).port}/jwks`;
    const settings = { issuer: 'https://id.example', audience: 'dispatch', jwksUrl, algorithms: ['ES256'] };
    await using instance = await startTestInstance({ DISPATCH_JWT_ISSUERS: JSON.stringify([settings]) });
    await instance.clients().tenants.createTenant({ tenant: { tenantId: 'acme' } });
    type Claims = Record<string, unknown>;
    const token = (claims: Claims, header: object = {}, key: typeof privateKey | Uint8Array = privateKey) =>
      new SignJWT({
        iss: 'https://id.example',
        aud: 'dispatch',
        sub: 'svc-1',
        exp: Math.floor(Date.now() / 1000) + 60,
        tenant_id: 'acme',
        role: 'publisher',
        ...claims,
      })
        .setProtectedHeader({ alg: 'ES256', kid: 'k1', ...header })
        .sign(key);
    const publishWith = async (jwt: string) =>
      codeOf(instance.clients(jwt).publish.publish({ event: { type: 'a.b', body: data } }));
    const good = await token({});
    expect(await publishWith(good)).toBe(0);
    expect(await publishWith(good)).toBe(0);
    expect(fetched).toBe(1);
    expect(await codeOf(instance.clients(good).subscriptions.listSubscriptions({}))).toBe(
      Code.PermissionDenied,
    );
    const platform = instance.clients(await token({ role: 'platform-admin', tenant_id: undefined }));
    expect(await codeOf(platform.tenants.listTenants({}))).toBe(0);
    const unsigned = `${Buffer.from('{"alg":"none"}').toString('base64url')}.${good.split('.')[1]}.`;
    const hmac = await token({}, { alg: 'HS256' }, new TextEncoder().encode(JSON.stringify(jwk)));
    for (const [what, bad] of [
      ['another key', await token({}, {}, stranger.privateKey)],
      ['another issuer', await token({ iss: 'https://evil.example' })],
      ['another audience', await token({ aud: 'other' })],
      ['expired', await token({ exp: Math.floor(Date.now() / 1000) - 60 })],
      ['no expiry', await token({ exp: undefined })],
      ['no role', await token({ role: undefined })],
      ['an unknown role', await token({ role: 'root' })],
      ['no tenant', await token({ tenant_id: undefined })],
      ['a tenant id that is none', await token({ tenant_id: '*' })],
      ['no algorithm', unsigned],
      ['a MAC with the public key', hmac],
      ['cut', good.slice(0, -10)],
    ] as const) {
      expect([what, await publishWith(bad)]).toEqual([what, Code.Unauthenticated]);
    }
    await new Promise((done) => issuer.close(done));
  });

  test.each([
    'http://169.254.169.254/keys',
    'http://10.0.0.1/keys',
    'http://localhost:6379/keys',
    'http://example.com/keys',
  ])('the start is refused with keys at %s', async (jwksUrl) => {
    const settings = [{ issuer: 'i', audience: 'a', jwksUrl }];
    await expect(
      startTestInstance({
        DISPATCH_JWT_ISSUERS: JSON.stringify(settings),
        DISPATCH_ALLOW_ENDPOINT_CIDRS: '',
      }),
    ).rejects.toThrow(/DISPATCH_JWT_ISSUERS: jwksUrl/);
  });
});

test('an address whose credentials are refused again and again has to wait; keys that were in use go on', async () => {
  await using instance = await startTestInstance({ DISPATCH_REFUSALS_PER_MINUTE: '20' });
  const { key } = await newTenant(instance.clients(), 'acme');
  const mine = instance.clients(key);
  await mine.subscriptions.listSubscriptions({});
  const codes = [];
  for (let i = 0; i < 30; i++)
    codes.push(await codeOf(instance.clients(`wrong-${i}`).tenants.listTenants({})));
  expect(codes.slice(0, 20)).toEqual(Array.from({ length: 20 }, () => Code.Unauthenticated));
  expect(codes.slice(22)).toEqual(Array.from({ length: 8 }, () => Code.ResourceExhausted));
  await mine.subscriptions.listSubscriptions({});
  await instance.clients().tenants.listTenants({});
  // The log of refusals is gathered: not one entry for each.
  await eventually(async () => {
    const { entries } = await instance.clients().tenants.listAuditLog({ action: 'credential.refused' });
    expect(entries.reduce((sum, e) => sum + Number(e.detail['count']), 0)).toBeGreaterThanOrEqual(20);
    expect(entries.length).toBeLessThanOrEqual(3);
    expect(entries[0]).toMatchObject({ actor: 'unknown', address: '127.0.0.1', tenantId: '' });
  }, 15_000);
});

describe('the audit log', () => {
  test('has every mutation with its actor, in the order of time, by tenant, action and time; and nothing that failed', async () => {
    const { key } = await newTenant(admin, 'audited');
    const clients = dispatch.clients(key);
    const startTime = { seconds: BigInt(Math.floor(Date.now() / 1000) - 60), nanos: 0 };
    const { subscription } = await clients.subscriptions.createSubscription({
      subscription: { url: receiver.url, eventTypes: ['x.*'] },
    });
    const { subscriptionId } = subscription!;
    await clients.subscriptions.updateSubscription({
      subscription: { subscriptionId, description: 'changed' },
      updateMask: { paths: ['description'] },
    });
    await clients.subscriptions.rotateSecret({ subscriptionId });
    await clients.subscriptions.pauseSubscription({ subscriptionId });
    await clients.subscriptions.resumeSubscription({ subscriptionId });
    await clients.subscriptions.testSubscription({ subscriptionId });
    await clients.deadLetters.replayDeadLetters({ filter: { eventType: 'none.such' } });
    await admin.tenants.setQuota({ tenantId: 'audited', quota: { eventsPerDay: 5n } });
    await codeOf(
      clients.subscriptions.updateSubscription({
        subscription: { subscriptionId, url: 'nonsense' },
        updateMask: { paths: ['url'] },
      }),
    );
    await codeOf(clients.tenants.setQuota({ tenantId: 'audited', quota: {} }));
    await clients.subscriptions.deleteSubscription({ subscriptionId });
    const { entries } = await eventually(async () => {
      const page = await clients.tenants.listAuditLog({ pageSize: 100 });
      expect(page.entries.some((e) => e.action === 'permission.denied')).toBe(true);
      return page;
    });
    const actions = entries.map((e) => e.action).filter((a) => a !== 'permission.denied');
    expect(actions).toEqual([
      'subscription.delete',
      'quota.set',
      'dead_letters.replay',
      'subscription.test',
      'subscription.resume',
      'subscription.pause',
      'subscription.rotate_secret',
      'subscription.update',
      'subscription.create',
      'api_key.create',
      'tenant.create',
    ]);
    const created = entries.find((e) => e.action === 'subscription.create')!;
    expect(created).toMatchObject({ resource: subscriptionId, address: '127.0.0.1', tenantId: 'audited' });
    expect(created.actor).toMatch(/^key_/);
    expect(entries.find((e) => e.action === 'quota.set')).toMatchObject({
      actor: 'platform',
      detail: { events_per_day: '5' },
    });
    const mine = await clients.tenants.listAuditLog({
      actor: created.actor,
      action: 'subscription.create',
      startTime,
    });
    expect(mine.entries).toHaveLength(1);
    expect((await clients.tenants.listAuditLog({ endTime: startTime })).entries).toHaveLength(0);
    const first = await clients.tenants.listAuditLog({ pageSize: 4 });
    const rest = await clients.tenants.listAuditLog({ pageSize: 100, pageToken: first.nextPageToken });
    expect([...first.entries, ...rest.entries]).toHaveLength(entries.length);
  });

  test('cannot be changed or emptied by the service’s roles', async () => {
    const { owner } = dispatch.database;
    for (const role of ['dispatch_engine', 'dispatch_tenant']) {
      for (const statement of [
        'DELETE FROM audit_log',
        "UPDATE audit_log SET actor = 'x'",
        'TRUNCATE audit_log',
      ]) {
        await owner.query('BEGIN');
        await owner.query(`SET LOCAL ROLE ${role}`);
        await expect(owner.query(statement)).rejects.toThrow(/permission denied/);
        await owner.query('ROLLBACK');
      }
    }
  });
});

describe('signatures', () => {
  const spki = (raw: Buffer) =>
    createPublicKey({
      key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), raw]),
      format: 'der',
      type: 'spki',
    });
  const verifies = (publicKey: string, headers: IncomingMessage['headers'], body: Buffer) => {
    const raw = Buffer.from(publicKey.replace(/^whpk_/, ''), 'base64');
    const signed = Buffer.concat([
      Buffer.from(`${headers['webhook-id']}.${headers['webhook-timestamp']}.`),
      body,
    ]);
    return String(headers['webhook-signature'])
      .split(' ')
      .filter((s) => s.startsWith('v1a,'))
      .some((s) => verify(null, signed, spki(raw), Buffer.from(s.slice(4), 'base64')));
  };

  test('both kinds at once, each verified by its own means, through rotations of each; and the predecessor’s headers', async () => {
    const { key } = await newTenant(admin, 'signer');
    const clients = dispatch.clients(key);
    const made = await clients.subscriptions.createSubscription({
      subscription: {
        url: receiver.url,
        eventTypes: ['**'],
        signatureSchemes: [SignatureScheme.V1, SignatureScheme.V1A],
        compatibilityHeaders: true,
      },
    });
    const { subscriptionId, publicKeys } = made.subscription!;
    expect(publicKeys).toHaveLength(1);
    const got = async () => {
      receiver.received.length = 0;
      await clients.publish.publish({ event: { type: 'a.b', body: data } });
      return eventually(() => {
        expect(receiver.received).toHaveLength(1);
        return receiver.received[0]!;
      });
    };
    const first = await got();
    const asText = first.headers as Record<string, string>;
    new Webhook(made.secret).verify(first.body.toString(), asText);
    expect(verifies(publicKeys[0]!, first.headers, first.body)).toBe(true);
    expect(asText['webhook-signature']!.split(' ')).toHaveLength(2);
    const mac = createHmac('sha256', Buffer.from(made.secret.slice(6), 'base64'))
      .update(first.body)
      .digest('hex');
    expect(first.headers).toMatchObject({
      'x-dispatch-signature': `sha256=${mac}`,
      'x-dispatch-event-id': asText['webhook-id'],
      'x-dispatch-event-type': 'a.b',
      'x-dispatch-timestamp': asText['webhook-timestamp'],
    });

    const rotated = await clients.subscriptions.rotateSecret({ subscriptionId, scheme: SignatureScheme.V1A });
    expect(rotated.secret).toBe('');
    const second = await eventually(async () => {
      const r = await got();
      expect(String(r.headers['webhook-signature']).split(' ')).toHaveLength(3);
      return r;
    });
    expect(verifies(publicKeys[0]!, second.headers, second.body)).toBe(true);
    expect(verifies(rotated.publicKey, second.headers, second.body)).toBe(true);
    new Webhook(made.secret).verify(second.body.toString(), second.headers as Record<string, string>);
    const { subscription } = await clients.subscriptions.getSubscription({ subscriptionId });
    expect(subscription!.publicKeys).toEqual([rotated.publicKey, publicKeys[0]]);

    const only = await clients.subscriptions.updateSubscription({
      subscription: { subscriptionId, signatureSchemes: [SignatureScheme.V1A] },
      updateMask: { paths: ['signature_schemes', 'compatibility_headers'] },
    });
    expect(only.secret).toBe('');
    const third = await got();
    expect(String(third.headers['webhook-signature'])).not.toMatch(/(^| )v1,/);
    expect(third.headers['x-dispatch-signature']).toBeUndefined();
    const back = await clients.subscriptions.updateSubscription({
      subscription: { subscriptionId, signatureSchemes: [SignatureScheme.V1, SignatureScheme.V1A] },
      updateMask: { paths: ['signature_schemes'] },
    });
    expect(back.secret).toMatch(/^whsec_/);
    const fourth = await got();
    new Webhook(back.secret).verify(fourth.body.toString(), fourth.headers as Record<string, string>);
    expect(() =>
      new Webhook(made.secret).verify(fourth.body.toString(), fourth.headers as Record<string, string>),
    ).toThrow();
  });

  test('master keys rotate under load: every row is sealed anew, by a job that is cut short, and no signature fails', async () => {
    const next = randomBytes(32);
    const both = [
      { id: 'next', key: next },
      { id: 'test', key: MASTER_KEY },
    ];
    const asSetting = both.map((k) => `${k.id}:${k.key.toString('base64')}`).join(',');
    await using instance = await startTestInstance();
    const clients = instance.clients((await newTenant(instance.clients(), 'acme')).key);
    const secrets = new Map<string, string>();
    for (let i = 0; i < 250; i++) {
      const made = await clients.subscriptions.createSubscription({
        subscription: {
          url: `${receiver.url}/${i}`,
          eventTypes: [`t.n${i}`],
          ...(i % 5 === 0 ? { auth: { kind: { case: 'bearer', value: { token: `tok-${i}` } } } } : {}),
        },
      });
      secrets.set(`/hook/${i}`, made.secret);
    }
    receiver.received.length = 0;
    // A second instance, as in a rolling deployment: it seals under the new key, the old one still runs.
    await using newer = await startTestInstance(
      { DISPATCH_MASTER_KEYS: asSetting, DISPATCH_ROLES: 'worker' },
      instance.database,
    );
    const db = await openDatabase(instance.database.url, 2, () => {});
    let published = 0;
    let running = true;
    const load = (async () => {
      while (running) {
        const events = Array.from({ length: 25 }, (_, i) => ({
          type: `t.n${(published + i * 10) % 250}`,
          body: data,
        }));
        await clients.publish.publishBatch({ events });
        published += 25;
      }
    })();
    const fail = (error: unknown) => expect.unreachable(String(error));
    let sealed = await createRewrap(db, both, randomBytes, fail)();
    expect(sealed).toBeGreaterThan(0);
    expect(sealed).toBeLessThan(300); // cut short here; the next run goes on
    const goOn = createRewrap(db, both, randomBytes, fail);
    for (let more = sealed; more > 0; ) {
      more = await goOn();
      sealed += more;
    }
    await eventually(() => expect(receiver.received.length).toBeGreaterThan(500));
    running = false;
    await load;
    expect(sealed).toBe(250 + 50);
    const { rows } = await instance.database.owner.query(
      'SELECT master_key_id, count(*)::int AS n FROM subscription_secrets GROUP BY 1',
    );
    expect(rows).toEqual([{ master_key_id: 'next', n: 250 }]);
    await eventually(() => expect(receiver.received).toHaveLength(published));
    for (const r of receiver.received) {
      new Webhook(secrets.get(r.path)!).verify(r.body.toString(), r.headers as Record<string, string>);
      const n = Number(r.path.slice(6));
      expect(r.headers.authorization).toBe(n % 5 === 0 ? `Bearer tok-${n}` : undefined);
    }
    await db[Symbol.asyncDispose]();
    expect(newer.grpcPort).toBe(0); // it has no api role
    // Only the new key is needed now, and the old one alone does not do.
    await using alone = await startTestInstance(
      { DISPATCH_MASTER_KEYS: `next:${next.toString('base64')}`, DISPATCH_ROLES: 'worker' },
      instance.database,
    );
    expect(alone.grpcPort).toBe(0);
    await expect(startTestInstance({ DISPATCH_ROLES: 'worker' }, instance.database)).rejects.toThrow(
      /master key next/,
    );
  });
});

describe('credentials for endpoints', () => {
  let clients: Clients;
  beforeAll(async () => {
    clients = dispatch.clients((await newTenant(admin, 'creds')).key);
  });

  const deliverTo = async (fields: object) => {
    receiver.received.length = 0;
    const type = `c.t${randomBytes(4).toString('hex')}`;
    const { subscription } = await clients.subscriptions.createSubscription({
      subscription: { url: receiver.url, eventTypes: [type], ...fields },
    });
    await clients.publish.publish({ event: { type, body: data } });
    const request = await eventually(() => {
      expect(receiver.received.length).toBeGreaterThan(0);
      return receiver.received[0]!;
    });
    return { request, subscription: subscription!, type };
  };

  test('basic and bearer are sent, never shown, and changed by an update', async () => {
    const { request, subscription, type } = await deliverTo({
      auth: { kind: { case: 'basic', value: { username: 'me', password: 'pa:ss' } } },
      headers: { 'X-Api-Key': 'k1' },
    });
    expect(request.headers.authorization).toBe(`Basic ${Buffer.from('me:pa:ss').toString('base64')}`);
    expect(request.headers['x-api-key']).toBe('k1');
    expect(subscription.auth!.kind).toMatchObject({ case: 'basic', value: { username: 'me', password: '' } });
    const { subscriptionId } = subscription;
    const updated = await clients.subscriptions.updateSubscription({
      subscription: { subscriptionId, auth: { kind: { case: 'bearer', value: { token: 'tok-123' } } } },
      updateMask: { paths: ['auth'] },
    });
    expect(JSON.stringify(updated.subscription!.auth)).not.toContain('tok-123');
    await clients.publish.publish({ event: { type, body: data } });
    await eventually(() => expect(receiver.received[1]!.headers.authorization).toBe('Bearer tok-123'));
    await clients.subscriptions.updateSubscription({
      subscription: { subscriptionId },
      updateMask: { paths: ['auth'] },
    });
    await clients.publish.publish({ event: { type, body: data } });
    await eventually(() => expect(receiver.received[2]!.headers.authorization).toBeUndefined());
  });

  test('what is wrong with them is said, field by field', async () => {
    const tryWith = (fields: object) =>
      clients.subscriptions
        .createSubscription({ subscription: { url: receiver.url, eventTypes: ['x'], ...fields } })
        .then(() => '', String);
    expect(
      await tryWith({ auth: { kind: { case: 'basic', value: { username: 'a:b', password: 'x' } } } }),
    ).toContain('subscription.auth.basic.username');
    expect(await tryWith({ auth: { kind: { case: 'bearer', value: { token: 'a b' } } } })).toContain(
      'auth.bearer.token',
    );
    expect(await tryWith({ auth: {} })).toContain('subscription.auth');
    expect(await tryWith({ tls: { caPem: 'nonsense' } })).toContain('subscription.tls.ca_pem');
    expect(await tryWith({ maxPerSecond: -1 })).toContain('max_per_second');
    expect(await tryWith({ maxInFlight: 20_000 })).toContain('max_in_flight');
    expect(await tryWith({ headers: { Host: 'evil' } })).toContain('subscription.headers');
  });

  test('OAuth 2.0: one token for many attempts, fetched anew after a 401 and when it expires', async () => {
    let issued = 0;
    const bodies: string[] = [];
    const issuer = createServer((request, response) => {
      let body = '';
      request.on('data', (chunk) => {
        body += chunk;
      });
      request.on('end', () => {
        bodies.push(`${request.headers.authorization} ${body}`);
        issued++;
        response.setHeader('content-type', 'application/json');
        response.end(
          JSON.stringify({ access_token: `token-${issued}`, token_type: 'Bearer', expires_in: 3600 }),
        );
      });
    });
    await new Promise<void>((done) => issuer.listen(0, '127.0.0.1', done));
    const tokenUrl = `http://127.0.0.1:${(issuer.address() as AddressInfo).port}/token`;
    let valid = 'Bearer token-1';
    receiver.answer = (r) => ({ status: r.headers.authorization === valid ? 204 : 401 });
    const value = { tokenUrl, clientId: 'id', clientSecret: 's3cret', scopes: ['a', 'b'], audience: 'aud' };
    const retryPolicy = {
      schedule: {
        case: 'list' as const,
        value: { delays: Array.from({ length: 5 }, () => ({ seconds: 0n, nanos: 10_000_000 })) },
      },
    };
    const { type } = await deliverTo({ auth: { kind: { case: 'oauth2', value } }, retryPolicy });
    for (let i = 0; i < 20; i++) await clients.publish.publish({ event: { type, body: data } });
    await eventually(() => expect(receiver.received).toHaveLength(21));
    expect(issued).toBe(1);
    const basic = `Basic ${Buffer.from('id:s3cret').toString('base64')}`;
    expect(bodies[0]).toBe(`${basic} grant_type=client_credentials&scope=a+b&audience=aud`);
    valid = 'Bearer token-2'; // the endpoint forgets the first
    await clients.publish.publish({ event: { type, body: data } });
    await eventually(() =>
      expect(receiver.received.some((r) => r.headers.authorization === valid)).toBe(true),
    );
    expect(issued).toBe(2);
    receiver.answer = () => ({ status: 204 });
    await new Promise((done) => issuer.close(done));
  });

  test('a token that cannot be had is an attempt that failed, with its reason', async () => {
    const value = { tokenUrl: 'http://127.0.0.1:1/token', clientId: 'id', clientSecret: 's' };
    const type = 'c.notoken';
    await clients.subscriptions.createSubscription({
      subscription: { url: receiver.url, eventTypes: [type], auth: { kind: { case: 'oauth2', value } } },
    });
    const { eventId } = await clients.publish.publish({ event: { type, body: data } });
    await eventually(async () => {
      const { deliveries } = await clients.events.listDeliveries({ eventId });
      const { attempts } = await clients.events.listAttempts({ deliveryId: deliveries[0]!.deliveryId });
      expect(attempts[0]).toMatchObject({ errorClass: 'credentials' });
      expect(attempts[0]!.errorMessage).not.toContain('127.0.0.1');
    });
  });

  test('mTLS: the endpoint sees the client certificate, its own authority is trusted, and no other subscription shares the connection', async () => {
    using authority = createAuthority();
    const server = authority.issue('localhost', ['localhost', '127.0.0.1']);
    const client = authority.issue('dispatch-client', []);
    const seen: string[] = [];
    const endpoint = createHttpsServer(
      { ...server, ca: authority.ca, requestCert: true, rejectUnauthorized: false },
      (request, response) => {
        const subject = (request.socket as TLSSocket).getPeerCertificate().subject;
        seen.push(String(subject?.CN ?? 'nobody'));
        request.resume();
        request.on('end', () => response.writeHead(204).end());
      },
    );
    await new Promise<void>((done) => endpoint.listen(0, '127.0.0.1', done));
    const url = `https://127.0.0.1:${(endpoint.address() as AddressInfo).port}/`;
    const subscribe = async (tls: object | undefined) =>
      (
        await clients.subscriptions.createSubscription({
          subscription: { url, eventTypes: ['none'], ...(tls === undefined ? {} : { tls }) },
        })
      ).subscription!;
    const own = await subscribe({
      certificatePem: client.cert,
      privateKeyPem: client.key,
      caPem: authority.ca,
    });
    expect(own.tls).toMatchObject({ certificatePem: client.cert, privateKeyPem: '' });
    const trusting = await subscribe({ caPem: authority.ca });
    const plain = await subscribe(undefined);
    const result = (subscriptionId: string) => clients.subscriptions.testSubscription({ subscriptionId });
    expect(await result(own.subscriptionId)).toMatchObject({ succeeded: true, status: 204 });
    expect(await result(trusting.subscriptionId)).toMatchObject({ succeeded: true, status: 204 });
    expect(await result(plain.subscriptionId)).toMatchObject({ succeeded: false, errorClass: 'tls' });
    expect(await result(own.subscriptionId)).toMatchObject({ succeeded: true });
    expect(seen).toEqual(['dispatch-client', 'nobody', 'dispatch-client']);
    endpoint.closeAllConnections();
    await new Promise((done) => endpoint.close(done));
  });

  test('TestSubscription sends one signed event, tells what came back, and stores nothing', async () => {
    receiver.received.length = 0;
    receiver.answer = () => ({ status: 418, body: 'short and stout' });
    const made = await clients.subscriptions.createSubscription({
      subscription: { url: receiver.url, eventTypes: ['none.such'] },
    });
    const { subscriptionId } = made.subscription!;
    const count = async () =>
      Number(
        (await dispatch.database.owner.query("SELECT count(*) AS n FROM events WHERE tenant_id = 'creds'"))
          .rows[0].n,
      );
    const before = await count();
    const result = await clients.subscriptions.testSubscription({
      subscriptionId,
      eventType: 'my.test',
      payload: Buffer.from('{"hello":1}'),
    });
    expect(result).toMatchObject({ succeeded: false, status: 418, errorClass: 'http_status' });
    expect(Buffer.from(result.responseBody).toString()).toBe('short and stout');
    const [request] = receiver.received;
    expect(request!.headers['dispatch-event-type']).toBe('my.test');
    new Webhook(made.secret).verify(request!.body.toString(), request!.headers as Record<string, string>);
    expect(await count()).toBe(before);
    receiver.answer = () => ({ status: 204 });
  });
});
