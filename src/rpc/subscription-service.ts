// SubscriptionService: subscriptions, their secrets and credentials.
import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  SubscriptionService,
  SignatureScheme as WireScheme,
  SubscriptionState as WireState,
  type Subscription as WireSubscription,
} from '../../gen/dispatch/v1/subscription_service_pb.ts';
import type { TestResult, Verification } from '../delivery/test-delivery.ts';
import { type EndpointCredentials, NO_CREDENTIALS } from '../domain/credentials.ts';
import { invalidField, Violations } from '../domain/errors.ts';
import { eventTypeProblem } from '../domain/event-type.ts';
import {
  encodeId,
  type IdSource,
  parseSubscriptionId,
  type SubscriptionId,
  type TenantId,
  uuidOf,
} from '../domain/ids.ts';
import { isUuid, pageToken, parsePage } from '../domain/page.ts';
import type { TenantPolicy } from '../domain/policy.ts';
import type { Quota } from '../domain/quota.ts';
import { type MasterKeys, seal, unsealerOf } from '../domain/sealing.ts';
import {
  formatPublicKey,
  formatSecret,
  parseSecret,
  publicKeyOf,
  type SignatureScheme,
} from '../domain/signature.ts';
import { DEFAULT_OVERLAP_MS, MAX_OVERLAP_MS, type Subscription, urlProblem } from '../domain/subscription.ts';
import type { AddressGuard } from '../egress/guard.ts';
import type { Database } from '../storage/database.ts';
import {
  type CredentialsChange,
  createSubscription,
  deleteSubscription,
  getSubscription,
  listSubscriptions,
  type NewSecret,
  rotateSecret,
  type SubscriptionChange,
  setSubscriptionState,
  setVerified,
  updateSubscription,
} from '../storage/subscriptions.ts';
import { openCredentials } from '../storage/targets.ts';
import { getOwnQuota, getTenant } from '../storage/tenants.ts';
import { bindService, tenantOf } from './call-path.ts';
import {
  ALL_FIELDS,
  checkEnums,
  checkSettings,
  type JudgeUrl,
  merge,
  parseEtag,
  parseMask,
  SERVER_SET,
  type SettingsField,
  STATE_NAMES,
  schemeOf,
  toCredentials,
  toSettings,
  toWire,
} from './subscription-messages.ts';
import { msOf } from './times.ts';

export type SubscriptionServiceDeps = {
  readonly db: Database;
  readonly guard: AddressGuard;
  readonly masterKeys: MasterKeys;
  readonly defaultQuota: Quota;
  readonly ids: IdSource;
  readonly randomBytes: (size: number) => Buffer;
  /** Ms since 1970. */
  readonly now: () => number;
  /** Tells every instance that a tenant's subscriptions changed. */
  readonly changed: (tenantId: TenantId) => void;
  /** Says that a queue that was held back may go on. */
  readonly ready: (tenantId: TenantId, subscriptionId: SubscriptionId) => void;
  /** Sends a test event to a subscription's endpoint. */
  readonly test: (
    tenantId: TenantId,
    subscriptionId: SubscriptionId,
    event: { readonly type: string; readonly payload: Buffer },
  ) => Promise<TestResult>;
  /** Sends a challenge to a subscription's endpoint. */
  readonly verify: (tenantId: TenantId, subscriptionId: SubscriptionId) => Promise<Verification>;
  readonly defaultPolicy: TenantPolicy;
};

const MAX_TEST_BYTES = 64 * 1024;

/** A secret that was made, as it is stored and as it is shown. */
type MadeSecret = { readonly stored: NewSecret; readonly shown: string };

export function createSubscriptionService(deps: SubscriptionServiceDeps) {
  const { db, guard, changed } = deps;

  function makeSecret(
    tenantId: TenantId,
    subscriptionId: SubscriptionId,
    scheme: SignatureScheme,
    given: string,
  ): MadeSecret {
    if (given !== '' && scheme !== 'v1') {
      throw invalidField('secret', 'may be given for SIGNATURE_SCHEME_V1 only');
    }
    const parsed = given === '' ? { key: deps.randomBytes(32) } : parseSecret(given);
    if ('problem' in parsed) throw invalidField('secret', parsed.problem);
    const context = { tenantId, resourceId: subscriptionId, column: 'secret' };
    const sealed = seal(deps.masterKeys, context, parsed.key, deps.randomBytes(12));
    const publicKey = scheme === 'v1a' ? publicKeyOf(parsed.key) : undefined;
    const uuid = uuidOf(encodeId('sec', deps.ids.bytes()));
    const shown = publicKey === undefined ? formatSecret(parsed.key) : formatPublicKey(publicKey);
    return { stored: { uuid, scheme, sealed, publicKey }, shown };
  }

  function sealCredentials(
    tenantId: TenantId,
    subscriptionId: SubscriptionId,
    credentials: EndpointCredentials,
  ): CredentialsChange {
    if (credentials.auth === undefined && credentials.tls === undefined) return { sealed: undefined };
    const context = { tenantId, resourceId: subscriptionId, column: 'credentials' };
    const plain = Buffer.from(JSON.stringify(credentials), 'utf8');
    return { sealed: seal(deps.masterKeys, context, plain, deps.randomBytes(12)) };
  }

  const credentialsOf = (s: Subscription): EndpointCredentials =>
    s.credentials === undefined
      ? NO_CREDENTIALS
      : openCredentials(unsealerOf(deps.masterKeys), s.tenantId, s.subscriptionId, s.credentials);

  const shown = (s: Subscription): WireSubscription => toWire(s, credentialsOf(s), deps.now());

  const quotaOf = async (tenantId: TenantId): Promise<Quota> => ({
    ...deps.defaultQuota,
    ...(await getOwnQuota(db, tenantId)),
  });

  /** Whether a tenant's new endpoints have to prove themselves first. */
  async function mustVerify(tenantId: TenantId): Promise<boolean> {
    const { policy } = await getTenant(db, tenantId);
    return policy.requireVerification ?? deps.defaultPolicy.requireVerification;
  }

  const judgeFor =
    (quota: Quota): JudgeUrl =>
    (text) =>
      urlProblem(text) ?? guard.urlProblem(new URL(text), quota.allowHttpEndpoints);

  async function setState(
    tenantId: TenantId,
    id: SubscriptionId,
    state: 'active' | 'paused',
    audited: Database,
  ): Promise<Subscription> {
    const subscription = await setSubscriptionState(audited, tenantId, id, state);
    changed(tenantId);
    return subscription;
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
      checkTenant(input, tenantId, wrong);
      const quota = await quotaOf(tenantId);
      const judge = judgeFor(quota);
      const settings = toSettings(input);
      checkEnums(input, ALL_FIELDS, wrong);
      checkSettings(settings, ALL_FIELDS, judge, wrong);
      const credentials = toCredentials(input, ALL_FIELDS, judge, wrong);
      checkTlsUrl(settings.url, credentials, wrong);
      checkOneAuthorization(settings.headers, credentials, wrong);
      const hasV1 = settings.signatureSchemes.includes('v1');
      wrong.check(request.secret === '' || hasV1, 'secret', 'may be given for SIGNATURE_SCHEME_V1 only');
      wrong.throwIfAny();
      const id = deps.ids.next<SubscriptionId>('sub');
      const made = settings.signatureSchemes.map((scheme) =>
        makeSecret(tenantId, id, scheme, scheme === 'v1' ? request.secret : ''),
      );
      const created = await createSubscription(
        db.audited(context.change('subscription.create', id)),
        tenantId,
        id,
        settings,
        made.map((m) => m.stored),
        sealCredentials(tenantId, id, credentials),
        quota.maxSubscriptions,
        (await mustVerify(tenantId)) ? 'pending_verification' : 'active',
      );
      changed(tenantId);
      return { subscription: shown(created), secret: secretOf(made) };
    },

    async getSubscription(request, context) {
      const id = parseSubscriptionId(request.subscriptionId);
      return { subscription: shown(await getSubscription(db, tenantOf(context), id)) };
    },

    async listSubscriptions(request, context) {
      const tenantId = tenantOf(context);
      const state = request.state === WireState.UNSPECIFIED ? undefined : STATE_NAMES[request.state];
      if (state === undefined && request.state !== WireState.UNSPECIFIED) {
        throw invalidField('state', 'must be ACTIVE, PAUSED, DISABLED or PENDING_VERIFICATION, or left out');
      }
      const scope = `subscriptions/${tenantId}/${state ?? ''}`;
      const page = parsePage(request, scope, 500, isUuid);
      const rows = await listSubscriptions(db, tenantId, page, state);
      const onPage = rows.slice(0, page.size);
      const last = onPage[onPage.length - 1];
      const more = rows.length > page.size && last !== undefined;
      return {
        subscriptions: onPage.map(shown),
        nextPageToken: more ? pageToken(scope, uuidOf(last.subscriptionId)) : '',
      };
    },

    async updateSubscription(request, context) {
      const tenantId = tenantOf(context);
      const input = request.subscription;
      if (input === undefined) throw invalidField('subscription', 'is required');
      const id = parseSubscriptionId(input.subscriptionId, 'subscription.subscription_id');
      const fields = parseMask(request.updateMask?.paths ?? []);
      const version = parseEtag(input.etag, 'subscription.etag');
      const judge = judgeFor(await quotaOf(tenantId));
      const given = toSettings(input);
      const wrong = new Violations();
      checkTenant(input, tenantId, wrong);
      checkEnums(input, fields, wrong);
      const credentials = toCredentials(input, fields, judge, wrong);
      const verifiesNew = await mustVerify(tenantId);
      let made: MadeSecret[] = [];
      const change = (before: Subscription): SubscriptionChange => {
        const settings = merge(before, given, fields);
        const after = mergeCredentials(credentialsOf(before), credentials, fields);
        checkSettings(settings, fields, judge, wrong);
        checkTlsUrl(settings.url, after, wrong);
        checkOneAuthorization(settings.headers, after, wrong);
        wrong.throwIfAny();
        const added = settings.signatureSchemes.filter((scheme) => !before.signatureSchemes.includes(scheme));
        made = added.map((scheme) => makeSecret(tenantId, id, scheme, ''));
        const touched = fields.has('auth') || fields.has('tls');
        return {
          settings,
          credentials: touched ? sealCredentials(tenantId, id, after) : 'unchanged',
          secrets: made.map((m) => m.stored),
          mustVerify: verifiesNew && settings.url !== before.url,
        };
      };
      const detail = { fields: [...fields].join(',') };
      const audited = db.audited(context.change('subscription.update', id, detail));
      const updated = await updateSubscription(audited, tenantId, id, version, change);
      changed(tenantId);
      deps.ready(tenantId, id); // a limit may have gone
      return { subscription: shown(updated), secret: secretOf(made) };
    },

    async deleteSubscription(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      const audited = db.audited(context.change('subscription.delete', id));
      await deleteSubscription(audited, tenantId, id, parseEtag(request.etag, 'etag'));
      changed(tenantId);
      return {};
    },

    async pauseSubscription(request, context) {
      const id = parseSubscriptionId(request.subscriptionId);
      const audited = db.audited(context.change('subscription.pause', id));
      return { subscription: shown(await setState(tenantOf(context), id, 'paused', audited)) };
    },

    async resumeSubscription(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      const audited = db.audited(context.change('subscription.resume', id));
      const resumed = await setState(tenantId, id, 'active', audited);
      deps.ready(tenantId, id);
      return { subscription: shown(resumed) };
    },

    async rotateSecret(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      const overlapMs = request.overlap === undefined ? DEFAULT_OVERLAP_MS : msOf(request.overlap);
      if (!(overlapMs >= 0 && overlapMs <= MAX_OVERLAP_MS)) {
        throw invalidField('overlap', 'must be a duration between 0s and 604800s (7 days)');
      }
      const { signatureSchemes } = await getSubscription(db, tenantId, id);
      const asked = schemeOf(request.scheme);
      const scheme = asked ?? (signatureSchemes.includes('v1') ? 'v1' : 'v1a');
      const isKnown = request.scheme === WireScheme.UNSPECIFIED || asked !== undefined;
      if (!isKnown || !signatureSchemes.includes(scheme)) {
        throw invalidField('scheme', 'must be one of the subscription’s signature_schemes, or left out');
      }
      const { stored, shown: text } = makeSecret(tenantId, id, scheme, request.secret);
      const audited = db.audited(context.change('subscription.rotate_secret', id, { scheme, overlapMs }));
      const { previousExpireAtMs } = await rotateSecret(audited, tenantId, id, overlapMs, stored);
      changed(tenantId);
      const previousExpireTime = timestampFromMs(previousExpireAtMs);
      return scheme === 'v1' ? { secret: text, previousExpireTime } : { publicKey: text, previousExpireTime };
    },

    async testSubscription(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      const type = request.eventType === '' ? 'dispatch.test' : request.eventType;
      const wrong = new Violations();
      // The default lies in the name space that events of tenants may not have.
      const typeProblem = request.eventType === '' ? undefined : eventTypeProblem(type);
      if (typeProblem !== undefined) wrong.add('event_type', typeProblem);
      const { length } = request.payload;
      wrong.check(length <= MAX_TEST_BYTES, 'payload', `has ${length} bytes; at most ${MAX_TEST_BYTES}`);
      wrong.throwIfAny();
      const payload = length > 0 ? Buffer.from(request.payload) : Buffer.from('{"test":true}');
      await getSubscription(db.audited(context.change('subscription.test', id)), tenantId, id);
      const { durationMs, ...result } = await deps.test(tenantId, id, { type, payload });
      return { ...result, duration: durationFromMs(Math.round(durationMs)) };
    },

    async verifySubscription(request, context) {
      const tenantId = tenantOf(context);
      const id = parseSubscriptionId(request.subscriptionId);
      await getSubscription(db, tenantId, id);
      const { url, ...answer } = await deps.verify(tenantId, id);
      const detail = { verified: answer.verified };
      const audited = db.audited(context.change('subscription.verify', id, detail));
      if (!answer.verified)
        return { ...answer, subscription: shown(await getSubscription(audited, tenantId, id)) };
      const subscription = await setVerified(audited, tenantId, id, url);
      changed(tenantId);
      deps.ready(tenantId, id);
      return { ...answer, subscription: shown(subscription) };
    },
  });
}

function checkTenant(input: WireSubscription, tenantId: TenantId, wrong: Violations): void {
  const ok = input.tenantId === '' || input.tenantId === tenantId;
  wrong.check(ok, 'subscription.tenant_id', 'must be empty or the tenant of the request');
}

/** One authorization header, and not two that endpoints choose from. */
function checkOneAuthorization(
  headers: Readonly<Record<string, string>>,
  { auth }: EndpointCredentials,
  wrong: Violations,
): void {
  const given = Object.keys(headers).find((name) => name.toLowerCase() === 'authorization');
  const ok = auth === undefined || given === undefined;
  wrong.check(ok, `subscription.headers[${given}]`, 'cannot be set beside subscription.auth');
}

function checkTlsUrl(url: string, { tls }: EndpointCredentials, wrong: Violations): void {
  const ok = tls === undefined || !/^http:/i.test(url.trim());
  wrong.check(ok, 'subscription.tls', 'is for https endpoints only');
}

function mergeCredentials(
  before: EndpointCredentials,
  given: EndpointCredentials,
  fields: ReadonlySet<SettingsField>,
): EndpointCredentials {
  return {
    auth: fields.has('auth') ? given.auth : before.auth,
    tls: fields.has('tls') ? given.tls : before.tls,
  };
}

/** The secret to show: that of v1; an ed25519 secret never leaves. */
const secretOf = (made: readonly MadeSecret[]): string =>
  made.find((m) => m.stored.scheme === 'v1')?.shown ?? '';
