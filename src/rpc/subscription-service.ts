// SubscriptionService: validation, and the contract's messages to and from the domain's.
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { type Duration, durationFromMs, durationMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  Jitter,
  SubscriptionSchema,
  SubscriptionService,
  type RetryPolicy as WireRetryPolicy,
  SubscriptionState as WireState,
  type Subscription as WireSubscription,
} from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { DEFAULT_RETRY_POLICY, type RetryPolicy } from '../domain/backoff.ts';
import { invalidField, Violations } from '../domain/errors.ts';
import { checkMetadata } from '../domain/event.ts';
import {
  encodeId,
  type IdSource,
  parseSubscriptionId,
  type SubscriptionId,
  type TenantId,
  uuidOf,
} from '../domain/ids.ts';
import { isUuid, pageToken, parsePage } from '../domain/page.ts';
import { type MasterKeys, seal } from '../domain/sealing.ts';
import { formatSecret, parseSecret } from '../domain/signature.ts';
import {
  checkAttemptTimeout,
  checkDescription,
  checkEventTypes,
  checkHeaders,
  checkRetryPolicy,
  DEFAULT_ATTEMPT_TIMEOUT_MS,
  DEFAULT_OVERLAP_MS,
  MAX_OVERLAP_MS,
  type Subscription,
  type SubscriptionSettings,
  type SubscriptionState,
  urlProblem,
} from '../domain/subscription.ts';
import type { AddressGuard } from '../egress/guard.ts';
import type { Database } from '../storage/database.ts';
import {
  createSubscription,
  deleteSubscription,
  getSubscription,
  listSubscriptions,
  type NewSecret,
  rotateSecret,
  setSubscriptionState,
  updateSubscription,
} from '../storage/subscriptions.ts';
import { bindService, tenantOf } from './call-path.ts';

export type SubscriptionServiceDeps = {
  readonly db: Database;
  readonly guard: AddressGuard;
  readonly masterKeys: MasterKeys;
  readonly ids: IdSource;
  readonly randomBytes: (size: number) => Buffer;
  /** Tells every instance that a tenant's subscriptions changed. */
  readonly changed: (tenantId: TenantId) => void;
  /** Says that a queue that was held back may go on. */
  readonly ready: (tenantId: TenantId, subscriptionId: SubscriptionId) => void;
};

export function createSubscriptionService(deps: SubscriptionServiceDeps) {
  const { db, guard, changed } = deps;

  function newSecret(tenantId: TenantId, subscriptionId: SubscriptionId, given: string): [string, NewSecret] {
    const parsed = given === '' ? { key: deps.randomBytes(32) } : parseSecret(given);
    if ('problem' in parsed) throw invalidField('secret', parsed.problem);
    const context = { tenantId, resourceId: subscriptionId, column: 'secret' };
    const sealed = seal(deps.masterKeys, context, parsed.key, deps.randomBytes(12));
    return [formatSecret(parsed.key), { uuid: uuidOf(encodeId('sec', deps.ids.bytes())), sealed }];
  }

  return bindService(SubscriptionService, {
    async createSubscription(request, context) {
      const tenantId = tenantOf(context);
      const input = request.subscription;
      if (input === undefined) throw invalidField('subscription', 'is required');
      const wrong = new Violations();
      for (const [field, given] of SERVER_SET) {
        wrong.check(!given(input), `subscription.${field}`, 'is set by the server; leave it out');
      }
      if (input.tenantId !== '') {
        wrong.check(
          input.tenantId === tenantId,
          'subscription.tenant_id',
          'must be empty or the tenant of the request',
        );
      }
      const settings = toSettings(input);
      checkJitter(input, wrong);
      checkSettings(settings, ALL_FIELDS, guard, wrong);
      wrong.throwIfAny();
      const subscriptionId = deps.ids.next<SubscriptionId>('sub');
      const [secret, stored] = newSecret(tenantId, subscriptionId, request.secret);
      const created = await createSubscription(db, tenantId, subscriptionId, settings, stored);
      changed(tenantId);
      return { subscription: toWire(created), secret };
    },

    async getSubscription(request, context) {
      const id = parseSubscriptionId(request.subscriptionId);
      return { subscription: toWire(await getSubscription(db, tenantOf(context), id)) };
    },

    async listSubscriptions(request, context) {
      const tenantId = tenantOf(context);
      const state = request.state === WireState.UNSPECIFIED ? undefined : STATE_NAMES[request.state];
      if (state === undefined && request.state !== WireState.UNSPECIFIED) {
        throw invalidField('state', 'must be ACTIVE, PAUSED or DISABLED, or left out');
      }
      const scope = `subscriptions/${tenantId}/${state ?? ''}`;
      const page = parsePage(request, scope, 500, isUuid);
      const rows = await listSubscriptions(db, tenantId, page, state);
      const shown = rows.slice(0, page.size);
      const last = shown[shown.length - 1];
      const more = rows.length > page.size && last !== undefined;
      return {
        subscriptions: shown.map(toWire),
        nextPageToken: more ? pageToken(scope, uuidOf(last.subscriptionId)) : '',
      };
    },

    async updateSubscription(request, context) {
      const tenantId = tenantOf(context);
      const input = request.subscription;
      if (input === undefined) throw invalidField('subscription', 'is required');
      const id = parseSubscriptionId(input.subscriptionId, 'subscription.subscription_id');
      const version = parseEtag(input.etag, 'subscription.etag');
      const fields = parseMask(request.updateMask?.paths ?? []);
      const given = toSettings(input);
      const wrong = new Violations();
      if (fields.has('retryPolicy')) checkJitter(input, wrong);
      checkSettings(given, fields, guard, wrong);
      wrong.throwIfAny();
      const updated = await updateSubscription(db, tenantId, id, version, (before) =>
        merge(before, given, fields),
      );
      changed(tenantId);
      return { subscription: toWire(updated) };
    },

    async deleteSubscription(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      await deleteSubscription(db, tenantId, id, parseEtag(request.etag, 'etag'));
      changed(tenantId);
      return {};
    },

    async pauseSubscription(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      const paused = await setSubscriptionState(db, tenantId, id, 'paused', '');
      changed(tenantId);
      return { subscription: toWire(paused) };
    },

    async resumeSubscription(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      const resumed = await setSubscriptionState(db, tenantId, id, 'active', '');
      changed(tenantId);
      deps.ready(tenantId, id);
      return { subscription: toWire(resumed) };
    },

    async rotateSecret(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      const overlapMs = request.overlap === undefined ? DEFAULT_OVERLAP_MS : msOf(request.overlap);
      if (!(overlapMs >= 0 && overlapMs <= MAX_OVERLAP_MS)) {
        throw invalidField('overlap', 'must be a duration between 0s and 604800s (7 days)');
      }
      const [secret, stored] = newSecret(tenantId, id, request.secret);
      const { previousExpireAtMs } = await rotateSecret(db, tenantId, id, overlapMs, stored);
      changed(tenantId);
      return { secret, previousExpireTime: timestampFromMs(previousExpireAtMs) };
    },
  });
}

const SERVER_SET: readonly (readonly [string, (s: WireSubscription) => boolean])[] = [
  ['subscription_id', (s) => s.subscriptionId !== ''],
  ['state', (s) => s.state !== WireState.UNSPECIFIED],
  ['disabled_reason', (s) => s.disabledReason !== ''],
  ['etag', (s) => s.etag !== ''],
  ['create_time', (s) => s.createTime !== undefined],
  ['update_time', (s) => s.updateTime !== undefined],
];

type SettingsField = keyof SubscriptionSettings;
const FIELD_OF_PATH: Readonly<Record<string, SettingsField>> = {
  url: 'url',
  event_types: 'eventTypes',
  description: 'description',
  headers: 'headers',
  retry_policy: 'retryPolicy',
  attempt_timeout: 'attemptTimeoutMs',
  metadata: 'metadata',
};
const ALL_FIELDS: ReadonlySet<SettingsField> = new Set(Object.values(FIELD_OF_PATH));

function parseMask(paths: readonly string[]): ReadonlySet<SettingsField> {
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

function parseEtag(etag: string, field: string): number | undefined {
  if (etag === '') return undefined;
  if (!/^[1-9]\d{0,14}$/.test(etag))
    throw invalidField(field, 'is not an etag of a subscription; pass one that was read');
  return Number(etag);
}

function toSettings(input: WireSubscription): SubscriptionSettings {
  const { attemptTimeout } = input;
  return {
    url: input.url,
    eventTypes: input.eventTypes,
    description: input.description,
    headers: input.headers,
    retryPolicy: input.retryPolicy === undefined ? undefined : toPolicy(input.retryPolicy),
    attemptTimeoutMs: attemptTimeout === undefined ? DEFAULT_ATTEMPT_TIMEOUT_MS : msOf(attemptTimeout),
    metadata: input.metadata,
  };
}

function checkSettings(
  settings: SubscriptionSettings,
  fields: ReadonlySet<SettingsField>,
  guard: AddressGuard,
  wrong: Violations,
): void {
  const at = 'subscription';
  if (fields.has('url')) {
    const problem = urlProblem(settings.url) ?? guard.urlProblem(new URL(settings.url));
    if (problem !== undefined) wrong.add(`${at}.url`, problem);
  }
  if (fields.has('eventTypes')) checkEventTypes(settings.eventTypes, `${at}.event_types`, wrong);
  if (fields.has('description')) checkDescription(settings.description, 512, `${at}.description`, wrong);
  if (fields.has('headers')) checkHeaders(settings.headers, `${at}.headers`, wrong);
  if (fields.has('retryPolicy') && settings.retryPolicy !== undefined) {
    checkRetryPolicy(settings.retryPolicy, `${at}.retry_policy`, wrong);
  }
  if (fields.has('attemptTimeoutMs'))
    checkAttemptTimeout(settings.attemptTimeoutMs, `${at}.attempt_timeout`, wrong);
  if (fields.has('metadata')) checkMetadata(settings.metadata, `${at}.metadata`, wrong);
}

function merge(
  before: SubscriptionSettings,
  given: SubscriptionSettings,
  fields: ReadonlySet<SettingsField>,
): SubscriptionSettings {
  const pick = <F extends SettingsField>(field: F): SubscriptionSettings[F] =>
    fields.has(field) ? given[field] : before[field];
  return {
    url: pick('url'),
    eventTypes: pick('eventTypes'),
    description: pick('description'),
    headers: pick('headers'),
    retryPolicy: pick('retryPolicy'),
    attemptTimeoutMs: pick('attemptTimeoutMs'),
    metadata: pick('metadata'),
  };
}

function checkJitter(input: WireSubscription, wrong: Violations): void {
  const known = [Jitter.UNSPECIFIED, Jitter.FULL, Jitter.NONE] as const;
  const ok = known.some((jitter) => jitter === (input.retryPolicy?.jitter ?? Jitter.UNSPECIFIED));
  wrong.check(ok, 'subscription.retry_policy.jitter', 'must be JITTER_FULL or JITTER_NONE, or left out');
}

/** Whole milliseconds; missing durations become NaN, which no check lets pass. */
const msOf = (duration: Duration | undefined) =>
  duration === undefined ? Number.NaN : Math.round(durationMs(duration));

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

const STATE_NAMES: Readonly<Record<number, SubscriptionState>> = {
  [WireState.ACTIVE]: 'active',
  [WireState.PAUSED]: 'paused',
  [WireState.DISABLED]: 'disabled',
};
const WIRE_STATES: Readonly<Record<SubscriptionState, WireState>> = {
  active: WireState.ACTIVE,
  paused: WireState.PAUSED,
  disabled: WireState.DISABLED,
};

function toWire(s: Subscription): WireSubscription {
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
  });
}

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
