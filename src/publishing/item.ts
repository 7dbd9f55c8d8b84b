// An event on its way through the group commit, and what its publisher is told of it. May import domain and storage.
import type { Place } from '../domain/delivery.ts';
import { DispatchError } from '../domain/errors.ts';
import type { NewEvent } from '../domain/event.ts';
import type { EventId } from '../domain/ids.ts';
import type { Quota } from '../domain/quota.ts';
import type { IngestEvent, IngestResult } from '../storage/ingest.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { Target } from '../storage/targets.ts';

/** The answer to a publish. */
export type Published = {
  readonly eventId: EventId;
  readonly duplicate: boolean;
  readonly deliveryCount: number;
};

export type PublishOutcome =
  | { readonly ok: true; readonly published: Published }
  | { readonly ok: false; readonly error: DispatchError };

/** An event that is to be stored, and who waits for it. */
export type Item = {
  /** Counts them in the order in which they came. */
  readonly serial: number;
  readonly event: NewEvent;
  readonly isWanted: () => boolean;
  readonly done: (outcome: PublishOutcome) => void;
  rounds: number;
  /** The quota by whose publish rate it has a token. */
  paidBy: Quota | undefined;
  /** What was read for it, until it is in a commit: a tenant that changes may not be in memory by then. */
  config: TenantConfig | undefined;
};

export function refuse(item: Item, error: DispatchError): void {
  item.done({ ok: false, error });
}

export const bySerial = (a: Item, b: Item) => a.serial - b.serial;

/** Of items: what waits is bounded by it. */
export const bytesOf = (items: readonly Item[]) =>
  items.reduce((sum, { event }) => sum + event.payload.length, 0);

/** One that is owned has its place in the worker of this process. */
type MatchedDelivery = IngestEvent['deliveries'][number] & { readonly place: Place | undefined };

/**
 * An item and what it is stored as. `repeats` are the later items of a batch with the same idempotency key: answered by
 * what becomes of the first.
 */
export type Matched = IngestEvent & {
  readonly deliveries: readonly MatchedDelivery[];
  readonly item: Item;
  readonly targets: readonly Target[];
  readonly repeats: Item[];
  /** Of the configuration that it was matched with. */
  readonly version: number;
};

type KeyOwner = Omit<Extract<IngestResult, { kind: 'duplicate' }>, 'kind'>;

/** What the publisher of an event is told whose key has an owner: the same event, or another one. */
export function duplicateOutcome(event: NewEvent, result: KeyOwner): PublishOutcome {
  const { eventId, deliveryCount, same } = result;
  if (same) return { ok: true, published: { eventId, duplicate: true, deliveryCount } };
  const message = `idempotency key "${event.idempotencyKey}" was used for another event (${eventId}) within 24 h`;
  const field = {
    field: 'event.idempotency_key',
    description: 'use a new key for a new event, or repeat the same event',
  };
  return {
    ok: false,
    error: new DispatchError('ALREADY_EXISTS', message, {
      violations: [field],
      reason: 'IDEMPOTENCY_CONFLICT',
    }),
  };
}
