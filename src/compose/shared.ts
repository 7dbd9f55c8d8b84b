// What the parts of an instance have in common: made once, by instance.ts.
import type { Config } from '../config.ts';
import type { createTestDelivery } from '../delivery/test-delivery.ts';
import { ITSELF } from '../domain/audit.ts';
import type { IdSource, SubscriptionId, TenantId } from '../domain/ids.ts';
import type { Authorizer } from '../egress/authorization.ts';
import type { Fetcher } from '../egress/fetcher.ts';
import type { AddressGuard } from '../egress/guard.ts';
import type { Sender } from '../egress/sender.ts';
import type { SharedLimits } from '../limits/shared-limits.ts';
import type { OperationalEvents } from '../publishing/operational-events.ts';
import type { QueueKey } from '../storage/claims.ts';
import type { Database } from '../storage/database.ts';
import type { Standings } from '../storage/instances.ts';
import type { RightOfWay } from '../storage/right-of-way.ts';
import { disableSubscriptions } from '../storage/subscriptions.ts';
import type { TenantConfigs } from '../storage/tenant-configs.ts';
import type { Log } from '../telemetry/logger.ts';
import type { Metrics } from '../telemetry/metrics.ts';

/** What an instance needs beside the configuration: what main found out or made. */
export type Ready = {
  readonly config: Config;
  /** A migrated database, as its owner; through a pooler, if the configuration has a direct URL, too. */
  readonly databaseUrl: string;
  readonly adminKey: string;
  readonly masterKeys: Config['masterKeys'];
  readonly version: string;
  readonly log: Log;
};

/** What every role uses. */
export type Base = Ready & {
  readonly db: Database;
  readonly rightOfWay: RightOfWay;
  readonly configs: TenantConfigs;
  /** Says that queues have something due, wherever it may be taken up. */
  readonly ready: (queues: readonly QueueKey[]) => void;
  readonly metrics: Metrics;
  readonly monotonic: () => number;
  /** This process among all, for a while: new at each start. */
  readonly instanceId: string;
  readonly standings: () => Standings;
  /** By how much the host's clock is ahead of the database's. */
  readonly skewSeconds: () => number;
  /** The database's clock, in ms since 1970. */
  readonly databaseNow: () => number;
  readonly limits: SharedLimits;
  readonly egress: Egress;
  readonly ids: IdSource;
};

/** The same, and what itself needs it. */
export type Shared = Base & {
  /** Tells every instance, this one at once, that a tenant or its subscriptions changed. */
  readonly changed: (tenantId: TenantId) => void;
  readonly operational: OperationalEvents;
  readonly test: ReturnType<typeof createTestDelivery>;
};

/** Everything that goes out to addresses that tenants or configuration name. */
export type Egress = {
  readonly guard: AddressGuard;
  readonly fetcher: Fetcher;
  readonly sender: Sender;
  readonly authorizer: Authorizer;
};

/** Disables subscriptions because of their endpoints, and tells their tenant. */
export async function disableAll(
  { db, changed, operational }: Shared,
  tenantId: TenantId,
  reasons: ReadonlyMap<SubscriptionId, string>,
): Promise<void> {
  const changes = [...reasons].map(([resource, reason]) => ({
    ...ITSELF,
    action: 'subscription.disable',
    resource,
    detail: { reason },
  }));
  const disabled = await disableSubscriptions(db.audited(...changes), tenantId, reasons);
  changed(tenantId);
  for (const subscriptionId of disabled) {
    const data = { subscriptionId, reason: reasons.get(subscriptionId) ?? '' };
    operational.emit({ tenantId, type: 'dispatch.subscription.disabled', about: subscriptionId, data });
  }
}
