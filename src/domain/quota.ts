// A tenant's quota: what it may use. A field that a tenant does not have of its own follows the configured default.
import { DispatchError, type Violations } from './errors.ts';
import type { TenantId } from './ids.ts';

/** Every limit of a tenant. Rates a second; 0 means that there is no such limit, unless said otherwise. */
export type Quota = {
  readonly publishPerSecond: number;
  /** Events that may come at once; at least a second's worth when 0. */
  readonly publishBurst: number;
  /** By the UTC day and month of the database's clock. */
  readonly eventsPerDay: number;
  readonly eventsPerMonth: number;
  /** Bytes; never 0. */
  readonly maxPayloadBytes: number;
  /** Never 0. */
  readonly maxSubscriptions: number;
  /** Attempts under way at once, over all workers. */
  readonly maxInFlight: number;
  readonly deliveriesPerSecond: number;
  /** Deliveries that are not finished. */
  readonly maxBacklog: number;
  /** Days that events, attempts and dead letters are kept, if fewer than DISPATCH_HISTORY_DAYS. */
  readonly historyDays: number;
  /** Whether endpoints may be http:// (those that DISPATCH_ALLOW_ENDPOINT_CIDRS allows always may). */
  readonly allowHttpEndpoints: boolean;
  /** Its part of the workers beside other tenants that have something waiting. */
  readonly weight: number;
};

export type QuotaField = keyof Quota;

/** What a new installation gives a tenant. */
export const DEFAULT_QUOTA: Quota = {
  publishPerSecond: 10_000,
  publishBurst: 20_000,
  eventsPerDay: 0,
  eventsPerMonth: 0,
  maxPayloadBytes: 1024 * 1024,
  maxSubscriptions: 1_000,
  maxInFlight: 0,
  deliveriesPerSecond: 0,
  maxBacklog: 1_000_000,
  historyDays: 0,
  allowHttpEndpoints: false,
  weight: 1,
};

/** Whether a quota bounds anything that publishing counts in the database. */
export const countsEvents = (quota: Quota): boolean => quota.eventsPerDay > 0 || quota.eventsPerMonth > 0;

/** The burst that a quota means. */
export const burstOf = (quota: Quota): number =>
  quota.publishBurst > 0 ? quota.publishBurst : Math.max(1, Math.ceil(quota.publishPerSecond));

type Range = { readonly min: number; readonly max: number; readonly whole: boolean };
const RANGES: Readonly<Record<Exclude<QuotaField, 'allowHttpEndpoints'>, Range>> = {
  publishPerSecond: { min: 0, max: 1_000_000, whole: false },
  publishBurst: { min: 0, max: 1_000_000, whole: true },
  eventsPerDay: { min: 0, max: 1e12, whole: true },
  eventsPerMonth: { min: 0, max: 1e13, whole: true },
  maxPayloadBytes: { min: 1, max: 1024 * 1024, whole: true },
  maxSubscriptions: { min: 1, max: 10_000, whole: true },
  maxInFlight: { min: 0, max: 100_000, whole: true },
  deliveriesPerSecond: { min: 0, max: 1_000_000, whole: false },
  maxBacklog: { min: 0, max: 1e9, whole: true },
  historyDays: { min: 0, max: 3_650, whole: true },
  weight: { min: 1, max: 100, whole: true },
};

/** What is wrong with one value, or undefined. */
export function quotaProblem(field: QuotaField, value: unknown): string | undefined {
  if (field === 'allowHttpEndpoints') {
    return typeof value === 'boolean' ? undefined : 'must be true or false';
  }
  const { min, max, whole } = RANGES[field];
  const ok = typeof value === 'number' && value >= min && value <= max && (!whole || Number.isInteger(value));
  const rate = !whole && typeof value === 'number' && value > 0 && value < 0.001;
  if (ok && !rate) return undefined;
  const kind = whole ? 'a whole number' : 'a number';
  const none = min === 0 ? ' (0: no limit)' : '';
  return rate ? 'must be 0 (no limit) or at least 0.001' : `must be ${kind} from ${min} to ${max}${none}`;
}

export const QUOTA_FIELDS = Object.keys(DEFAULT_QUOTA) as readonly QuotaField[];

/** `max_payload_bytes` for `maxPayloadBytes`. */
export const wireName = (field: string): string => field.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`);

/** Checks the fields that are given. */
export function checkQuota(quota: Partial<Quota>, path: string, wrong: Violations): void {
  for (const field of QUOTA_FIELDS) {
    const value = quota[field];
    if (value === undefined) continue;
    const problem = quotaProblem(field, value);
    if (problem !== undefined) wrong.add(`${path}.${wireName(field)}`, problem);
  }
}

/** A refusal for a quota: which one, its limit, and what is used of it. */
export function quotaExceeded(
  tenantId: TenantId,
  field: QuotaField,
  limit: number,
  used: number,
  explanation: string,
  retryAfterMs?: number,
): DispatchError {
  const quota = wireName(field);
  return new DispatchError('RESOURCE_EXHAUSTED', `quota ${quota} of tenant ${tenantId}: ${explanation}`, {
    reason: 'QUOTA_EXCEEDED',
    quota: { tenantId, quota, limit, used },
    ...(retryAfterMs === undefined ? {} : { retryAfterMs: Math.max(1, Math.ceil(retryAfterMs)) }),
  });
}
