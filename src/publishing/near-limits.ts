// Events of tenants near the end of a quota of events: each tenant's are committed one batch after the other, so that each
// batch sees what the one before it used; the tenants in turn, beside the other commits. May import domain and storage.
import { performance } from 'node:perf_hooks';
import type { TenantId } from '../domain/ids.ts';
import { bySerial, bytesOf, type Item } from './item.ts';

export type NearLimitsDeps = {
  /** Slots of usage: one for each commit that may run. */
  readonly lanes: readonly number[];
  readonly maxEvents: number;
  /** Resolves when all of the items are answered or queued again. */
  readonly commit: (items: readonly Item[], lane: number) => Promise<void>;
  /** A commit has ended. */
  readonly onEnd: () => void;
};

export type NearLimits = {
  /** Takes items; what had to be done again comes before what came after it. */
  readonly send: (items: readonly Item[]) => void;
  /** Whether a tenant's events go this way: it is near an end, or some of them are here and not done. */
  readonly isNear: (tenantId: TenantId, nowMs: number) => boolean;
  /** Whether some of them wait or are in a commit here. */
  readonly has: (tenantId: TenantId) => boolean;
  readonly hasWaiting: (tenantId: TenantId) => boolean;
  /** Whether nobody is near, and nothing is here: then nobody need be asked about. */
  readonly isUnused: () => boolean;
  readonly isIdle: () => boolean;
  /** Of what waits. */
  readonly count: () => number;
  readonly bytes: () => number;
};

/** How long a tenant that came near the end of a quota of events is taken for near it. */
const NEAR_MS = 5_000;
const MAX_TENANTS = 10_000;

export function createNearLimits(deps: NearLimitsDeps): NearLimits {
  const lanes = [...deps.lanes];
  /** Tenants near the end of a quota, until when. */
  const until = new Map<TenantId, number>();
  /** The next tenant's first. */
  const waiting = new Map<TenantId, Item[]>();
  const running = new Set<TenantId>();
  let count = 0;
  let bytes = 0;

  function pump(): void {
    for (const [tenantId, items] of waiting) {
      if (lanes.length === 0) return;
      if (running.has(tenantId)) continue;
      const mine = items.length <= deps.maxEvents ? items : items.slice(0, deps.maxEvents);
      waiting.delete(tenantId);
      if (items.length > deps.maxEvents) waiting.set(tenantId, items.slice(deps.maxEvents)); // behind the others
      count -= mine.length;
      bytes -= bytesOf(mine);
      const lane = lanes.pop()!;
      running.add(tenantId);
      void deps.commit(mine, lane).finally(() => {
        lanes.push(lane);
        running.delete(tenantId);
        pump();
        deps.onEnd();
      });
    }
  }

  const has = (tenantId: TenantId) => waiting.has(tenantId) || running.has(tenantId);

  return {
    send(items) {
      if (items.length === 0) return;
      const untilMs = performance.now() + NEAR_MS;
      if (until.size > MAX_TENANTS) until.clear();
      for (const item of items) {
        const { tenantId } = item.event;
        until.set(tenantId, untilMs);
        const others = waiting.get(tenantId) ?? [];
        others.push(item);
        if ((others.at(-2)?.serial ?? 0) > item.serial) others.sort(bySerial);
        waiting.set(tenantId, others);
      }
      count += items.length;
      bytes += bytesOf(items);
      pump();
    },
    isNear: (tenantId, nowMs) => (until.get(tenantId) ?? 0) > nowMs || has(tenantId),
    has,
    hasWaiting: (tenantId) => waiting.has(tenantId),
    isUnused: () => until.size === 0 && waiting.size === 0 && running.size === 0,
    isIdle: () => waiting.size === 0 && running.size === 0,
    count: () => count,
    bytes: () => bytes,
  };
}
