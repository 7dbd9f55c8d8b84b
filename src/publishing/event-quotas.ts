// What was found out of tenants' quotas of events by day and month, remembered for a second: who is far from their end need not
// be looked at, and who has used one up is told so from memory. May import domain and storage.
import { performance } from 'node:perf_hooks';
import type { DispatchError } from '../domain/errors.ts';
import type { NewEvent } from '../domain/event.ts';
import type { TenantId } from '../domain/ids.ts';
import { quotaExceeded } from '../domain/quota.ts';
import type { IngestResult, IngestTenant } from '../storage/ingest.ts';
import type { TenantConfig } from '../storage/read-config.ts';

/** A tenant that has used up a quota of events is told so from memory for this long. */
const OVER_MS = 1_000;
/** How long a tenant that is far from the end of its quotas is not looked at. */
const FAR_MS = 1_000;
const MAX_TENANTS = 10_000;

export type EventQuotas = {
  /** A tenant for the statement; without the quotas that it is known to be far from. */
  readonly ingestTenant: (config: TenantConfig) => IngestTenant;
  readonly onFar: (tenantId: TenantId, version: number) => void;
  /** What a tenant was told a moment ago; a repeat of a key is asked about all the same. */
  readonly refusal: (event: NewEvent, config: TenantConfig) => DispatchError | undefined;
  /** What a tenant is told whose quota was found to be used up, with this version of its configuration. */
  readonly usedUp: (tenantId: TenantId, version: number, result: UsedUp) => DispatchError;
};

type UsedUp = Extract<IngestResult, { kind: 'over' }>;

export function createEventQuotas(): EventQuotas {
  /** As of a version of the tenant's configuration, until when. */
  const far = new Map<TenantId, { readonly version: number; readonly untilMs: number }>();
  const over = new Map<
    TenantId,
    { readonly version: number; readonly untilMs: number; readonly refusal: DispatchError }
  >();
  return {
    ingestTenant({ tenantId, version, quota }) {
      const known = far.get(tenantId);
      const isFar = known !== undefined && known.version === version && known.untilMs > performance.now();
      const { eventsPerDay, eventsPerMonth } = quota;
      return isFar
        ? { version, eventsPerDay: 0, eventsPerMonth: 0 }
        : { version, eventsPerDay, eventsPerMonth };
    },
    onFar(tenantId, version) {
      if (far.size >= MAX_TENANTS) far.clear();
      far.set(tenantId, { version, untilMs: performance.now() + FAR_MS });
    },
    refusal({ tenantId, idempotencyKey }, { version }) {
      const known = over.get(tenantId);
      if (known === undefined || idempotencyKey !== '') return undefined;
      if (known.version === version && known.untilMs > performance.now()) return known.refusal;
      over.delete(tenantId);
      return undefined;
    },
    usedUp(tenantId, version, result) {
      const refusal = usedUp(tenantId, result);
      if (over.size >= MAX_TENANTS) over.clear();
      const untilMs = performance.now() + Math.min(OVER_MS, result.retryAfterMs);
      over.set(tenantId, { version, untilMs, refusal });
      return refusal;
    },
  };
}

function usedUp(tenantId: TenantId, over: UsedUp): DispatchError {
  const { field, limit, retryAfterMs } = over;
  const period = field === 'eventsPerDay' ? 'day' : 'month';
  const explanation = `all ${limit} events of this ${period} are used; the next begins at 00:00 UTC`;
  return quotaExceeded(tenantId, field, limit, limit, explanation, retryAfterMs);
}
