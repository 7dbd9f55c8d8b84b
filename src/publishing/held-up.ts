// Who need not wait for a large commit of somebody else. A batch of five hundred events of one tenant takes the database 6 ms and
// more; what others publish meanwhile, if it is little, goes into a commit beside it (ADR 0040).
import type { TenantId } from '../domain/ids.ts';
import type { Item } from './item.ts';

/** A commit of this many events or more is large, if one tenant has half of them. */
const LARGE = 100;
/** A tenant that has no more than this waiting comes with little. */
const LITTLE = 4;

/** The tenants of a large commit; undefined: nobody is held up by this one. */
export function tenantsOfLarge(items: readonly Item[]): ReadonlySet<TenantId> | undefined {
  if (items.length < LARGE) return undefined;
  const counts = countByTenant(items);
  return Math.max(...counts.values()) * 2 >= items.length ? new Set(counts.keys()) : undefined;
}

/**
 * Of what waits, that of tenants that come with little and are not busy, up to `maxBytes` and the one that passes them, and the
 * rest, both in their order; undefined: nobody is held up.
 */
export function heldUp(
  waiting: readonly Item[],
  isBusy: (tenantId: TenantId) => boolean,
  maxBytes: number,
): { readonly items: readonly Item[]; readonly rest: Item[] } | undefined {
  const tenants = new Set<TenantId>();
  for (const [tenantId, count] of countByTenant(waiting)) {
    if (count <= LITTLE && !isBusy(tenantId)) tenants.add(tenantId);
  }
  if (tenants.size === 0) return undefined;
  const items: Item[] = [];
  const rest: Item[] = [];
  let bytes = 0;
  for (const item of waiting) {
    const { tenantId, payload } = item.event;
    const goes = bytes < maxBytes && tenants.has(tenantId);
    (goes ? items : rest).push(item);
    if (goes) bytes += payload.length;
  }
  return { items, rest };
}

/** Events of one request mostly have one tenant and come one behind the other: what is the same is not looked up again. */
function countByTenant(items: readonly Item[]): Map<TenantId, number> {
  const counts = new Map<TenantId, number>();
  for (let i = 0; i < items.length; ) {
    const { tenantId } = items[i]!.event;
    const from = i;
    while (i < items.length && items[i]!.event.tenantId === tenantId) i++;
    counts.set(tenantId, (counts.get(tenantId) ?? 0) + i - from);
  }
  return counts;
}
