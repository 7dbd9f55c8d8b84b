// Admission: whether a tenant's quota lets an event in, as far as that can be said without its transaction. Rates are
// leased from the shared limits; the size of the backlog is counted every 2 s (seldom while it is far from its limit) and
// estimated in between. Quotas by day and month are counted in the transaction itself (storage/ingest.ts).
import type { DispatchError } from '../domain/errors.ts';
import type { TenantId } from '../domain/ids.ts';
import { type Quota, quotaExceeded } from '../domain/quota.ts';
import type { PublishRate } from '../limits/publish-rate.ts';
import type { TenantConfig } from '../storage/read-config.ts';

export type AdmissionDeps = {
  readonly rate: PublishRate;
  /** Unfinished deliveries of a tenant, counted no further than `upTo`. */
  readonly countBacklog: (tenantId: TenantId, upTo: number) => Promise<number>;
  /** Monotonic, in ms. */
  readonly now: () => number;
  readonly onError: (error: unknown) => void;
};

export type Admission = {
  /** Takes tokens of the publish rate of a tenant that has one: how many of `count` events may pass, and why not the others. */
  readonly takeRate: (
    config: TenantConfig,
    count: number,
  ) => Promise<{ readonly granted: number; readonly refusal: DispatchError | undefined }>;
  /** Why an event may not pass, if it may not: its size, or the tenant's backlog. */
  readonly refusal: (
    config: TenantConfig,
    payloadBytes: number,
    deliveryCount: number,
  ) => DispatchError | undefined;
  /** What was let in was not stored after all. */
  readonly giveBack: (tenantId: TenantId, deliveryCount: number) => void;
};

/** `counted`: what the last count found; NEGATIVE_INFINITY: it failed. */
type Backlog = { count: number; counted: number; countedAtMs: number; tookMs: number };

const RECOUNT_MS = 2_000;
/** Counting may take this part of the time at most: a long backlog is counted less often. */
const COUNTING_SHARE = 0.05;
/**
 * A backlog below this part of its limit is counted when this process has let in a further part of the limit, as other processes
 * may have, or after a time: counting passes over what was delivered and is not vacuumed, 1 to 4 ms of the database.
 */
const FAR = 0.25;
const FURTHER = 0.125;
const RECOUNT_FAR_MS = 300_000;
const MAX_TENANTS = 10_000;

export function createAdmission(deps: AdmissionDeps): Admission {
  const backlogs = new Map<TenantId, Backlog>();
  let isCounting = false; // one at a time

  function backlogOf(tenantId: TenantId, limit: number): Backlog {
    let backlog = backlogs.get(tenantId);
    if (backlog === undefined) {
      if (backlogs.size >= MAX_TENANTS) backlogs.clear();
      backlog = { count: 0, counted: 0, countedAtMs: Number.NEGATIVE_INFINITY, tookMs: 0 };
      backlogs.set(tenantId, backlog);
    }
    const age = deps.now() - backlog.countedAtMs;
    const isFurther = backlog.count - backlog.counted >= limit * FURTHER;
    const isFar = backlog.count < limit * FAR && !isFurther && age < RECOUNT_FAR_MS;
    const isDue = age >= Math.max(RECOUNT_MS, backlog.tookMs / COUNTING_SHARE);
    if (isDue && !isFar && !isCounting) void recount(backlog, tenantId, limit);
    return backlog;
  }

  async function recount(backlog: Backlog, tenantId: TenantId, limit: number): Promise<void> {
    isCounting = true;
    const startedAt = deps.now();
    const before = backlog.count;
    try {
      const counted = await deps.countBacklog(tenantId, limit + 1);
      // What was let in while it was counted may or may not have been seen: it counts.
      backlog.count = counted + (backlog.count - before);
      backlog.counted = counted;
    } catch (error) {
      deps.onError(error); // the estimate goes on, and is held against a count soon, however small it is
      backlog.counted = Number.NEGATIVE_INFINITY;
    } finally {
      backlog.countedAtMs = deps.now();
      backlog.tookMs = backlog.countedAtMs - startedAt;
      isCounting = false;
    }
  }

  return {
    async takeRate(config, count) {
      const { tenantId, quota } = config;
      const { granted, waitMs } = await deps.rate.take(tenantId, quota, count);
      return { granted, refusal: granted < count ? tooFast(tenantId, quota, waitMs) : undefined };
    },

    refusal({ tenantId, quota }, payloadBytes, deliveryCount) {
      if (payloadBytes > quota.maxPayloadBytes) {
        const limit = quota.maxPayloadBytes;
        const explanation = `the body has ${payloadBytes} bytes, and at most ${limit} are allowed`;
        return quotaExceeded(tenantId, 'maxPayloadBytes', limit, payloadBytes, explanation);
      }
      if (quota.maxBacklog === 0) {
        backlogs.delete(tenantId); // what is let in now is not added up
        return undefined;
      }
      if (deliveryCount === 0) return undefined;
      const backlog = backlogOf(tenantId, quota.maxBacklog);
      if (backlog.count + deliveryCount > quota.maxBacklog) {
        const explanation = `${backlog.count} deliveries are not finished, and at most ${quota.maxBacklog} may be`;
        return quotaExceeded(
          tenantId,
          'maxBacklog',
          quota.maxBacklog,
          backlog.count,
          explanation,
          RECOUNT_MS,
        );
      }
      backlog.count += deliveryCount;
      return undefined;
    },

    giveBack(tenantId, deliveryCount) {
      const backlog = backlogs.get(tenantId);
      if (backlog !== undefined) backlog.count = Math.max(0, backlog.count - deliveryCount);
    },
  };
}

function tooFast(tenantId: TenantId, quota: Quota, waitMs: number): DispatchError {
  const limit = quota.publishPerSecond;
  const explanation = `more than ${limit} events a second are being published`;
  return quotaExceeded(tenantId, 'publishPerSecond', limit, limit, explanation, waitMs);
}
