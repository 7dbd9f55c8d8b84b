import { create, fromBinary, toBinary, toJsonString } from '@bufbuild/protobuf';
import { FieldMaskSchema } from '@bufbuild/protobuf/wkt';
import { EventInputSchema } from '../../../gen/dispatch/v1/event_pb.ts';
import { SubscriptionSchema } from '../../../gen/dispatch/v1/subscription_service_pb.ts';
import { DEFAULT_RETRY_POLICY, retryDelayMs } from '../../../src/domain/backoff.ts';
import { NO_CREDENTIALS } from '../../../src/domain/credentials.ts';
import { Violations } from '../../../src/domain/errors.ts';
import { fingerprintOf, MAX_PAYLOAD_BYTES, parseEvent } from '../../../src/domain/event.ts';
import type { SubscriptionId, TenantId } from '../../../src/domain/ids.ts';
import { QUOTA_FIELDS } from '../../../src/domain/quota.ts';
import { type Subscription, urlProblem } from '../../../src/domain/subscription.ts';
import { toDraft } from '../../../src/rpc/publish-service.ts';
import {
  ALL_FIELDS,
  checkEnums,
  checkSettings,
  parseEtag,
  parseMask,
  toCredentials,
  toSettings,
  toWire,
} from '../../../src/rpc/subscription-messages.ts';
import { parseQuotaMask } from '../../../src/rpc/tenant-messages.ts';
import { assertStorable, JSON_WORDS, read, same, seedsOf, TIME_WORDS } from '../messages.ts';
import { decoded, ensure, type Target } from '../target.ts';

const NOW = Date.UTC(2026, 10, 24, 10);
const ID = '01h455vb4pex5vsknk084sn02q';

const event: Target = {
  name: 'event',
  about: 'an event that is taken can be stored, signed and told from others',
  seeds: seedsOf(
    EventInputSchema,
    {
      type: 'order.created',
      body: { case: 'data', value: { a: [1, { b: null }], c: 'x' } },
      source: '/a',
      subject: 'b',
      idempotencyKey: 'k-1',
      orderingKey: 'o-1',
      deliverAfter: { seconds: 1_795_514_400n, nanos: 5 },
      metadata: { k: 'v', l: '' },
      tenantId: 'acme',
    },
    { type: 'a', body: { case: 'payload', value: Buffer.from('{"a":[1,2]}') } },
    {
      type: 'a',
      body: { case: 'payload', value: Buffer.from([0, 255]) },
      contentType: 'text/csv; charset=utf-8; q="a b"',
    },
  ),
  words: [
    ...JSON_WORDS,
    ...TIME_WORDS,
    'application/json',
    'application/x+json',
    'metadata',
    'payload',
    'data',
    'deliverAfter',
    'orderingKey',
    '__proto__',
  ],
  run(input) {
    const message = read(EventInputSchema, input);
    if (message === undefined) return;
    const parsed = decoded(() => parseEvent('acme' as TenantId, toDraft(message), NOW));
    if (parsed === undefined) return;
    const { payload, ...said } = parsed;
    assertStorable(said);
    ensure(payload.length <= MAX_PAYLOAD_BYTES, 'the payload is larger than it may be');
    const isJson = /^application\/(?:[\w.-]+\+)?json\b/i.test(parsed.contentType);
    if (isJson) JSON.parse(payload.toString('utf8'));
    ensure(!/[^\t\x20-\x7e]/.test(parsed.contentType), 'the content type cannot be sent');
    ensure(parsed.orderingKey === '' || /^[\x21-\x7e]{1,255}$/.test(parsed.orderingKey), 'the key is no key');
    ensure(fingerprintOf(parsed).equals(fingerprintOf(parsed)), 'it is not like itself');
  },
};

const STORED = {
  subscriptionId: `sub_${ID}` as SubscriptionId,
  tenantId: 'acme' as TenantId,
  state: 'active',
  disabledReason: '',
  version: 1,
  createdAtMs: NOW,
  updatedAtMs: NOW,
  credentials: undefined,
  publicKeys: [],
  breaker: undefined,
  verifiedAtMs: undefined,
  failingSinceMs: undefined,
} as const;

const BEFORE: Subscription = {
  ...STORED,
  ...toSettings(create(SubscriptionSchema, { url: 'https://example.com/', eventTypes: ['**'] })),
};

const subscription: Target = {
  name: 'subscription',
  about: 'settings that are taken can be stored, are shown as they were given, and end every delivery',
  seeds: seedsOf(
    SubscriptionSchema,
    {
      url: 'https://example.com/hooks',
      eventTypes: ['order.*', 'a.**'],
      description: 'x',
      headers: { 'X-Key': 'a' },
      metadata: { k: 'v' },
      attemptTimeout: { seconds: 5n },
      signatureSchemes: [1, 2],
      maxPerSecond: 0.5,
      maxInFlight: 3,
      ordering: 3,
      onDeadLetter: 2,
      batch: { maxEvents: 5, maxBytes: 2048, maxWait: { nanos: 500_000_000 }, format: 2 },
      retryPolicy: {
        schedule: { case: 'list', value: { delays: [{ seconds: 1n }, { seconds: 60n }] } },
        maxAge: { seconds: 3600n },
        jitter: 2,
      },
      auth: { kind: { case: 'basic', value: { username: 'a', password: 'b' } } },
    },
    {
      url: 'https://example.com/',
      eventTypes: ['**'],
      retryPolicy: {
        schedule: {
          case: 'exponential',
          value: { base: { seconds: 1n }, factor: 2, cap: { seconds: 600n }, maxAttempts: 12 },
        },
      },
      auth: {
        kind: {
          case: 'oauth2',
          value: { tokenUrl: 'https://a.example/t', clientId: 'a', clientSecret: 'b' },
        },
      },
    },
  ),
  words: [
    ...JSON_WORDS,
    ...TIME_WORDS,
    'retryPolicy',
    'exponential',
    'factor',
    'list',
    'delays',
    'batch',
    'maxWait',
    'auth',
    'bearer',
    'token',
    'ORDERING_KEY',
    'headers',
    'eventTypes',
    '"**"',
  ],
  run(input) {
    const message = read(SubscriptionSchema, input);
    if (message === undefined) return;
    const taken = decoded(() => {
      const wrong = new Violations();
      const settings = toSettings(message);
      checkEnums(message, ALL_FIELDS, wrong);
      checkSettings(settings, ALL_FIELDS, urlProblem, wrong);
      const credentials = toCredentials(message, ALL_FIELDS, urlProblem, wrong);
      wrong.throwIfAny();
      return { settings, credentials };
    });
    if (taken === undefined) return;
    const { settings, credentials } = taken;
    assertStorable(settings);
    assertStorable(credentials);
    const shown = toWire({ ...BEFORE, ...settings }, NO_CREDENTIALS, NOW);
    const again = fromBinary(SubscriptionSchema, toBinary(SubscriptionSchema, shown));
    ensure(same(toSettings(again), settings), 'what is shown means something else');
    toJsonString(SubscriptionSchema, toWire(BEFORE, credentials, NOW));
    const policy = settings.retryPolicy ?? DEFAULT_RETRY_POLICY;
    for (let attempt = 1; attempt <= 101; attempt++) {
      const delayMs = retryDelayMs(policy, attempt, undefined, 0.9);
      if (delayMs === undefined) return;
      ensure(
        Number.isInteger(delayMs) && delayMs >= 0 && delayMs <= 86_400_000,
        `attempt ${attempt}: ${delayMs}`,
      );
    }
    ensure(false, 'there are more than 100 attempts');
  },
};

const masks: Target = {
  name: 'masks',
  about: 'masks and etags name what there is',
  seeds: [
    ...seedsOf(FieldMaskSchema, { paths: ['url', 'event_types'] }, { paths: ['publish_per_second'] }),
    '12',
  ],
  words: ['url', 'headers', 'auth', '__proto__', 'constructor', 'toString', 'weight', ',', '"'],
  run(input) {
    const version = decoded(() => parseEtag(input.toString('latin1'), 'etag'));
    if (version !== undefined) ensure(Number.isSafeInteger(version) && version > 0, 'it is no version');
    const paths = read(FieldMaskSchema, input)?.paths;
    if (paths === undefined) return;
    for (const field of decoded(() => parseMask(paths)) ?? [])
      ensure(ALL_FIELDS.has(field), `${field} is no field`);
    for (const field of decoded(() => parseQuotaMask(paths)) ?? [])
      ensure(QUOTA_FIELDS.includes(field), `${field} is no quota`);
  },
};

export const MESSAGE_TARGETS: readonly Target[] = [event, subscription, masks];
