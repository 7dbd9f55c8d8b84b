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
  readonly foldUsage: () => Promise<number>;
  readonly rewrapSecrets: () => Promise<number>;
  readonly pruneAudit: () => Promise<number>;
  readonly pruneUsage: () => Promise<number>;
  readonly expireDeadLetters: () => Promise<number>;
  readonly pruneAlerts: () => Promise<number>;
};

/** Each does one bounded piece and returns how many rows it removed; 0: nothing is left to do. */
export type PurgeTasks = {
  readonly subscriptions: () => Promise<number>;
  readonly tenants: () => Promise<number>;
  readonly idempotencyKeys: () => Promise<number>;
  /** Folds the counters of past hours. */
  readonly usage: () => Promise<number>;
  /** Seals secrets anew that lie under another master key than the first. */
  readonly secrets: () => Promise<number>;
  readonly audit: () => Promise<number>;
  readonly oldUsage: () => Promise<number>;
  /** Archives or discards dead letters that are older than policies let them be. */
  readonly deadLetters: () => Promise<number>;
  readonly oldAlerts: () => Promise<number>;
};

/** Chunks that one run does at most; what is left is done by the next. */
const MAX_CHUNKS = 100;

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
    idempotencyKeys: () => inChunks(deps.purgeIdempotencyKeys),
    usage: () => inChunks(deps.foldUsage),
    secrets: () => inChunks(deps.rewrapSecrets),
    audit: deps.pruneAudit,
    oldUsage: deps.pruneUsage,
    deadLetters: () => inChunks(deps.expireDeadLetters),
    oldAlerts: deps.pruneAlerts,
  };
}

async function inChunks(step: () => Promise<number>): Promise<number> {
  let count = 0;
  for (let chunk = 0; chunk < MAX_CHUNKS; chunk++) {
    const done = await step();
    count += done;
    if (done === 0) break;
  }
  return count;
}
