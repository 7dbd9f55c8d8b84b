// The store that the rest uses: Redis while it answers, this process's memory while it does not (promise P5). Folder's
// purpose: limits over all instances. May import domain, telemetry and config.
import { createMemoryStore } from './memory-store.ts';
import type { LimitsClient } from './redis-client.ts';
import { createRedisStore } from './redis-store.ts';
import type { LimitStore } from './store.ts';

/** Everything that is limited over all instances. */
export type SharedLimits = LimitStore & {
  /** `local`: no Redis was given; `degraded`: it is away, and every instance uses its part of each limit. */
  readonly health: () => 'shared' | 'degraded' | 'local';
};

/**
 * Goes on evenly, whatever happens to the host's clock: set back by an hour, it would leave every bucket empty and every
 * breaker open for an hour more.
 */
const steadyNow = () => performance.timeOrigin + performance.now();

/**
 * `share` is this instance's part of each rate while nothing is shared, 0 while others may not know of it. Never rejects: a call that Redis fails is
 * answered from memory, and no other waits for Redis until it is back.
 */
export function createSharedLimits(
  client: LimitsClient | undefined,
  share: (kind: 'publish' | 'deliver') => number,
): SharedLimits {
  const memory = createMemoryStore(steadyNow, share);
  if (client === undefined) return { ...memory, health: () => 'local' };
  const redis = createRedisStore(client);

  async function call<T>(ask: (store: LimitStore) => Promise<T>): Promise<T> {
    if (!client!.isUp()) return ask(memory);
    try {
      return await ask(redis);
    } catch (error) {
      client!.failed(error);
      return ask(memory);
    }
  }

  return {
    take: (...args) => call((store) => store.take(...args)),
    report: (...args) => call((store) => store.report(...args)),
    askProbe: (...args) => call((store) => store.askProbe(...args)),
    endProbe: (...args) => call((store) => store.endProbe(...args)),
    health: () => (client.isUp() ? 'shared' : 'degraded'),
  };
}
