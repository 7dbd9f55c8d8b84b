// Canaries: what is secret or one tenant's own is looked for in everything that others can see: logs at their most
// talkative, metrics, errors, and every answer that another tenant gets.

import type { DescMethod } from '@bufbuild/protobuf';
import { expect, test } from 'vitest';
import { DeadLetterService } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { EventService } from '../../gen/dispatch/v1/event_service_pb.ts';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { createAuthority } from '../support/certificates.ts';
import { grpcCaller } from '../support/clients.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { ADMIN_KEY, MASTER_KEY, newTenant } from '../support/instance.ts';
import { spawnDispatch } from '../support/processes.ts';
import { startReceiver } from '../support/receiver.ts';
import { clientsOf } from '../support/rpc-clients.ts';

test('no canary of one tenant is in a log, a metric, an error or another tenant’s answer', async () => {
  await using database = await cloneDatabase();
  await using receiver = await startReceiver();
  using authority = createAuthority();
  const identity = authority.issue('canary-client', []);
  receiver.answer = () => ({ status: 500, body: 'canary-response' });
  const dispatch = await spawnDispatch({
    DISPATCH_DATABASE_URL: database.url,
    DISPATCH_ADMIN_KEY: ADMIN_KEY,
    DISPATCH_MASTER_KEYS: `test:${MASTER_KEY.toString('base64')}`,
    DISPATCH_ALLOW_ENDPOINT_CIDRS: '127.0.0.0/8',
    DISPATCH_LOG_LEVEL: 'trace',
  });
  const admin = clientsOf(dispatch.httpPort, ADMIN_KEY);
  const { key } = await newTenant(admin, 'owner');
  const { key: foreignKey } = await newTenant(admin, 'other');
  const own = clientsOf(dispatch.httpPort, key);
  const foreign = clientsOf(dispatch.httpPort, foreignKey);

  const once = {
    schedule: { case: 'list' as const, value: { delays: [{ seconds: 0n, nanos: 1_000_000 }] } },
  };
  const secrets: string[] = [key, foreignKey, ADMIN_KEY, MASTER_KEY.toString('base64'), identity.key];
  const auths = [
    { kind: { case: 'basic' as const, value: { username: 'u', password: 'canary-password' } } },
    { kind: { case: 'bearer' as const, value: { token: 'canary-token' } } },
    {
      kind: {
        case: 'oauth2' as const,
        value: { tokenUrl: `${receiver.url}/token`, clientId: 'id', clientSecret: 'canary-client-secret' },
      },
    },
  ];
  const ids: string[] = [];
  for (const auth of auths) {
    const made = await own.subscriptions.createSubscription({
      subscription: {
        url: `${receiver.url}/canary-path`,
        eventTypes: ['a.*'],
        auth,
        retryPolicy: once,
        headers: { 'X-Secret': 'canary-header' },
        description: 'canary-description',
        metadata: { k: 'canary-label' },
      },
    });
    secrets.push(made.secret);
    ids.push(made.subscription!.subscriptionId);
  }
  const tls = { certificatePem: identity.cert, privateKeyPem: identity.key, caPem: authority.ca };
  await own.subscriptions.createSubscription({
    subscription: { url: 'https://127.0.0.1:1/', eventTypes: ['a.*'], tls, retryPolicy: once },
  });
  secrets.push((await own.subscriptions.rotateSecret({ subscriptionId: ids[0]! })).secret);
  const body = { case: 'data' as const, value: { secret: 'canary-payload' } };
  const event = {
    type: 'a.b',
    body,
    metadata: { k: 'canary-metadata' },
    idempotencyKey: 'canary-idempotency',
  };
  const { eventId } = await own.publish.publish({ event });
  const dead = await eventually(async () => {
    const { deadLetters } = await own.deadLetters.listDeadLetters({});
    expect(deadLetters).toHaveLength(4);
    return deadLetters;
  });
  // Errors that quote what was sent, a refused key, and the same idempotency key with another body.
  const errors: string[] = [];
  const note = (work: Promise<unknown>) =>
    work.then(
      () => {},
      (error) => void errors.push(String(error)),
    );
  await note(own.publish.publish({ event: { ...event, body: { case: 'data', value: { other: 1 } } } }));
  await note(clientsOf(dispatch.httpPort, `${key}x`).events.listEvents({}));
  const wrongKey = key.slice(0, -7) + (key.at(-7) === 'a' ? 'b' : 'a') + key.slice(-6);
  await note(clientsOf(dispatch.httpPort, wrongKey).events.listEvents({}));
  await note(
    own.subscriptions.createSubscription({
      subscription: {
        url: 'nonsense',
        eventTypes: ['a'],
        auth: { kind: { case: 'bearer', value: { token: 'canary bad token' } } },
      },
    }),
  );
  await own.subscriptions.testSubscription({ subscriptionId: ids[1]!, payload: Buffer.from('canary-test') });
  expect(errors).toHaveLength(4);

  // Everything that the other tenant can ask, also with the owner's ids.
  const caller = grpcCaller(dispatch.grpcPort, foreignKey);
  const known = { eventId, subscriptionId: ids[0]!, deliveryId: dead[0]!.deliveryId };
  const seen: string[] = [];
  for (const service of [EventService, SubscriptionService, DeadLetterService, TenantService]) {
    for (const method of service.methods as readonly DescMethod[]) {
      if (method.methodKind !== 'unary' || /^(?:Delete|Create|Set)/.test(method.name)) continue;
      for (const request of [{}, known, { ...known, tenantId: 'owner' }]) {
        const fields = new Set(method.input.fields.map((f) => f.localName));
        const fitting = Object.fromEntries(Object.entries(request).filter(([name]) => fields.has(name)));
        await caller.call(method, fitting).then(
          (answer) =>
            seen.push(
              JSON.stringify(answer, (_k, v) =>
                typeof v === 'bigint' ? String(v) : v instanceof Uint8Array ? Buffer.from(v).toString() : v,
              ),
            ),
          (error: Error) => seen.push(String(error.message)),
        );
      }
    }
  }
  caller.close();
  await note(foreign.publish.publish({ event: { ...event, type: '' } }));
  const metrics = await (await fetch(`http://127.0.0.1:${dispatch.httpPort}/metrics`)).text();
  const audit = JSON.stringify((await own.tenants.listAuditLog({ pageSize: 500 })).entries, (_k, v) =>
    typeof v === 'bigint' ? String(v) : v,
  );
  const subscriptions = JSON.stringify(
    (await own.subscriptions.listSubscriptions({})).subscriptions,
    (_k, v) => (typeof v === 'bigint' ? String(v) : v),
  );
  expect(await dispatch.kill('SIGTERM')).toBe(0);
  const log = dispatch.output();

  expect(log).toContain('"attempt"'); // it did log
  expect(log).toContain(eventId);
  expect(metrics).toContain('dispatch_attempts_total');
  expect(seen.length).toBeGreaterThan(60);
  const places = { log, metrics, errors: errors.join('\n'), 'the other tenant': seen.join('\n'), audit };
  for (const [place, text] of Object.entries(places)) {
    for (const secret of secrets) expect(text.includes(secret.trim()), `a secret in ${place}`).toBe(false);
    const canaries = text.match(/canary[\w -]*/g) ?? [];
    // An error tells its own caller which key it used; nothing else comes back.
    const allowed = place === 'errors' ? ['canary-idempotency'] : [];
    expect(
      canaries.filter((c) => !allowed.some((a) => c.startsWith(a))),
      place,
    ).toEqual([]);
    expect(text, place).not.toMatch(/whsec_|dsp_live_[0-9a-z]{26}_\w|PRIVATE KEY/);
  }
  for (const secret of [...secrets, 'canary-password', 'canary-token', 'canary-client-secret']) {
    expect(subscriptions.includes(secret), 'a secret in ListSubscriptions').toBe(false);
  }
}, 120_000);
