// A delivery on its way through a worker: one type for each stage of the pipeline.
import type { DeliveryId, EventId, SubscriptionId, TenantId } from './ids.ts';

/** The part of an event that goes to endpoints; shared by all its deliveries. */
export type EventContent = {
  readonly eventId: EventId;
  readonly type: string;
  readonly contentType: string;
  readonly payload: Buffer;
};

/** A delivery that this worker holds a lease on. */
export type ClaimedDelivery = {
  readonly tenantId: TenantId;
  readonly deliveryId: DeliveryId;
  /** The 16 bytes of `deliveryId`: what the tables are keyed by. */
  readonly idBytes: Buffer;
  readonly subscriptionId: SubscriptionId;
  /** Attempts made before this claim, over the life of the delivery. */
  readonly attemptCount: number;
  /** Attempts made before the delivery was last replayed: where its retry schedule starts. */
  readonly retryBase: number;
  /** When its retry schedule started, in ms since 1970, if not when the event was accepted. */
  readonly roundAtMs: number | undefined;
  /** 16 bytes that fence every later write. */
  readonly lease: Buffer;
  /** When the lease ends, on this process's monotonic clock in ms. */
  readonly leaseUntilMs: number;
  /** When it became due, in ms since 1970 (for the lag metric only). */
  readonly dueAtMs: number;
  readonly event: EventContent;
};

/** What came back from an endpoint, or did not. */
export type SendResult =
  | {
      readonly kind: 'response';
      readonly status: number;
      readonly retryAfter: string | undefined;
      /** At most 64 KiB, as received (never inflated). */
      readonly body: Buffer;
    }
  | { readonly kind: 'failure'; readonly errorClass: ErrorClass; readonly message: string };

/** Why an attempt failed. */
export type ErrorClass =
  | 'http_status'
  | 'redirect'
  | 'timeout'
  | 'connect_refused'
  | 'connect_reset'
  | 'dns'
  | 'tls'
  | 'protocol'
  | 'blocked_address'
  | 'credentials'
  | 'internal';

/** Why a delivery became a dead letter. */
export type DeadLetterReason = 'attempts_exhausted' | 'max_age_exceeded' | 'event_expired';

/** What one attempt means for its delivery. */
export type Verdict =
  | { readonly kind: 'succeeded' }
  | {
      readonly kind: 'retry';
      readonly delayMs: number;
      readonly errorClass: ErrorClass;
      readonly message: string;
      /** Set when the endpoint said 410: nobody lives there. */
      readonly disable: boolean;
    }
  | {
      readonly kind: 'dead';
      readonly reason: DeadLetterReason;
      readonly errorClass: ErrorClass;
      readonly message: string;
      readonly disable: boolean;
    };
