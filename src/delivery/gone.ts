// Subscriptions whose endpoints said that they are gone. This process sends them nothing more from that moment; that they are
// disabled is written behind it, those of a tenant together: when many go at once, each write would make every process
// read the tenant anew.
import type { SubscriptionId, TenantId } from '../domain/ids.ts';

export type GoneDeps = {
  /** Disables them, each for its reason. When it resolves, the tenant's configuration says so. */
  readonly disable: (tenantId: TenantId, reasons: ReadonlyMap<SubscriptionId, string>) => Promise<void>;
  readonly onError: (error: unknown) => void;
};

export type Gone = {
  /** Whether nothing is to be sent to it, whatever its configuration says. */
  readonly has: (subscriptionId: SubscriptionId) => boolean;
  readonly add: (tenantId: TenantId, subscriptionId: SubscriptionId, reason: string) => void;
};

export function createGone(deps: GoneDeps): Gone {
  const gone = new Set<SubscriptionId>();
  /** Of tenants that are being written to: what is to be written next. */
  const waiting = new Map<TenantId, Map<SubscriptionId, string>>();

  async function write(tenantId: TenantId): Promise<void> {
    for (let next = waiting.get(tenantId)!; next.size > 0; next = waiting.get(tenantId)!) {
      waiting.set(tenantId, new Map());
      try {
        await deps.disable(tenantId, next);
      } catch (error) {
        deps.onError(error); // the next answer of each says it again
      }
      for (const subscriptionId of next.keys()) gone.delete(subscriptionId);
    }
    waiting.delete(tenantId);
  }

  return {
    has: (subscriptionId) => gone.size > 0 && gone.has(subscriptionId),
    add(tenantId, subscriptionId, reason) {
      if (gone.has(subscriptionId)) return;
      gone.add(subscriptionId);
      const next = waiting.get(tenantId);
      if (next !== undefined) {
        next.set(subscriptionId, reason);
        return;
      }
      waiting.set(tenantId, new Map([[subscriptionId, reason]]));
      void write(tenantId);
    },
  };
}
