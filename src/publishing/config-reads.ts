// Publishes whose tenant's configuration is not in memory wait here until it is read, each tenant's in the order in which they
// came. Nobody else's wait for it: that of a tenant of ten thousand subscriptions takes half a second. May import storage
// and domain.
import { DispatchError, notFound } from '../domain/errors.ts';
import type { TenantId } from '../domain/ids.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { TenantConfigs } from '../storage/tenant-configs.ts';

export type ConfigReadsDeps<Item> = {
  readonly configs: Pick<TenantConfigs, 'get' | 'peek'> & {
    readonly forget: (tenantId: TenantId) => void;
  };
  /** Turns an error of the database into what a caller sees; undefined: not the database's state. */
  readonly unavailable: (error: unknown) => DispatchError | undefined;
  /** What waited for the configuration of an active tenant. */
  readonly onRead: (items: readonly Item[], config: TenantConfig) => void;
  readonly onRefused: (items: readonly Item[], refusal: DispatchError) => void;
  readonly onError: (error: unknown) => void;
};

export type ConfigReads<Item> = {
  readonly wait: (tenantId: TenantId, item: Item) => void;
  /** Whether something of a tenant waits: what comes after it has to wait behind it. */
  readonly has: (tenantId: TenantId) => boolean;
  /** Items that wait. */
  readonly count: () => number;
};

/** Reads at once: claims use the same connections. */
const MAX_READS = 2;

export function createConfigReads<Item>(deps: ConfigReadsDeps<Item>): ConfigReads<Item> {
  const waiting = new Map<TenantId, Item[]>();
  const toRead: TenantId[] = [];
  let readCount = 0;
  let count = 0;

  function readNext(): void {
    while (readCount < MAX_READS && toRead.length > 0) {
      const tenantId = toRead.shift()!;
      readCount++;
      read(tenantId)
        .then((read) => {
          readCount--;
          const items = waiting.get(tenantId)!;
          waiting.delete(tenantId);
          count -= items.length;
          if (read instanceof DispatchError) deps.onRefused(items, read);
          else deps.onRead(items, read);
        })
        .catch(deps.onError)
        .finally(readNext);
    }
  }

  /** The configuration, or why nothing can be published with it. */
  async function read(tenantId: TenantId): Promise<TenantConfig | DispatchError> {
    const known = deps.configs.peek(tenantId); // somebody else may have read it meanwhile
    if (known?.state === 'active') return known;
    // Nobody is refused for what is kept: a tenant may be resumed, or created anew, at any moment.
    if (known !== undefined) deps.configs.forget(tenantId);
    try {
      const config = await deps.configs.get(tenantId);
      if (config?.state === 'active') return config;
      deps.configs.forget(tenantId);
      return config === undefined ? notFound('tenant', tenantId) : inactive(config);
    } catch (error) {
      const known = deps.unavailable(error);
      if (known !== undefined) return known;
      deps.onError(error);
      const message = `the configuration of tenant ${tenantId} cannot be read`;
      return new DispatchError('INTERNAL', message, { cause: error });
    }
  }

  return {
    wait(tenantId, item) {
      count++;
      const others = waiting.get(tenantId);
      if (others !== undefined) {
        others.push(item);
        return;
      }
      waiting.set(tenantId, [item]);
      toRead.push(tenantId);
      readNext();
    },
    has: (tenantId) => waiting.has(tenantId),
    count: () => count,
  };
}

function inactive(config: TenantConfig): DispatchError {
  if (config.state === 'deleting') return notFound('tenant', config.tenantId);
  return new DispatchError('FAILED_PRECONDITION', `tenant ${config.tenantId} is suspended`, {
    reason: 'TENANT_SUSPENDED',
  });
}
