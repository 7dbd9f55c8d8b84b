// What a worker sees of its endpoints' health, gathered in memory and written every few seconds: which subscriptions had a
// success, and how often the others failed since. Nothing is written where nothing was tried.
import type { SubscriptionId, TenantId } from '../domain/ids.ts';
import type { QueueKey } from '../storage/claims.ts';
import type { Failing } from '../storage/health.ts';

export type HealthDeps = {
  readonly write: (succeeded: readonly QueueKey[], failing: readonly Failing[]) => Promise<void>;
  /** Monotonic, in ms. */
  readonly now: () => number;
  readonly onError: (error: unknown) => void;
};

const FLUSH_MS = 10_000;
const MAX_SUBSCRIPTIONS = 50_000;

type Seen = QueueKey & { succeeded: boolean; failureCount: number; failingSinceMs: number };

export type Health = AsyncDisposable & {
  readonly report: (tenantId: TenantId, subscriptionId: SubscriptionId, succeeded: boolean) => void;
  /** Writes what was gathered. */
  readonly flush: () => Promise<void>;
};

export function createHealth(deps: HealthDeps): Health {
  let seen = new Map<SubscriptionId, Seen>();
  const timer = setInterval(() => void flush(), FLUSH_MS);
  timer.unref();

  async function flush(): Promise<void> {
    if (seen.size === 0) return;
    const all = [...seen.values()];
    seen = new Map();
    const nowMs = deps.now();
    const failing = all.filter((s) => s.failureCount > 0);
    try {
      await deps.write(
        all.filter((s) => s.succeeded),
        failing.map((s) => ({ ...s, sinceMsAgo: nowMs - s.failingSinceMs })),
      );
    } catch (error) {
      deps.onError(error); // what was seen of these seconds is lost: the next ones say the same
    }
  }

  return {
    report(tenantId, subscriptionId, succeeded) {
      let entry = seen.get(subscriptionId);
      if (entry === undefined) {
        if (seen.size >= MAX_SUBSCRIPTIONS) return;
        entry = { tenantId, subscriptionId, succeeded: false, failureCount: 0, failingSinceMs: 0 };
        seen.set(subscriptionId, entry);
      }
      if (succeeded) {
        entry.succeeded = true;
        entry.failureCount = 0;
        return;
      }
      if (entry.failureCount === 0) entry.failingSinceMs = deps.now();
      entry.failureCount++;
    },
    flush,
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await flush();
    },
  };
}
