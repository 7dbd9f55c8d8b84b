// A test event or a challenge, sent now by whoever was asked: signed, guarded and judged like any attempt; nothing is
// stored, retried or counted, and no breaker hears of it.
import { timingSafeEqual } from 'node:crypto';
import { batchItem } from '../domain/batch.ts';
import { NO_CREDENTIALS } from '../domain/credentials.ts';
import { NO_TIMING, type SendOutcome } from '../domain/delivery.ts';
import { DispatchError, mustBeVerified, notFound } from '../domain/errors.ts';
import {
  type DeliveryId,
  deliveryIdOf,
  type EventId,
  encodeId,
  type IdSource,
  type SubscriptionId,
  type TenantId,
} from '../domain/ids.ts';
import { hmac } from '../domain/signature.ts';
import type { SignedRequest } from '../egress/sender.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { Target } from '../storage/targets.ts';
import { sign, signable, signableBatch } from './sign.ts';

export type TestDeliveryDeps = {
  readonly reload: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  readonly send: (request: SignedRequest, done: (result: SendOutcome) => void) => void;
  readonly authorization: (target: Target) => string | undefined | Promise<string | undefined>;
  readonly mayBeSent: (target: Target) => boolean;
  readonly ids: IdSource;
  readonly randomBytes: (size: number) => Buffer;
  readonly userAgent: string;
  /** Ms since 1970. */
  readonly now: () => number;
  /** Monotonic, in ms. */
  readonly monotonic: () => number;
};

/** What came back. */
export type TestResult = {
  readonly succeeded: boolean;
  /** 0: no response. */
  readonly status: number;
  readonly errorClass: string;
  readonly errorMessage: string;
  readonly durationMs: number;
  readonly responseBody: Buffer;
};

/** Whether an endpoint proved that it wants deliveries. */
export type Verification = {
  readonly verified: boolean;
  /** The URL that was asked. */
  readonly url: string;
  readonly status: number;
  /** Of an attempt, or `challenge`: the answer was neither the challenge nor its signature. */
  readonly errorClass: string;
  readonly errorMessage: string;
};

const CHALLENGE = 'dispatch.verification';
/** Tests of one process at once; each may last as long as an attempt. */
const MAX_RUNNING = 50;
const MAX_RUNNING_OF_TENANT = 5;

export function createTestDelivery(deps: TestDeliveryDeps) {
  let running = 0;
  const ofTenants = new Map<TenantId, number>();

  async function attempt(
    tenantId: TenantId,
    target: Target,
    { type, payload }: { readonly type: string; readonly payload: Buffer },
  ): Promise<SendOutcome> {
    if (!deps.mayBeSent(target)) {
      const message = 'the tenant’s quota allows https endpoints only';
      return { kind: 'failure', errorClass: 'blocked_address', message, timing: NO_TIMING };
    }
    let authorization: string | undefined;
    try {
      if (target.credentials !== NO_CREDENTIALS) authorization = await deps.authorization(target);
    } catch (error) {
      const message = error instanceof Error ? error.message : 'no token could be fetched';
      return { kind: 'failure', errorClass: 'credentials', message, timing: NO_TIMING };
    }
    const bytes = deps.ids.eventBytes();
    const eventId = encodeId('evt', bytes) as EventId;
    const deliveryId = encodeId('dlv', deliveryIdOf(bytes, 1)) as DeliveryId;
    const event = { eventId, type, contentType: 'application/json', payload, source: '', subject: '' };
    const at = {
      nowMs: deps.now(),
      monotonicMs: deps.monotonic(),
      timeoutMs: target.attemptTimeoutMs,
    };
    // In the form that the endpoint gets its events in; a challenge is always alone.
    const { batch } = target;
    const body =
      batch === undefined || type === CHALLENGE
        ? signable(event, deliveryId, 1)
        : signableBatch([eventId], [batchItem(tenantId, event, batch.format)], batch.format, 1);
    const request = sign(body, target, at, deps.userAgent, authorization);
    return new Promise((done) => deps.send(request, done));
  }

  /** Sends to a subscription as it is now, if not too many tests are running. */
  async function send(
    tenantId: TenantId,
    subscriptionId: SubscriptionId,
    event: { readonly type: string; readonly payload: Buffer },
  ): Promise<{ readonly target: Target; readonly result: TestResult }> {
    const mine = ofTenants.get(tenantId) ?? 0;
    if (running >= MAX_RUNNING || mine >= MAX_RUNNING_OF_TENANT) {
      const message = 'too many tests are running; try again later';
      throw new DispatchError('RESOURCE_EXHAUSTED', message, {
        reason: 'TOO_MANY_TESTS',
        retryAfterMs: 1_000,
      });
    }
    running++;
    ofTenants.set(tenantId, mine + 1);
    try {
      const config = await deps.reload(tenantId);
      if (config?.state === 'suspended') {
        const reason = { reason: 'TENANT_SUSPENDED' };
        throw new DispatchError('FAILED_PRECONDITION', `tenant ${tenantId} is suspended`, reason);
      }
      const target = config?.targets.get(subscriptionId);
      if (target === undefined) throw notFound('subscription', subscriptionId);
      if (target.state === 'pending_verification' && event.type !== CHALLENGE)
        throw mustBeVerified(subscriptionId);
      const startedAt = deps.monotonic();
      const result = await attempt(tenantId, target, event);
      return { target, result: resultOf(result, deps.monotonic() - startedAt) };
    } finally {
      running--;
      const left = (ofTenants.get(tenantId) ?? 1) - 1;
      if (left > 0) ofTenants.set(tenantId, left);
      else ofTenants.delete(tenantId);
    }
  }

  return {
    /** Sends one event and tells what came back. */
    async test(
      tenantId: TenantId,
      subscriptionId: SubscriptionId,
      event: { readonly type: string; readonly payload: Buffer },
    ): Promise<TestResult> {
      return (await send(tenantId, subscriptionId, event)).result;
    },

    /** Sends a challenge, which the endpoint must echo, or sign with its secret. */
    async verify(tenantId: TenantId, subscriptionId: SubscriptionId): Promise<Verification> {
      const challenge = deps.randomBytes(32).toString('base64url');
      const type = CHALLENGE;
      const payload = Buffer.from(JSON.stringify({ type, challenge }));
      const { target, result } = await send(tenantId, subscriptionId, { type, payload });
      const { url } = target;
      const { status, errorClass, errorMessage, succeeded, responseBody } = result;
      if (!succeeded) return { verified: false, url, status, errorClass, errorMessage };
      if (answersChallenge(responseBody, challenge, target)) {
        return { verified: true, url, status, errorClass: '', errorMessage: '' };
      }
      const message = `the answer was neither the challenge nor {"challenge": …} nor {"signature": "v1,…"} over it`;
      return { verified: false, url, status, errorClass: 'challenge', errorMessage: message };
    },
  };
}

/**
 * Whether a response answers a challenge: by the challenge itself, as text or as `challenge` in JSON, or by its HMAC-SHA256
 * with one of the subscription's secrets, as `signature` in JSON (`v1,` and base64).
 */
export function answersChallenge(body: Buffer, challenge: string, target: Pick<Target, 'secrets'>): boolean {
  const text = body.toString('utf8').trim();
  if (text === challenge) return true;
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch {
    return false; // neither the challenge nor JSON
  }
  if (typeof answer !== 'object' || answer === null) return false;
  if ('challenge' in answer && answer.challenge === challenge) return true;
  if (!('signature' in answer) || typeof answer.signature !== 'string') return false;
  const given = Buffer.from(answer.signature);
  return target.secrets.some(({ key }) => {
    if (key.scheme !== 'v1') return false;
    const right = Buffer.from(`v1,${hmac(key, '', Buffer.from(challenge), 'base64')}`);
    return right.length === given.length && timingSafeEqual(right, given);
  });
}

const STALLED = { errorClass: 'internal', message: 'dispatch stood still meanwhile; try again' } as const;

function resultOf(result: SendOutcome, durationMs: number): TestResult {
  if (result.kind !== 'response') {
    const { errorClass, message } = result.kind === 'stalled' ? STALLED : result;
    const none = { succeeded: false, status: 0, responseBody: Buffer.alloc(0) };
    return { ...none, errorClass, errorMessage: message, durationMs };
  }
  const { status, body } = result;
  const succeeded = status >= 200 && status < 300;
  const redirect = status >= 300 && status < 400;
  return {
    succeeded,
    status,
    errorClass: succeeded ? '' : redirect ? 'redirect' : 'http_status',
    errorMessage: succeeded ? '' : `the endpoint answered ${status}`,
    durationMs,
    responseBody: body,
  };
}
