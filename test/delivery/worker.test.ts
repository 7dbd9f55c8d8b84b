import { expect, onTestFinished, test } from 'vitest';
import type { Gates } from '../../src/delivery/gates.ts';
import { createWorker } from '../../src/delivery/worker.ts';
import { DEFAULT_RETRY_POLICY } from '../../src/domain/backoff.ts';
import { NO_CREDENTIALS } from '../../src/domain/credentials.ts';
import { type ClaimedDelivery, NO_TIMING } from '../../src/domain/delivery.ts';
import { createPatternIndex } from '../../src/domain/event-type.ts';
import type { DeliveryId, EventId, SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import { DEFAULT_QUOTA } from '../../src/domain/quota.ts';
import { signingKey } from '../../src/domain/signature.ts';
import type { TenantConfig } from '../../src/storage/read-config.ts';
import type { Target } from '../../src/storage/targets.ts';

const tenantId = 'a' as TenantId;
const subscriptionId = 'sub_1' as SubscriptionId;

const key = signingKey('v1', Buffer.alloc(32, 1));
const target: Target = {
  subscriptionId,
  idBytes: Buffer.alloc(16),
  origin: 'http://127.0.0.1:1',
  path: '/',
  url: 'http://127.0.0.1:1/',
  headers: {},
  retryPolicy: DEFAULT_RETRY_POLICY,
  attemptTimeoutMs: 1_000,
  state: 'active',
  secrets: [{ key, liveUntilMs: Number.POSITIVE_INFINITY }],
  lastingKeys: [key],
  compatibilityHeaders: false,
  maxPerSecond: undefined,
  maxInFlight: undefined,
  credentials: NO_CREDENTIALS,
  tlsId: '',
  breaker: undefined,
  allowHttp: true,
  ordering: 'none',
  onDeadLetter: 'skip',
  batch: undefined,
  eventTypes: ['**'],
};
const config: TenantConfig = {
  tenantId,
  serial: 1,
  version: 1,
  state: 'active',
  quota: DEFAULT_QUOTA,
  targets: new Map([[subscriptionId, target]]),
  matches: createPatternIndex([{ patterns: target.eventTypes, value: target }], () => 0),
  isOrdered: false,
  hasBatches: false,
};

const stored = (i: number): ClaimedDelivery => ({
  tenantId,
  deliveryId: `dlv_${i}` as DeliveryId,
  idBytes: Buffer.from(i.toString(16).padStart(32, '0'), 'hex'),
  subscriptionId,
  attemptCount: 0,
  retryBase: 0,
  roundAtMs: undefined,
  lease: Buffer.alloc(16),
  leaseUntilMs: performance.now() + 60_000,
  dueAtMs: i,
  isOrdered: false,
  place: undefined,
  event: {
    eventId: `evt_${i}` as EventId,
    type: 'a',
    contentType: 'application/json',
    payload: Buffer.from('{}'),
    source: '',
    subject: '',
  },
});

test('goes on with a queue that was full as soon as a delivery of it has left, though no walk and no hint names it', async () => {
  const left = Array.from({ length: 40 }, (_, i) => stored(i));
  const sent: string[] = [];
  let allAreSent = (): void => {};
  const nothing = { deliveries: [], withoutEvent: [] };
  const gates: Gates = {
    admit: () => 'go',
    going: () => {},
    ended: () => {},
    unused: () => {},
    waitingCap: () => 4,
    claimable: async () => 4,
    mayOwn: () => true,
    stop: () => {},
  };
  const worker = createWorker({
    walk: async () => ({ heads: [], next: undefined }),
    claim: async ([queue]) => ({ ...nothing, deliveries: left.splice(0, queue!.room) }),
    claimLines: async () => ({ ...nothing, lines: [], reached: '', dueInMs: undefined }),
    claimLeftovers: async () => nothing,
    stepsBack: () => false,
    runsLow: () => {},
    configs: { get: async () => config, peek: () => config, reload: async () => config },
    send: ({ headers }, done) => {
      sent.push(headers[headers.indexOf('webhook-id') + 1]!);
      if (sent.length === 40) allAreSent();
      const response = { kind: 'response', status: 200, retryAfter: undefined, control: undefined } as const;
      setImmediate(() => done({ ...response, body: Buffer.alloc(0), headers: {}, timing: NO_TIMING }));
    },
    recorder: { add: () => {}, backlog: () => 0, flush: async () => {} },
    gates,
    authorization: () => undefined,
    unauthorized: () => {},
    mayBeSent: () => true,
    disable: async () => {},
    maxInFlight: 16,
    leaseMs: 60_000,
    userAgent: 'test',
    now: Date.now,
    databaseNow: Date.now,
    monotonic: () => performance.now(),
    utilization: () => 0.1,
    random: () => 0.5,
    onAttempt: () => {},
    onResult: () => {},
    onClaimed: () => {},
    onError: (error) => {
      throw error;
    },
  });
  onTestFinished(() => worker.stop(0));
  const isDone = new Promise<void>((done) => {
    allAreSent = done;
  });
  worker.poke([{ tenantId, subscriptionId }]);
  await isDone;
  expect(new Set(sent).size).toBe(40);
});
