// A test event, sent now by whoever was asked: signed, guarded and judged like any attempt; nothing is stored, retried
// or counted, and no breaker hears of it.
import { NO_CREDENTIALS } from '../domain/credentials.ts';
import type { SendResult } from '../domain/delivery.ts';
import { DispatchError, notFound } from '../domain/errors.ts';
import {
  type DeliveryId,
  deliveryIdOf,
  type EventId,
  encodeId,
  type IdSource,
  type SubscriptionId,
  type TenantId,
} from '../domain/ids.ts';
import type { SignedRequest } from '../egress/sender.ts';
import type { Target, TenantConfig } from '../storage/tenant-configs.ts';
import { sign } from './sign.ts';

export type TestDeliveryDeps = {
  readonly reload: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  readonly send: (request: SignedRequest, done: (result: SendResult) => void) => void;
  readonly authorization: (target: Target) => string | undefined | Promise<string | undefined>;
  readonly mayBeSent: (target: Target) => boolean;
  readonly ids: IdSource;
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

/** Tests of one process at once; each may last as long as an attempt. */
const MAX_RUNNING = 50;
const MAX_RUNNING_OF_TENANT = 5;

export function createTestDelivery(deps: TestDeliveryDeps) {
  let running = 0;
  const ofTenants = new Map<TenantId, number>();

  async function attempt(target: Target, type: string, payload: Buffer): Promise<SendResult> {
    if (!deps.mayBeSent(target)) {
      const message = 'the tenant’s quota allows https endpoints only';
      return { kind: 'failure', errorClass: 'blocked_address', message };
    }
    let authorization: string | undefined;
    try {
      if (target.credentials !== NO_CREDENTIALS) authorization = await deps.authorization(target);
    } catch (error) {
      const message = error instanceof Error ? error.message : 'no token could be fetched';
      return { kind: 'failure', errorClass: 'credentials', message };
    }
    const bytes = deps.ids.eventBytes();
    const eventId = encodeId('evt', bytes) as EventId;
    const deliveryId = encodeId('dlv', deliveryIdOf(bytes, 1)) as DeliveryId;
    const event = { eventId, type, contentType: 'application/json', payload };
    const at = {
      nowMs: deps.now(),
      monotonicMs: deps.monotonic(),
      timeoutMs: target.attemptTimeoutMs,
    };
    const request = sign({ event, deliveryId, attempt: 1 }, target, at, deps.userAgent, authorization);
    return new Promise((done) => deps.send(request, done));
  }

  return async (
    tenantId: TenantId,
    subscriptionId: SubscriptionId,
    event: { readonly type: string; readonly payload: Buffer },
  ): Promise<TestResult> => {
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
      const startedAt = deps.monotonic();
      const result = await attempt(target, event.type, event.payload);
      return resultOf(result, deps.monotonic() - startedAt);
    } finally {
      running--;
      const left = (ofTenants.get(tenantId) ?? 1) - 1;
      if (left > 0) ofTenants.set(tenantId, left);
      else ofTenants.delete(tenantId);
    }
  };
}

function resultOf(result: SendResult, durationMs: number): TestResult {
  if (result.kind === 'failure') {
    const { errorClass, message } = result;
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
