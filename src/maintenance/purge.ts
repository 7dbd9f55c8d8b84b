// Deletions that go on in the background: subscriptions, tenants, idempotency keys.
import type { TenantId } from '../domain/ids.ts';

export type PurgeDeps = {
  readonly deletedSubscriptions: () => Promise<
    readonly { readonly tenant_id: string; readonly id: string }[]
  >;
  readonly purgeSubscription: (tenantId: string, uuid: string) => Promise<number>;
  readonly deletingTenants: () => Promise<readonly TenantId[]>;
  readonly purgeTenant: (tenantId: TenantId) => Promise<number>;
  readonly purgeIdempotencyKeys: () => Promise<number>;
};

/** Each does one bounded piece and returns how many rows it removed; 0: nothing is left to do. */
export type PurgeTasks = {
  readonly subscriptions: () => Promise<number>;
  readonly tenants: () => Promise<number>;
  readonly idempotencyKeys: () => Promise<number>;
};

export function createPurgeTasks(deps: PurgeDeps): PurgeTasks {
  return {
    async subscriptions() {
      let count = 0;
      for (const row of await deps.deletedSubscriptions())
        count += await deps.purgeSubscription(row.tenant_id, row.id);
      return count;
    },
    async tenants() {
      let count = 0;
      for (const tenantId of await deps.deletingTenants()) count += await deps.purgeTenant(tenantId);
      return count;
    },
    async idempotencyKeys() {
      let count = 0;
      for (let chunk = 0; chunk < 100; chunk++) {
        const removed = await deps.purgeIdempotencyKeys();
        count += removed;
        if (removed === 0) break;
      }
      return count;
    },
  };
}
