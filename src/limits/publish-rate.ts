// Publish rates: token buckets of tenants, leased to this instance in blocks, so that publishing seldom waits for the
// shared store.
import { tokenBucket } from '../domain/bucket.ts';
import type { TenantId } from '../domain/ids.ts';
import { burstOf, type Quota } from '../domain/quota.ts';
import type { LimitStore } from './store.ts';

/** A leased token is good for this long. */
const BLOCK_MS = 500;
const MAX_TENANTS = 10_000;

/**
 * Leased at a rate and a burst: of others nothing of it is good. `emptyUntilMs`: the store had nothing; until then it is not
 * asked again.
 */
type Block = {
  tokens: number;
  readonly perSecond: number;
  readonly burst: number;
  readonly untilMs: number;
  readonly emptyUntilMs: number;
};

export type PublishRate = {
  /** Takes up to `count` tokens of a tenant; fewer if it has no more. `waitMs`: until the next one. */
  readonly take: (
    tenantId: TenantId,
    quota: Quota,
    count: number,
  ) => Promise<{ readonly granted: number; readonly waitMs: number }>;
};

/** `now` is monotonic, in ms. */
export function createPublishRate(store: Pick<LimitStore, 'take'>, now: () => number): PublishRate {
  const blocks = new Map<TenantId, Block>();

  function blockOf(tenantId: TenantId, perSecond: number, burst: number): Block | undefined {
    const block = blocks.get(tenantId);
    return block?.perSecond === perSecond && block.burst === burst ? block : undefined;
  }

  return {
    async take(tenantId, quota, count) {
      const nowMs = now();
      const perSecond = quota.publishPerSecond;
      const burst = burstOf(quota);
      const known = blockOf(tenantId, perSecond, burst);
      const left = known !== undefined && known.untilMs > nowMs ? known.tokens : 0;
      if (known !== undefined && left >= count) {
        known.tokens -= count;
        return { granted: count, waitMs: 0 };
      }
      if (known !== undefined) known.tokens = 0; // taken below, whatever else the store gives
      if (known !== undefined && known.emptyUntilMs > nowMs) {
        // A caller that keeps trying costs no call.
        return { granted: left, waitMs: known.emptyUntilMs - nowMs };
      }
      const block = Math.max(1, Math.floor(Math.min(perSecond / 20, burst / 8)));
      const spec = tokenBucket(perSecond, burst);
      const want = count - left + block - 1;
      const { granted, waitUs } = await store.take({ tenantId, kind: 'publish' }, spec, want);
      const have = left + granted;
      const used = Math.min(count, have);
      const waitMs = used < count ? Math.max(waitUs / 1000, 1) : 0;
      if (blocks.size >= MAX_TENANTS) blocks.clear();
      // Another commit may have leased a block meanwhile: what it has left is good.
      const other = blockOf(tenantId, perSecond, burst);
      const more = other !== undefined && other !== known && other.untilMs > nowMs ? other.tokens : 0;
      blocks.set(tenantId, {
        tokens: have - used + more,
        perSecond,
        burst,
        untilMs: nowMs + BLOCK_MS,
        emptyUntilMs: used < count ? nowMs + Math.min(waitMs, BLOCK_MS) : 0,
      });
      return { granted: used, waitMs };
    },
  };
}
