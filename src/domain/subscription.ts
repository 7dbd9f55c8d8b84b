// A subscription: what a tenant may ask for, checked.
import type { RetryPolicy } from './backoff.ts';
import type { BreakerReason } from './breaker.ts';
import type { Violations } from './errors.ts';
import { patternProblem } from './event-type.ts';
import type { SubscriptionId, TenantId } from './ids.ts';
import type { Sealed } from './sealing.ts';
import type { SignatureScheme } from './signature.ts';

export const DEFAULT_ATTEMPT_TIMEOUT_MS = 15_000;
export const MAX_LIVE_SECRETS = 5;
export const MAX_OVERLAP_MS = 7 * 24 * 3600 * 1000;
export const DEFAULT_OVERLAP_MS = 24 * 3600 * 1000;
const DAY_MS = 24 * 3600 * 1000;

export type SubscriptionState = 'active' | 'paused' | 'disabled' | 'pending_verification';

/** What deliveries wait for each other: none, all of a subscription, or those with the same ordering key. */
export type Ordering = 'none' | 'subscription' | 'key';

/** What becomes of an ordered line when one of its deliveries is given up. */
export type OnDeadLetter = 'skip' | 'stop';

/** Several deliveries in one request. */
export type BatchPolicy = {
  /** 1–1,000. */
  readonly maxEvents: number;
  /** Of the body; one event that is larger goes alone. */
  readonly maxBytes: number;
  /** How long the first may wait for others. */
  readonly maxWaitMs: number;
  readonly format: 'json_array' | 'cloudevents';
};

export const MAX_BATCH_EVENTS = 1_000;
export const MAX_BATCH_BYTES = 4 * 1024 * 1024;
export const DEFAULT_BATCH: BatchPolicy = {
  maxEvents: 100,
  maxBytes: 1024 * 1024,
  maxWaitMs: 1_000,
  format: 'json_array',
};

/** The part of a subscription that its owner decides. Times in ms. */
export type SubscriptionSettings = {
  readonly url: string;
  readonly eventTypes: readonly string[];
  readonly description: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Undefined means DEFAULT_RETRY_POLICY. */
  readonly retryPolicy: RetryPolicy | undefined;
  readonly attemptTimeoutMs: number;
  readonly metadata: Readonly<Record<string, string>>;
  readonly signatureSchemes: readonly SignatureScheme[];
  /** Whether the predecessor's X-Dispatch-* headers are sent too. */
  readonly compatibilityHeaders: boolean;
  /** Attempts a second over all workers; undefined: no limit. */
  readonly maxPerSecond: number | undefined;
  /** Attempts under way over all workers; undefined: no limit. */
  readonly maxInFlight: number | undefined;
  readonly ordering: Ordering;
  readonly onDeadLetter: OnDeadLetter;
  /** Undefined: a request for each delivery. */
  readonly batch: BatchPolicy | undefined;
};

/** The last transition of a subscription's breaker. Times in ms since 1970. */
export type BreakerRecord = {
  readonly phase: 'open' | 'closed';
  readonly reason: BreakerReason;
  readonly openCount: number;
  readonly changedAtMs: number;
  /** Of an open one: when a probe may go out. */
  readonly untilMs: number | undefined;
};

/** A stored subscription. */
export type Subscription = SubscriptionSettings & {
  readonly subscriptionId: SubscriptionId;
  readonly tenantId: TenantId;
  readonly state: SubscriptionState;
  readonly disabledReason: string;
  /** Grows with every change; the etag. */
  readonly version: number;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
  /** A JSON document of EndpointCredentials. */
  readonly credentials: Sealed | undefined;
  /** Of the live v1a secrets, newest first; 32 bytes each. */
  readonly publicKeys: readonly Buffer[];
  /** Undefined if it never opened. */
  readonly breaker: BreakerRecord | undefined;
  /** When its endpoint last proved that it wants deliveries. */
  readonly verifiedAtMs: number | undefined;
  /** Since when no attempt succeeded, if any failed since. */
  readonly failingSinceMs: number | undefined;
};

/** What is wrong with an endpoint URL in form, or undefined. Where it leads is the egress guard's to judge. */
export function urlProblem(text: string): string | undefined {
  const expected = 'must be an absolute http or https URL such as "https://example.com/webhooks"';
  if (text === '') return `is required: ${expected}`;
  if (text.length > 2048) return `is ${text.length} characters long; at most 2048`;
  if (/[\s\0]/.test(text)) return `contains white space or a control character; ${expected}`;
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    return expected;
  }
  // "https:example.com" is read as if it had its slashes, by some.
  if (!/^https?:\/\//i.test(text)) return expected;
  if (url.port === '0') return 'has port 0, which nothing can be reached at';
  if (url.username !== '' || url.password !== '') return 'must not contain a user name or password';
  if (url.hash !== '') return 'must not have a fragment (#…): it is never sent';
  return undefined;
}

/** Checks patterns: 1–50, each valid. */
export function checkEventTypes(patterns: readonly string[], field: string, wrong: Violations): void {
  wrong.check(patterns.length >= 1, field, 'is required: 1–50 patterns such as "order.created" or "order.*"');
  wrong.check(patterns.length <= 50, field, `has ${patterns.length} patterns; at most 50`);
  for (const [i, pattern] of patterns.entries()) {
    const problem = patternProblem(pattern);
    if (problem !== undefined) wrong.add(`${field}[${i}]`, problem);
  }
}

const HEADER_NAME = /^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/;
const HEADER_VALUE = /^[\x20-\x7e]*$/;
const REFUSED_NAMES = new Set(
  'host connection keep-alive transfer-encoding te trailer upgrade expect cookie cookie2 forwarded via date user-agent accept-encoding http2-settings'.split(
    ' ',
  ),
);
const REFUSED_PREFIXES = [
  'content-',
  'proxy-',
  'x-forwarded-',
  'webhook-',
  'dispatch-',
  'x-dispatch-',
  'x-amz-',
  'x-goog-',
  'x-ms-',
  'metadata',
];

/** Checks custom headers: at most 20, at most 4 KiB, token names that nobody else sets, printable ASCII values. */
export function checkHeaders(
  headers: Readonly<Record<string, string>>,
  field: string,
  wrong: Violations,
): void {
  const entries = Object.entries(headers);
  wrong.check(entries.length <= 20, field, `has ${entries.length} headers; at most 20`);
  let size = 0;
  const seen = new Set<string>();
  for (const [name, value] of entries) {
    size += name.length + value.length;
    const path = `${field}[${name.slice(0, 64)}]`;
    const lower = name.toLowerCase();
    if (!HEADER_NAME.test(name)) {
      wrong.add(path, 'the name must be letters, digits and hyphens, as in "X-Api-Key"');
    } else if (REFUSED_NAMES.has(lower) || REFUSED_PREFIXES.some((p) => lower.startsWith(p))) {
      wrong.add(path, 'is set by HTTP or by dispatch and cannot be changed');
    }
    wrong.check(HEADER_VALUE.test(value), path, 'the value must be printable ASCII on one line');
    wrong.check(!seen.has(lower), path, 'is given twice, in different spellings');
    seen.add(lower);
  }
  wrong.check(size <= 4096, field, `is ${size} bytes together; at most 4096`);
}

/** Checks a retry policy against the limits in the contract. NaN marks a duration that cannot be. */
export function checkRetryPolicy(policy: RetryPolicy, field: string, wrong: Violations): void {
  const { schedule } = policy;
  const validDelay = (ms: number) => ms >= 1 && ms <= DAY_MS;
  if (schedule.kind === 'list') {
    const path = `${field}.list.delays`;
    const count = schedule.delaysMs.length;
    wrong.check(count >= 1 && count <= 50, path, `has ${count} delays; 1–50, for example ["5s", "60s"]`);
    for (const [i, ms] of schedule.delaysMs.entries()) {
      wrong.check(validDelay(ms), `${path}[${i}]`, 'must be a duration between 0.001s and 86400s');
    }
  } else {
    const path = `${field}.exponential`;
    wrong.check(validDelay(schedule.baseMs), `${path}.base`, 'must be a duration between 0.001s and 86400s');
    wrong.check(schedule.factor >= 1 && schedule.factor <= 10, `${path}.factor`, 'must be between 1 and 10');
    wrong.check(
      validDelay(schedule.capMs) && schedule.capMs >= schedule.baseMs,
      `${path}.cap`,
      'must be a duration between base and 86400s',
    );
    const max = schedule.maxAttempts;
    wrong.check(
      Number.isInteger(max) && max >= 1 && max <= 100,
      `${path}.max_attempts`,
      'must be between 1 and 100',
    );
  }
  if (policy.maxAgeMs !== undefined) {
    const ok = policy.maxAgeMs >= 1_000 && policy.maxAgeMs <= 30 * DAY_MS;
    wrong.check(ok, `${field}.max_age`, 'must be a duration between 1s and 2592000s (30 days)');
  }
}

/** Checks the limits of a subscription's own. */
export function checkLimits(
  settings: Pick<SubscriptionSettings, 'maxPerSecond' | 'maxInFlight'>,
  field: string,
  wrong: Violations,
): void {
  const { maxPerSecond: rate, maxInFlight: cap } = settings;
  const rateOk = rate === undefined || (rate >= 0.001 && rate <= 1_000_000);
  wrong.check(rateOk, `${field}.max_per_second`, 'must be between 0.001 and 1,000,000, or 0 for no limit');
  const capOk = cap === undefined || (cap >= 1 && cap <= 10_000);
  wrong.check(capOk, `${field}.max_in_flight`, 'must be between 1 and 10,000, or 0 for no limit');
}

/** Checks a batch policy against the limits in the contract. NaN marks a duration that cannot be. */
export function checkBatch(batch: BatchPolicy, field: string, wrong: Violations): void {
  const { maxEvents, maxBytes, maxWaitMs } = batch;
  const eventsOk = maxEvents >= 1 && maxEvents <= MAX_BATCH_EVENTS;
  wrong.check(eventsOk, `${field}.max_events`, `must be between 1 and ${MAX_BATCH_EVENTS}, or 0 for 100`);
  const bytesOk = maxBytes >= 1024 && maxBytes <= MAX_BATCH_BYTES;
  wrong.check(bytesOk, `${field}.max_bytes`, `must be between 1024 and ${MAX_BATCH_BYTES}, or 0 for 1 MiB`);
  const waitOk = maxWaitMs >= 0 && maxWaitMs <= 10_000;
  wrong.check(waitOk, `${field}.max_wait`, 'must be a duration between 0s and 10s');
}

/** Checks the longest duration of an attempt: 1–30 s, well within a lease. */
export function checkAttemptTimeout(ms: number, field: string, wrong: Violations): void {
  wrong.check(ms >= 1_000 && ms <= 30_000, field, 'must be a duration between 1s and 30s');
}

/** Checks a note for people. */
export function checkDescription(text: string, maxLength: number, field: string, wrong: Violations): void {
  wrong.check(text.length <= maxLength, field, `is ${text.length} characters long; at most ${maxLength}`);
  wrong.check(!text.includes('\0'), field, 'contains a NUL character, which cannot be stored');
}
