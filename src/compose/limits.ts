// Limits over all instances: shared through Redis, or this instance's part of each.
import type { Config } from '../config.ts';
import { connectRedis } from '../limits/redis-client.ts';
import { createSharedLimits, type SharedLimits } from '../limits/shared-limits.ts';
import type { Standings } from '../storage/instances.ts';
import type { Log } from '../telemetry/logger.ts';

/** `standings` says how many share a limit while Redis is away. Never waits for Redis. */
export function startLimits(
  config: Config,
  standings: () => Standings,
  log: Log,
  stack: AsyncDisposableStack,
): SharedLimits {
  const share = (kind: 'publish' | 'deliver') => {
    const { api, worker } = standings();
    // A worker may wait until the others have heard of it; a caller that publishes may not.
    return kind === 'publish' ? 1 / api.count : worker.isSettled ? 1 / worker.count : 0;
  };
  if (config.redis === undefined) return createSharedLimits(undefined, share);
  const client = stack.use(
    connectRedis(config.redis, (isUp, error) => {
      if (isUp) log.info({}, 'Redis is there: limits are shared');
      else log.warn({ error: String(error) }, 'Redis is away: limits are kept by each instance');
    }),
  );
  return createSharedLimits(client, share);
}
