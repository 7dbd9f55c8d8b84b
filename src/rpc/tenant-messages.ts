// The messages of TenantService to and from the domain.
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  ApiKeySchema,
  type AuditEntrySchema,
  DeadLetterExpiry,
  type GetUsageRequest,
  type QuotaSchema,
  TenantSchema,
  UsageInterval,
  type ApiKey as WireApiKey,
  type TenantPolicy as WirePolicy,
  type Quota as WireQuota,
  Role as WireRole,
  TenantState as WireState,
  type Tenant as WireTenant,
} from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { PLATFORM } from '../domain/audit.ts';
import { invalidField } from '../domain/errors.ts';
import type { TenantPolicy } from '../domain/policy.ts';
import { QUOTA_FIELDS, type Quota, type QuotaField, wireName } from '../domain/quota.ts';
import type { KeyRole } from '../domain/roles.ts';
import type { ApiKey, Tenant, TenantState } from '../domain/tenant.ts';
import type { AuditEntry } from '../storage/audit.ts';
import { optionalMs } from './pages.ts';
import { msOf } from './times.ts';

const WIRE_STATES: Readonly<Record<TenantState, WireState>> = {
  active: WireState.ACTIVE,
  suspended: WireState.SUSPENDED,
  deleting: WireState.DELETING,
};

/** A tenant as it is shown. */
export function toWire(tenant: Tenant): WireTenant {
  return create(TenantSchema, {
    tenantId: tenant.tenantId,
    displayName: tenant.displayName,
    metadata: { ...tenant.metadata },
    state: WIRE_STATES[tenant.state],
    createTime: timestampFromMs(tenant.createdAtMs),
    updateTime: timestampFromMs(tenant.updatedAtMs),
    policy: policyToWire(tenant.policy),
  });
}

const EXPIRY_NAMES: Readonly<Record<number, TenantPolicy['deadLetterExpiry']>> = {
  [DeadLetterExpiry.ARCHIVE]: 'archive',
  [DeadLetterExpiry.DISCARD]: 'discard',
};
const WIRE_EXPIRIES: Readonly<Record<TenantPolicy['deadLetterExpiry'], DeadLetterExpiry>> = {
  none: DeadLetterExpiry.UNSPECIFIED,
  archive: DeadLetterExpiry.ARCHIVE,
  discard: DeadLetterExpiry.DISCARD,
};

/** The fields that are set, unchecked; an expiry that is not known is an empty text, which no check lets pass. */
export function policyFromWire(wire: WirePolicy | undefined): Partial<TenantPolicy> {
  if (wire === undefined) return {};
  const { requireVerification, autoDisableAfter, autoDisableFailures, probeInterval } = wire;
  const { deadLetterDays, deadLetterExpiry } = wire;
  const expiry = EXPIRY_NAMES[deadLetterExpiry] ?? ('' as TenantPolicy['deadLetterExpiry']);
  return {
    ...(requireVerification === undefined ? {} : { requireVerification }),
    ...(autoDisableAfter === undefined ? {} : { autoDisableAfterMs: msOf(autoDisableAfter) }),
    ...(autoDisableFailures === undefined ? {} : { autoDisableFailures }),
    ...(probeInterval === undefined ? {} : { probeIntervalMs: msOf(probeInterval) }),
    ...(deadLetterDays === undefined ? {} : { deadLetterDays }),
    ...(deadLetterExpiry === DeadLetterExpiry.UNSPECIFIED ? {} : { deadLetterExpiry: expiry }),
  };
}

function policyToWire(
  policy: Partial<TenantPolicy>,
): NonNullable<MessageInitShape<typeof TenantSchema>['policy']> {
  const { requireVerification, autoDisableAfterMs, autoDisableFailures, probeIntervalMs } = policy;
  const { deadLetterDays, deadLetterExpiry } = policy;
  return {
    ...(requireVerification === undefined ? {} : { requireVerification }),
    ...(autoDisableAfterMs === undefined ? {} : { autoDisableAfter: durationFromMs(autoDisableAfterMs) }),
    ...(autoDisableFailures === undefined ? {} : { autoDisableFailures }),
    ...(probeIntervalMs === undefined ? {} : { probeInterval: durationFromMs(probeIntervalMs) }),
    ...(deadLetterDays === undefined ? {} : { deadLetterDays }),
    deadLetterExpiry: WIRE_EXPIRIES[deadLetterExpiry ?? 'none'],
  };
}

/** A key's record as it is shown. */
export function keyToWire(key: ApiKey): WireApiKey {
  return create(ApiKeySchema, {
    keyId: key.keyId,
    tenantId: key.tenantId === PLATFORM ? '' : key.tenantId,
    displayName: key.displayName,
    createTime: timestampFromMs(key.createdAtMs),
    ...(key.expiresAtMs === undefined ? {} : { expireTime: timestampFromMs(key.expiresAtMs) }),
    ...(key.revokedAtMs === undefined ? {} : { revokeTime: timestampFromMs(key.revokedAtMs) }),
    ...(key.lastUsedAtMs === undefined ? {} : { lastUseTime: timestampFromMs(key.lastUsedAtMs) }),
    role: WIRE_ROLES[key.role],
  });
}

const WIRE_ROLES: Readonly<Record<KeyRole, WireRole>> = {
  'platform-admin': WireRole.PLATFORM_ADMIN,
  'tenant-admin': WireRole.TENANT_ADMIN,
  publisher: WireRole.PUBLISHER,
  viewer: WireRole.VIEWER,
};
const ROLE_NAMES: Readonly<Record<number, KeyRole>> = {
  [WireRole.UNSPECIFIED]: 'tenant-admin',
  [WireRole.PLATFORM_ADMIN]: 'platform-admin',
  [WireRole.TENANT_ADMIN]: 'tenant-admin',
  [WireRole.PUBLISHER]: 'publisher',
  [WireRole.VIEWER]: 'viewer',
};

/** The role of a wire value; undefined for one that is not known. */
export const roleOf = (wire: WireRole): KeyRole | undefined => ROLE_NAMES[wire];

/** Counts that are int64 on the wire. */
const LONG: ReadonlySet<QuotaField> = new Set([
  'publishBurst',
  'eventsPerDay',
  'eventsPerMonth',
  'maxBacklog',
]);

/** The fields that are set. A count that no double holds becomes NaN, which no check lets pass. */
export function quotaFromWire(wire: WireQuota): Partial<Quota> {
  const quota: Partial<Record<QuotaField, number | boolean>> = {};
  for (const field of QUOTA_FIELDS) {
    const value: number | bigint | boolean | undefined = wire[field];
    if (value === undefined) continue;
    const number = typeof value === 'bigint' ? Number(value) : value;
    quota[field] =
      typeof number === 'number' && typeof value === 'bigint' && !Number.isSafeInteger(number)
        ? Number.NaN
        : number;
  }
  return quota as Partial<Quota>;
}

function quotaToWire(quota: Partial<Quota>): MessageInitShape<typeof QuotaSchema> {
  const wire: Record<string, number | bigint | boolean> = {};
  for (const field of QUOTA_FIELDS) {
    const value = quota[field];
    if (value !== undefined) wire[field] = LONG.has(field) ? BigInt(value) : value;
  }
  return wire as MessageInitShape<typeof QuotaSchema>;
}

/** What is in force, and what was set. */
export function quotaAnswer(own: Partial<Quota>, defaults: Quota) {
  return { quota: quotaToWire({ ...defaults, ...own }), own: quotaToWire(own) };
}

/** The fields that a mask names; all for an empty one. */
export function parseQuotaMask(paths: readonly string[]): readonly QuotaField[] {
  if (paths.length === 0) return QUOTA_FIELDS;
  return paths.map((path) => {
    const field = QUOTA_FIELDS.find((f) => wireName(f) === path);
    if (field !== undefined) return field;
    const known = QUOTA_FIELDS.map(wireName).join(', ');
    throw invalidField('update_mask', `has "${path.slice(0, 64)}"; it may have ${known}`);
  });
}

/** Of `fields`: those that are given are set, those that are not follow the default again. */
export function mergeQuota(
  before: Partial<Quota>,
  given: Partial<Quota>,
  fields: readonly QuotaField[],
): Partial<Quota> {
  const after: Partial<Record<QuotaField, number | boolean>> = { ...before };
  for (const field of fields) {
    const value = given[field];
    if (value === undefined) delete after[field];
    else after[field] = value;
  }
  return after as Partial<Quota>;
}

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const MAX_INTERVALS = 1_000;

/** The interval and the time of a usage request, checked. */
export function parseUsageRequest(
  request: GetUsageRequest,
  nowMs: number,
): { readonly interval: 'hour' | 'day'; readonly startMs: number; readonly endMs: number } {
  const { interval: wire } = request;
  const known = [UsageInterval.UNSPECIFIED, UsageInterval.HOUR, UsageInterval.DAY].some((i) => i === wire);
  if (!known) throw invalidField('interval', 'must be USAGE_INTERVAL_HOUR or USAGE_INTERVAL_DAY');
  const interval = wire === UsageInterval.HOUR ? 'hour' : 'day';
  const width = interval === 'hour' ? HOUR_MS : DAY_MS;
  const endMs = optionalMs(request.endTime, 'end_time') ?? nowMs + DAY_MS;
  const startMs =
    optionalMs(request.startTime, 'start_time') ?? nowMs - (interval === 'hour' ? 48 * HOUR_MS : 31 * DAY_MS);
  if (endMs <= startMs) throw invalidField('end_time', 'must be after start_time');
  if ((endMs - startMs) / width > MAX_INTERVALS) {
    throw invalidField('start_time', `is more than ${MAX_INTERVALS} intervals before end_time`);
  }
  return { interval, startMs, endMs };
}

/** An entry of the audit log as it is shown. */
export function auditToWire(entry: AuditEntry): MessageInitShape<typeof AuditEntrySchema> {
  const detail = Object.entries(entry.detail).map(([key, value]) => [key, String(value)]);
  return {
    auditId: entry.auditId,
    tenantId: entry.tenantId,
    time: timestampFromMs(entry.atMs),
    actor: entry.actor,
    action: entry.action,
    resource: entry.resource,
    address: entry.address,
    detail: Object.fromEntries(detail) as Record<string, string>,
  };
}
