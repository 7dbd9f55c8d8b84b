// What limits that hold over all instances need of a shared store. Two of them: Redis (redis-store.ts) and, without
// Redis or while it is away, the memory of this process (memory-store.ts). One test suite runs against both.
import type { BreakerReport, BreakerState } from '../domain/breaker.ts';
import type { BucketSpec, Taken } from '../domain/bucket.ts';
import type { SubscriptionId, TenantId } from '../domain/ids.ts';

/** A bucket: a tenant's publishing, a tenant's deliveries, or a subscription's. */
export type BucketKey = {
  readonly tenantId: TenantId;
  readonly kind: 'publish' | 'deliver';
  /** Undefined for a tenant's. */
  readonly subscriptionId?: SubscriptionId | undefined;
};

/** What a call to a breaker tells its caller. Durations in ms. */
export type BreakerView = {
  readonly phase: BreakerState['phase'];
  /** This very call opened or closed it: its caller tells the others. */
  readonly changed: boolean;
  readonly openForMs: number;
  readonly openCount: number;
  /** -1: it never was open. */
  readonly closedAgoMs: number;
  readonly reason: BreakerState['reason'];
};

export type ProbeAnswer = BreakerView & { readonly granted: boolean; readonly waitMs: number };

export type BreakerKey = { readonly tenantId: TenantId; readonly subscriptionId: SubscriptionId };

/** Buckets and breakers. Calls reject when the store is away. */
export type LimitStore = {
  /** Takes up to `want` slots at once or for the near future. */
  readonly take: (key: BucketKey, spec: BucketSpec, want: number) => Promise<Taken>;
  readonly report: (key: BreakerKey, report: BreakerReport) => Promise<BreakerView>;
  /** Asks for the one probe of an open breaker; see askProbe() in domain/breaker.ts. */
  readonly askProbe: (
    key: BreakerKey,
    holder: string,
    leaseMs: number,
    knownOpenCount: number,
  ) => Promise<ProbeAnswer>;
  readonly endProbe: (
    key: BreakerKey,
    holder: string,
    outcome: 'succeeded' | 'failed' | 'none',
  ) => Promise<BreakerView>;
};

/** `t:<tenant>` in braces: one hash slot a tenant, so that a cluster keeps what belongs together together. */
export function bucketName(key: BucketKey): string {
  const what = key.subscriptionId === undefined ? '' : `:${key.subscriptionId}`;
  return `{t:${key.tenantId}}:${key.kind}${what}`;
}

export function breakerName(key: BreakerKey): string {
  return `{t:${key.tenantId}}:breaker:${key.subscriptionId}`;
}
