// The messages of SubscriptionService to and from the domain, checked.
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  BatchFormat,
  Jitter,
  OnDeadLetter,
  Ordering,
  SubscriptionSchema,
  type EndpointAuth as WireAuth,
  BreakerState as WireBreaker,
  type RetryPolicy as WireRetryPolicy,
  SignatureScheme as WireScheme,
  SubscriptionState as WireState,
  type Subscription as WireSubscription,
} from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { DEFAULT_RETRY_POLICY, type RetryPolicy } from '../domain/backoff.ts';
import { RAMP_MS, rampPerSecond } from '../domain/breaker.ts';
import { checkAuth, checkTls, type EndpointAuth, type EndpointCredentials } from '../domain/credentials.ts';
import { invalidField, type Violations } from '../domain/errors.ts';
import { checkMetadata } from '../domain/event.ts';
import { formatPublicKey, type SignatureScheme } from '../domain/signature.ts';
import {
  type BatchPolicy,
  type BreakerRecord,
  checkAttemptTimeout,
  checkBatch,
  checkDescription,
  checkEventTypes,
  checkHeaders,
  checkLimits,
  checkRetryPolicy,
  DEFAULT_ATTEMPT_TIMEOUT_MS,
  DEFAULT_BATCH,
  type Subscription,
  type SubscriptionSettings,
  type SubscriptionState,
} from '../domain/subscription.ts';
import { msOf } from './times.ts';

export const SERVER_SET: readonly (readonly [string, (s: WireSubscription) => boolean])[] = [
  ['subscription_id', (s) => s.subscriptionId !== ''],
  ['state', (s) => s.state !== WireState.UNSPECIFIED],
  ['disabled_reason', (s) => s.disabledReason !== ''],
  ['etag', (s) => s.etag !== ''],
  ['create_time', (s) => s.createTime !== undefined],
  ['update_time', (s) => s.updateTime !== undefined],
  ['public_keys', (s) => s.publicKeys.length > 0],
  ['breaker', (s) => s.breaker !== undefined],
  ['verify_time', (s) => s.verifyTime !== undefined],
  ['failing_since_time', (s) => s.failingSinceTime !== undefined],
];

/** What an update mask can name. */
export type SettingsField = keyof SubscriptionSettings | 'auth' | 'tls';
const FIELD_OF_PATH: Readonly<Record<string, SettingsField>> = {
  url: 'url',
  event_types: 'eventTypes',
  description: 'description',
  headers: 'headers',
  retry_policy: 'retryPolicy',
  attempt_timeout: 'attemptTimeoutMs',
  metadata: 'metadata',
  signature_schemes: 'signatureSchemes',
  compatibility_headers: 'compatibilityHeaders',
  max_per_second: 'maxPerSecond',
  max_in_flight: 'maxInFlight',
  auth: 'auth',
  tls: 'tls',
  ordering: 'ordering',
  on_dead_letter: 'onDeadLetter',
  batch: 'batch',
};
export const ALL_FIELDS: ReadonlySet<SettingsField> = new Set(Object.values(FIELD_OF_PATH));

/** The fields that a mask names. */
export function parseMask(paths: readonly string[]): ReadonlySet<SettingsField> {
  const known = Object.keys(FIELD_OF_PATH).join(', ');
  if (paths.length === 0) throw invalidField('update_mask', `is required: any of ${known}`);
  const fields = new Set<SettingsField>();
  for (const path of paths) {
    const field = Object.hasOwn(FIELD_OF_PATH, path) ? FIELD_OF_PATH[path] : undefined;
    if (field === undefined)
      throw invalidField('update_mask', `has "${path.slice(0, 64)}"; it may have ${known}`);
    fields.add(field);
  }
  return fields;
}

/** The version in an etag. */
export function parseEtag(etag: string, field: string): number | undefined {
  if (etag === '') return undefined;
  if (!/^[1-9]\d{0,14}$/.test(etag))
    throw invalidField(field, 'is not an etag of a subscription; pass one that was read');
  return Number(etag);
}

/** The settings in a message, unchecked. */
export function toSettings(input: WireSubscription): SubscriptionSettings {
  const { attemptTimeout } = input;
  return {
    url: input.url,
    eventTypes: input.eventTypes,
    description: input.description,
    headers: input.headers,
    retryPolicy: input.retryPolicy === undefined ? undefined : toPolicy(input.retryPolicy),
    attemptTimeoutMs: attemptTimeout === undefined ? DEFAULT_ATTEMPT_TIMEOUT_MS : msOf(attemptTimeout),
    metadata: input.metadata,
    signatureSchemes: toSchemes(input.signatureSchemes),
    compatibilityHeaders: input.compatibilityHeaders,
    maxPerSecond: input.maxPerSecond === 0 ? undefined : input.maxPerSecond,
    maxInFlight: input.maxInFlight === 0 ? undefined : input.maxInFlight,
    ordering: ORDERING_NAMES[input.ordering] ?? 'none',
    onDeadLetter: input.onDeadLetter === OnDeadLetter.STOP ? 'stop' : 'skip',
    batch: toBatch(input),
  };
}

const ORDERING_NAMES: Readonly<Record<number, SubscriptionSettings['ordering']>> = {
  [Ordering.NONE]: 'none',
  [Ordering.SUBSCRIPTION]: 'subscription',
  [Ordering.KEY]: 'key',
};
const WIRE_ORDERINGS: Readonly<Record<SubscriptionSettings['ordering'], Ordering>> = {
  none: Ordering.UNSPECIFIED,
  subscription: Ordering.SUBSCRIPTION,
  key: Ordering.KEY,
};

function toBatch({ batch }: WireSubscription): BatchPolicy | undefined {
  if (batch === undefined) return undefined;
  return {
    maxEvents: batch.maxEvents === 0 ? DEFAULT_BATCH.maxEvents : batch.maxEvents,
    maxBytes: batch.maxBytes === 0 ? DEFAULT_BATCH.maxBytes : batch.maxBytes,
    maxWaitMs: batch.maxWait === undefined ? DEFAULT_BATCH.maxWaitMs : msOf(batch.maxWait),
    format: batch.format === BatchFormat.CLOUDEVENTS ? 'cloudevents' : 'json_array',
  };
}

const SCHEME_NAMES: Readonly<Record<number, SignatureScheme>> = {
  [WireScheme.V1]: 'v1',
  [WireScheme.V1A]: 'v1a',
};
const WIRE_SCHEMES: Readonly<Record<SignatureScheme, WireScheme>> = {
  v1: WireScheme.V1,
  v1a: WireScheme.V1A,
};

/** The scheme of a wire value; undefined for one that is not known. */
export const schemeOf = (wire: WireScheme): SignatureScheme | undefined => SCHEME_NAMES[wire];

function toSchemes(wire: readonly WireScheme[]): SignatureScheme[] {
  const known = new Set(wire.flatMap((scheme) => schemeOf(scheme) ?? []));
  return known.size === 0 ? ['v1'] : [...known].sort();
}

/** Says what is wrong with an endpoint or token URL of a tenant, or undefined. */
export type JudgeUrl = (url: string) => string | undefined;

/** Checks the fields that are given. */
export function checkSettings(
  settings: SubscriptionSettings,
  fields: ReadonlySet<SettingsField>,
  judgeUrl: JudgeUrl,
  wrong: Violations,
): void {
  const at = 'subscription';
  if (fields.has('url')) {
    const problem = judgeUrl(settings.url);
    if (problem !== undefined) wrong.add(`${at}.url`, problem);
  }
  checkLimits(settings, at, wrong);
  wrong.check(
    !settings.compatibilityHeaders || settings.signatureSchemes.includes('v1'),
    `${at}.compatibility_headers`,
    'needs SIGNATURE_SCHEME_V1 among the signature_schemes',
  );
  if (fields.has('eventTypes')) checkEventTypes(settings.eventTypes, `${at}.event_types`, wrong);
  if (fields.has('description')) checkDescription(settings.description, 512, `${at}.description`, wrong);
  if (fields.has('headers')) checkHeaders(settings.headers, `${at}.headers`, wrong);
  if (fields.has('retryPolicy') && settings.retryPolicy !== undefined) {
    checkRetryPolicy(settings.retryPolicy, `${at}.retry_policy`, wrong);
  }
  if (fields.has('attemptTimeoutMs'))
    checkAttemptTimeout(settings.attemptTimeoutMs, `${at}.attempt_timeout`, wrong);
  if (fields.has('metadata')) checkMetadata(settings.metadata, `${at}.metadata`, wrong);
  if (fields.has('batch') && settings.batch !== undefined) checkBatch(settings.batch, `${at}.batch`, wrong);
}

/** The settings before, with those fields that are given. */
export function merge(
  before: SubscriptionSettings,
  given: SubscriptionSettings,
  fields: ReadonlySet<SettingsField>,
): SubscriptionSettings {
  const pick = <F extends keyof SubscriptionSettings>(field: F): SubscriptionSettings[F] =>
    fields.has(field) ? given[field] : before[field];
  return {
    url: pick('url'),
    eventTypes: pick('eventTypes'),
    description: pick('description'),
    headers: pick('headers'),
    retryPolicy: pick('retryPolicy'),
    attemptTimeoutMs: pick('attemptTimeoutMs'),
    metadata: pick('metadata'),
    signatureSchemes: pick('signatureSchemes'),
    compatibilityHeaders: pick('compatibilityHeaders'),
    maxPerSecond: pick('maxPerSecond'),
    maxInFlight: pick('maxInFlight'),
    ordering: pick('ordering'),
    onDeadLetter: pick('onDeadLetter'),
    batch: pick('batch'),
  };
}

/** The credentials in a message, checked as far as `fields` name them. */
export function toCredentials(
  input: WireSubscription,
  fields: ReadonlySet<SettingsField>,
  judgeUrl: JudgeUrl,
  wrong: Violations,
): EndpointCredentials {
  const auth = fields.has('auth') && input.auth !== undefined ? toAuth(input.auth, wrong) : undefined;
  if (auth !== undefined) checkAuth(auth, 'subscription.auth', judgeUrl, wrong);
  const given = fields.has('tls') ? input.tls : undefined;
  if (given === undefined) return { auth, tls: undefined };
  const { certificatePem, privateKeyPem, caPem } = given;
  const tls = { certificatePem, privateKeyPem, caPem };
  checkTls(tls, 'subscription.tls', wrong);
  return { auth, tls };
}

function toAuth(wire: WireAuth, wrong: Violations): EndpointAuth | undefined {
  const { kind } = wire;
  switch (kind.case) {
    case 'basic':
      return { kind: 'basic', username: kind.value.username, password: kind.value.password };
    case 'bearer':
      return { kind: 'bearer', token: kind.value.token };
    case 'oauth2': {
      const { tokenUrl, clientId, clientSecret, scopes, audience } = kind.value;
      return { kind: 'oauth2', tokenUrl, clientId, clientSecret, scopes, audience };
    }
    case undefined:
      wrong.add('subscription.auth', 'must have one of basic, bearer and oauth2, or be left out');
      return undefined;
  }
}

/** Credentials as they are shown: without what is secret in them. */
function credentialsToWire({ auth, tls }: EndpointCredentials): Pick<SubscriptionInit, 'auth' | 'tls'> {
  return {
    ...(auth === undefined ? {} : { auth: authToWire(auth) }),
    ...(tls === undefined ? {} : { tls: { certificatePem: tls.certificatePem, caPem: tls.caPem } }),
  };
}

function authToWire(auth: EndpointAuth): NonNullable<SubscriptionInit['auth']> {
  switch (auth.kind) {
    case 'basic':
      return { kind: { case: 'basic', value: { username: auth.username } } };
    case 'bearer':
      return { kind: { case: 'bearer', value: {} } };
    case 'oauth2': {
      const { tokenUrl, clientId, scopes, audience } = auth;
      return { kind: { case: 'oauth2', value: { tokenUrl, clientId, scopes: [...scopes], audience } } };
    }
  }
}

/** A breaker as it stands at `nowMs`. */
function breakerToWire(
  breaker: BreakerRecord | undefined,
  nowMs: number,
): NonNullable<SubscriptionInit['breaker']> {
  if (breaker === undefined) return { state: WireBreaker.CLOSED };
  const { phase, reason, changedAtMs, untilMs } = breaker;
  const sinceTime = timestampFromMs(changedAtMs);
  if (phase === 'open') {
    const until = untilMs ?? changedAtMs;
    if (nowMs >= until) return { state: WireBreaker.HALF_OPEN, reason, sinceTime: timestampFromMs(until) };
    return { state: WireBreaker.OPEN, reason, sinceTime, untilTime: timestampFromMs(until) };
  }
  if (rampPerSecond(nowMs - changedAtMs) === undefined) return { state: WireBreaker.CLOSED, sinceTime };
  return { state: WireBreaker.RAMPING, sinceTime, untilTime: timestampFromMs(changedAtMs + RAMP_MS) };
}

/** Checks the enum values among the fields that are given. */
export function checkEnums(
  input: WireSubscription,
  fields: ReadonlySet<SettingsField>,
  wrong: Violations,
): void {
  if (fields.has('retryPolicy')) checkJitter(input, wrong);
  const at = 'subscription';
  if (fields.has('ordering')) {
    const ok = input.ordering === Ordering.UNSPECIFIED || ORDERING_NAMES[input.ordering] !== undefined;
    wrong.check(ok, `${at}.ordering`, 'must be ORDERING_NONE, ORDERING_SUBSCRIPTION or ORDERING_KEY');
  }
  if (fields.has('onDeadLetter')) {
    const ok = Object.values(OnDeadLetter).some((value) => value === input.onDeadLetter);
    wrong.check(ok, `${at}.on_dead_letter`, 'must be ON_DEAD_LETTER_SKIP or ON_DEAD_LETTER_STOP');
  }
  if (fields.has('batch')) {
    const ok = Object.values(BatchFormat).some((f) => f === (input.batch?.format ?? BatchFormat.UNSPECIFIED));
    wrong.check(ok, `${at}.batch.format`, 'must be BATCH_FORMAT_JSON_ARRAY or BATCH_FORMAT_CLOUDEVENTS');
  }
  if (!fields.has('signatureSchemes')) return;
  const known = input.signatureSchemes.every((scheme) => schemeOf(scheme) !== undefined);
  const path = 'subscription.signature_schemes';
  wrong.check(known, path, 'may have SIGNATURE_SCHEME_V1 and SIGNATURE_SCHEME_V1A');
}

function checkJitter(input: WireSubscription, wrong: Violations): void {
  const known = [Jitter.UNSPECIFIED, Jitter.FULL, Jitter.NONE] as const;
  const ok = known.some((jitter) => jitter === (input.retryPolicy?.jitter ?? Jitter.UNSPECIFIED));
  wrong.check(ok, 'subscription.retry_policy.jitter', 'must be JITTER_FULL or JITTER_NONE, or left out');
}

function toPolicy(wire: WireRetryPolicy): RetryPolicy {
  const { schedule } = wire;
  const rest = {
    jitter: wire.jitter === Jitter.NONE ? ('none' as const) : ('full' as const),
    ...(wire.maxAge === undefined ? {} : { maxAgeMs: msOf(wire.maxAge) }),
  };
  if (schedule.case === 'exponential') {
    const { base, factor, cap, maxAttempts } = schedule.value;
    return {
      schedule: { kind: 'exponential', baseMs: msOf(base), factor, capMs: msOf(cap), maxAttempts },
      ...rest,
    };
  }
  if (schedule.case === 'list') {
    return { schedule: { kind: 'list', delaysMs: schedule.value.delays.map(msOf) }, ...rest };
  }
  return { schedule: DEFAULT_RETRY_POLICY.schedule, ...rest };
}

export const STATE_NAMES: Readonly<Record<number, SubscriptionState>> = {
  [WireState.ACTIVE]: 'active',
  [WireState.PAUSED]: 'paused',
  [WireState.DISABLED]: 'disabled',
  [WireState.PENDING_VERIFICATION]: 'pending_verification',
};
const WIRE_STATES: Readonly<Record<SubscriptionState, WireState>> = {
  active: WireState.ACTIVE,
  paused: WireState.PAUSED,
  disabled: WireState.DISABLED,
  pending_verification: WireState.PENDING_VERIFICATION,
};

type SubscriptionInit = MessageInitShape<typeof SubscriptionSchema>;

/** A subscription as it is shown; `credentials` are opened by the caller. */
export function toWire(s: Subscription, credentials: EndpointCredentials, nowMs: number): WireSubscription {
  const policy = s.retryPolicy === undefined ? {} : { retryPolicy: policyToWire(s.retryPolicy) };
  return create(SubscriptionSchema, {
    subscriptionId: s.subscriptionId,
    tenantId: s.tenantId,
    url: s.url,
    eventTypes: [...s.eventTypes],
    description: s.description,
    headers: { ...s.headers },
    ...policy,
    attemptTimeout: durationFromMs(s.attemptTimeoutMs),
    metadata: { ...s.metadata },
    state: WIRE_STATES[s.state],
    disabledReason: s.disabledReason,
    etag: String(s.version),
    createTime: timestampFromMs(s.createdAtMs),
    updateTime: timestampFromMs(s.updatedAtMs),
    signatureSchemes: s.signatureSchemes.map((scheme) => WIRE_SCHEMES[scheme]),
    compatibilityHeaders: s.compatibilityHeaders,
    maxPerSecond: s.maxPerSecond ?? 0,
    maxInFlight: s.maxInFlight ?? 0,
    publicKeys: s.publicKeys.map(formatPublicKey),
    breaker: breakerToWire(s.breaker, nowMs),
    ordering: WIRE_ORDERINGS[s.ordering],
    onDeadLetter: s.onDeadLetter === 'stop' ? OnDeadLetter.STOP : OnDeadLetter.UNSPECIFIED,
    ...(s.batch === undefined ? {} : { batch: batchToWire(s.batch) }),
    ...(s.verifiedAtMs === undefined ? {} : { verifyTime: timestampFromMs(s.verifiedAtMs) }),
    ...(s.failingSinceMs === undefined ? {} : { failingSinceTime: timestampFromMs(s.failingSinceMs) }),
    ...credentialsToWire(credentials),
  });
}

const batchToWire = ({ maxEvents, maxBytes, maxWaitMs, format }: BatchPolicy) => ({
  maxEvents,
  maxBytes,
  maxWait: durationFromMs(maxWaitMs),
  format: format === 'cloudevents' ? BatchFormat.CLOUDEVENTS : BatchFormat.JSON_ARRAY,
});

type PolicyInit = NonNullable<MessageInitShape<typeof SubscriptionSchema>['retryPolicy']>;

function policyToWire(policy: RetryPolicy): PolicyInit {
  const { schedule } = policy;
  return {
    jitter: policy.jitter === 'none' ? Jitter.NONE : Jitter.FULL,
    ...(policy.maxAgeMs === undefined ? {} : { maxAge: durationFromMs(policy.maxAgeMs) }),
    schedule:
      schedule.kind === 'list'
        ? { case: 'list', value: { delays: schedule.delaysMs.map(durationFromMs) } }
        : {
            case: 'exponential',
            value: {
              base: durationFromMs(schedule.baseMs),
              factor: schedule.factor,
              cap: durationFromMs(schedule.capMs),
              maxAttempts: schedule.maxAttempts,
            },
          },
  };
}
