// The connection to Redis: one node, Sentinel or Cluster, by URL. A call fails at once when Redis is away and after
// COMMAND_TIMEOUT_MS when it hangs: ioredis's own defaults hung for over 8 s (design, section 7).
import { Cluster, Redis } from 'ioredis';
import type { RedisTarget } from '../config.ts';

export const COMMAND_TIMEOUT_MS = 50;
export const PROBE_EVERY_MS = 250;
/** No longer than that: instances that find Redis again at different times use more than a rate in between. */
const MAX_RECONNECT_MS = PROBE_EVERY_MS;

/** Runs a script on one key. */
export type Script = (key: string, values: readonly (string | number)[]) => Promise<unknown>;

/** A connection that knows whether it is of any use. */
export type LimitsClient = AsyncDisposable & {
  /** Defines a script; it is sent by its digest, and in full when Redis does not know it. */
  readonly script: (name: string, lua: string) => Script;
  /** False from the first failed call until a probe in the background succeeds. */
  readonly isUp: () => boolean;
  /** Says that a call failed. */
  readonly failed: (error: unknown) => void;
  /** Resolves with the first connection; rejects after `withinMs`. */
  readonly ready: (withinMs: number) => Promise<void>;
};

/** `onChange` hears when Redis goes away (with the error) and comes back; `commandTimeoutMs`: a call that takes longer fails. */
export function connectRedis(
  target: RedisTarget,
  onChange: (isUp: boolean, error: unknown) => void,
  commandTimeoutMs = COMMAND_TIMEOUT_MS,
): LimitsClient {
  const redis = open(target, commandTimeoutMs);
  let isUp = false;
  let probing: NodeJS.Timeout | undefined;
  let closed = false;

  // ioredis says the same as rejected calls and through reconnects; without a listener it would print to stderr.
  redis.on('error', () => {});

  function failed(error: unknown): void {
    if (!isUp) return;
    isUp = false;
    onChange(false, error);
    probeSoon();
  }

  function probeSoon(): void {
    if (closed || probing !== undefined) return;
    probing = setTimeout(() => {
      probing = undefined;
      void probe();
    }, PROBE_EVERY_MS);
    probing.unref();
  }

  async function probe(): Promise<void> {
    if (isUp) return; // a new connection was quicker than the timer
    try {
      // A read that any node may answer would not do: the node that scripts go to has to be there.
      await redis.set('{dispatch}:probe', '1', 'PX', 1_000);
      if (closed || isUp) return;
      isUp = true;
      onChange(true, undefined);
    } catch {
      probeSoon(); // still away: its users were told when it went
    }
  }

  redis.on('ready', () => void probe());

  return {
    script(name, lua) {
      redis.defineCommand(name, { lua, numberOfKeys: 1 });
      const commands = redis as unknown as Readonly<
        Record<string, (...args: (string | number)[]) => Promise<unknown>>
      >;
      return (key, values) => commands[name]!.call(redis, key, ...values);
    },
    isUp: () => isUp,
    failed,
    ready: (withinMs) =>
      new Promise((resolve, reject) => {
        const deadline = performance.now() + withinMs;
        const look = () => {
          if (isUp) resolve();
          else if (performance.now() > deadline) reject(new Error(`Redis did not answer in ${withinMs} ms`));
          else setTimeout(look, 10);
        };
        look();
      }),
    async [Symbol.asyncDispose]() {
      closed = true;
      clearTimeout(probing);
      redis.disconnect();
    },
  };
}

function open(target: RedisTarget, commandTimeoutMs: number): Redis | Cluster {
  const common = {
    enableOfflineQueue: false,
    commandTimeout: commandTimeoutMs,
    maxRetriesPerRequest: 0,
    connectTimeout: 2_000,
    retryStrategy: (times: number) => Math.min(50 * times, MAX_RECONNECT_MS),
    ...(target.username === undefined ? {} : { username: target.username }),
    ...(target.password === undefined ? {} : { password: target.password }),
    ...(target.tls ? { tls: {} } : {}),
  };
  switch (target.kind) {
    case 'single':
      return new Redis({ ...common, ...target.nodes[0]!, db: target.database });
    case 'sentinel':
      return new Redis({
        ...common,
        db: target.database,
        name: target.name,
        sentinels: [...target.nodes],
        enableTLSForSentinelMode: target.tls,
        ...(target.tls ? { sentinelTLS: {} } : {}),
        ...(target.password === undefined ? {} : { sentinelPassword: target.password }),
        sentinelRetryStrategy: (times: number) => Math.min(50 * times, MAX_RECONNECT_MS),
      });
    case 'cluster':
      return new Cluster([...target.nodes], {
        enableOfflineQueue: false,
        redisOptions: common,
        slotsRefreshTimeout: 1_000,
        slotsRefreshInterval: 5_000,
        retryDelayOnFailover: 20,
        retryDelayOnClusterDown: 20,
        maxRedirections: 4,
        clusterRetryStrategy: (times: number) => Math.min(50 * times, MAX_RECONNECT_MS),
      });
  }
}
