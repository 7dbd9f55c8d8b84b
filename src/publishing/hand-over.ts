// What becomes of deliveries right after their commit: the worker of this process has them, or others hear of their queues. May
// import domain and storage.
import type { ClaimedDelivery, Place } from '../domain/delivery.ts';
import { type DeliveryId, type EventId, encodeId } from '../domain/ids.ts';
import type { QueueKey } from '../storage/claims.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { Target } from '../storage/targets.ts';
import type { Matched } from './item.ts';

/** The worker of this process, if it has one: deliveries can be handed to it right after the commit. */
export type LocalWorker = {
  /** Holds a place for one delivery; undefined when there is no room. */
  readonly reserve: (config: TenantConfig, target: Target) => Place | undefined;
  /** Takes deliveries whose places were reserved. */
  readonly accept: (deliveries: readonly ClaimedDelivery[]) => void;
  /** Gives a reserved place back. */
  readonly unreserve: (place: Place) => void;
};

/** That the local worker's deliveries were stored with; until when on the monotonic clock. */
export type Lease = { readonly token: Buffer; readonly untilMs: number };

/**
 * Sorts the deliveries of a stored event: to the local worker, or to whoever hears that their queues are ready. In a commit each
 * tenant has one configuration, so a queue has one target.
 */
export function handOver(
  m: Matched,
  eventId: EventId,
  lease: Lease,
  owned: ClaimedDelivery[],
  readyQueues: Map<Target, QueueKey>,
): void {
  const { tenantId, type, contentType, payload, source, subject, deliverAfterMs } = m.event;
  let event: ClaimedDelivery['event'] | undefined;
  const nowMs = Date.now();
  for (let i = 0; i < m.deliveries.length; i++) {
    const delivery = m.deliveries[i]!;
    const target = m.targets[i]!;
    const { subscriptionId } = target;
    if (delivery.place !== undefined) {
      event ??= { eventId, type, contentType, payload, source, subject };
      owned.push({
        tenantId,
        deliveryId: encodeId('dlv', delivery.deliveryId) as DeliveryId,
        idBytes: delivery.deliveryId,
        subscriptionId,
        attemptCount: 0,
        retryBase: 0,
        roundAtMs: undefined,
        lease: lease.token,
        leaseUntilMs: lease.untilMs,
        dueAtMs: nowMs,
        isOrdered: false,
        place: delivery.place,
        event,
      });
    } else if (target.state === 'active' && (deliverAfterMs === undefined || deliverAfterMs <= nowMs)) {
      if (!readyQueues.has(target)) readyQueues.set(target, { tenantId, subscriptionId });
    }
  }
}
