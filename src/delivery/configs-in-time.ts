// The configurations that claims are planned with. One that takes long to read is not waited for: that of a tenant of ten
// thousand subscriptions takes half a second, in which the others' queues are claimed from. May import storage and domain.
import { setTimeout as wait } from 'node:timers/promises';
import type { TenantId } from '../domain/ids.ts';
import type { QueueKey } from '../storage/claims.ts';
import type { TenantConfig } from '../storage/read-config.ts';

export type ConfigsInTimeDeps = {
  readonly configs: {
    readonly get: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
    readonly peek: (tenantId: TenantId) => TenantConfig | undefined;
  };
  /** The configuration of queues that were told `later` is there. */
  readonly onRead: (queues: readonly QueueKey[]) => void;
  /** One could not be read; its queues are told nothing: a walk finds them again. */
  readonly onError: (error: unknown) => void;
};

/** Undefined: there is no such tenant. Rejects with what kept it from being read, if that was known in time. */
export type ConfigsInTime = (queue: QueueKey) => Promise<TenantConfig | 'later' | undefined>;

const IN_TIME_MS = 20;
/** How long one that changed while it was read is kept for the queues that waited for it. */
const KEPT_MS = 1_000;

const keyOf = ({ tenantId, subscriptionId }: QueueKey) => `${tenantId}/${subscriptionId}`;

export function createConfigsInTime({ configs, onRead, onError }: ConfigsInTimeDeps): ConfigsInTime {
  /** Tenants that are late, and their queues that were told so. */
  const late = new Map<TenantId, Map<string, QueueKey>>();
  /** For each of those queues once: in memory it may not be any more. */
  const kept = new Map<string, TenantConfig>();

  function arrived(tenantId: TenantId, config: TenantConfig | undefined): void {
    const queues = late.get(tenantId)!;
    late.delete(tenantId);
    if (config === undefined) return;
    if (configs.peek(tenantId) === undefined) {
      // What is not active may be so by now, and would not be asked about again.
      const isActive = ({ subscriptionId }: QueueKey) =>
        config.state === 'active' && config.targets.get(subscriptionId)?.state === 'active';
      for (const [key, queue] of queues) if (isActive(queue)) kept.set(key, config);
      const forget = () => {
        for (const key of queues.keys()) if (kept.get(key) === config) kept.delete(key);
      };
      setTimeout(forget, KEPT_MS).unref();
    }
    onRead([...queues.values()]);
  }

  return async (queue) => {
    const { tenantId } = queue;
    const key = keyOf(queue);
    const known = configs.peek(tenantId) ?? kept.get(key);
    kept.delete(key);
    if (known !== undefined) return known;
    const others = late.get(tenantId);
    if (others !== undefined) {
      others.set(key, queue);
      return 'later';
    }
    const reading = configs.get(tenantId);
    const first = await Promise.race([reading, wait(IN_TIME_MS, 'later' as const, { ref: false })]);
    if (first !== 'later') return first;
    late.set(tenantId, new Map([[key, queue]]));
    reading.then(
      (config) => arrived(tenantId, config),
      (error) => {
        late.delete(tenantId);
        onError(error);
      },
    );
    return 'later';
  };
}
