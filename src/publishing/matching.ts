// From items to a batch: each event is matched with its tenant's subscriptions, and its deliveries get places in the worker of
// this process where there is room. May import domain and storage.
import type { NewEvent } from '../domain/event.ts';
import { deliveryIdOf, type IdSource, type TenantId } from '../domain/ids.ts';
import type { IngestBatch, IngestTenant } from '../storage/ingest.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { Target } from '../storage/targets.ts';
import type { Admission } from './admission.ts';
import type { EventQuotas } from './event-quotas.ts';
import type { LocalWorker } from './hand-over.ts';
import { type Item, type Matched, refuse } from './item.ts';
import { lineOf } from './line.ts';

export type MatchingDeps = {
  readonly admission: Admission;
  readonly quotas: EventQuotas;
  /** Events that commits on all instances may have under way at once: kept free at the end of quotas of events. */
  readonly margin: () => number;
  readonly localWorker: LocalWorker | undefined;
  readonly ids: IdSource;
  readonly leaseMs: number;
};

export type MatchedBatch = {
  readonly batch: IngestBatch & { readonly events: readonly Matched[] };
  /** For which there was no room in it. */
  readonly later: readonly Item[];
};

export type Matching = {
  /** Items and their tenants' configurations; refuses what may not pass. `slot` counts their usage. */
  readonly prepare: (
    items: readonly Item[],
    configs: ReadonlyMap<TenantId, TenantConfig>,
    slot: number,
  ) => MatchedBatch;
  /** What was matched was not stored: its places, and its part of the backlog. */
  readonly giveBack: (matched: Matched) => void;
};

const MAX_DELIVERIES = 10_000;

export function createMatching(deps: MatchingDeps): Matching {
  /** Matches events with their tenants' configurations. A key may occur once in a batch. */
  function prepare(
    items: readonly Item[],
    configs: ReadonlyMap<TenantId, TenantConfig>,
    slot: number,
  ): MatchedBatch {
    const tenants = new Map<TenantId, IngestTenant>();
    const keys = new Map<string, Matched>();
    const events: Matched[] = [];
    const later: Item[] = [];
    /** Ordered tenants of which something has to wait: what comes behind it waits too. */
    const behind = new Set<TenantId>();
    let deliveryCount = 0;
    for (const item of items) {
      const { event } = item;
      const config = configs.get(event.tenantId)!;
      const targets = config.matches.match(event.type);
      const key = event.idempotencyKey === '' ? '' : `${event.tenantId}/${event.idempotencyKey}`;
      const isFull = events.length > 0 && deliveryCount + targets.length > MAX_DELIVERIES;
      const first = key === '' ? undefined : keys.get(key);
      if (first !== undefined) {
        first.repeats.push(item);
        continue;
      }
      if (isFull || behind.has(event.tenantId)) {
        item.rounds--; // not this item's fault
        later.push(item);
        if (config.isOrdered) behind.add(event.tenantId);
        continue;
      }
      const refusal = deps.quotas.refusal(event, config) ?? admit(event, config, targets.length);
      if (refusal !== undefined) {
        refuse(item, refusal);
        continue;
      }
      if (!tenants.has(event.tenantId)) {
        tenants.set(event.tenantId, deps.quotas.ingestTenant(config));
      }
      deliveryCount += targets.length;
      const matched = match(item, targets, config);
      if (key !== '') keys.set(key, matched);
      events.push(matched);
    }
    const lease = deps.ids.bytes();
    const { leaseMs } = deps;
    const batch = {
      tenants,
      events,
      lease,
      leaseMs,
      slot,
      margin: deps.margin(),
      isUsage: true,
      onFar: deps.quotas.onFar,
    };
    return { batch, later };
  }

  const admit = (event: NewEvent, config: TenantConfig, deliveryCount: number) =>
    deps.admission.refusal(config, event.payload.length, deliveryCount);

  function match(item: Item, targets: readonly Target[], config: TenantConfig): Matched {
    const { event } = item;
    const eventId = deps.ids.eventBytes();
    const mayOwn = deps.localWorker !== undefined && event.deliverAfterMs === undefined;
    const deliveries = targets.map((target, i) => {
      const deliveryId = deliveryIdOf(eventId, i + 1);
      const orderKey = lineOf(target, event.orderingKey, deliveryId);
      // What is before it in its line may be anywhere.
      const isOwn = mayOwn && orderKey === undefined && target.state === 'active';
      const place = isOwn ? deps.localWorker?.reserve(config, target) : undefined;
      return { deliveryId, subscriptionId: target.idBytes, owned: place !== undefined, orderKey, place };
    });
    return { event, eventId, deliveries, item, targets, repeats: [], version: config.version };
  }

  function giveBack(m: Matched): void {
    deps.admission.giveBack(m.event.tenantId, m.deliveries.length);
    for (const { place } of m.deliveries) if (place !== undefined) deps.localWorker?.unreserve(place);
  }

  return { prepare, giveBack };
}
