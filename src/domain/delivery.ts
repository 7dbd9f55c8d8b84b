// A delivery on its way through a worker: one type for each stage of the pipeline.
import type { DeliveryId, EventId, SubscriptionId, TenantId } from './ids.ts';

/** The part of an event that goes to endpoints; shared by all its deliveries. */
export type EventContent = {
  readonly eventId: EventId;
  readonly type: string;
  readonly contentType: string;
  readonly payload: Buffer;
  /** May be empty. */
  readonly source: string;
  readonly subject: string;
};

/** A place in a worker's memory that is held for a delivery before it is stored. What it is, only its scheduler knows. */
export type Place = { readonly subscriptionId: SubscriptionId };

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
  /** Whether it waits in a line: what is behind it there goes when its result is recorded. */
  readonly isOrdered: boolean;
  /** Its own, if the publish that stored it hands it over to the worker of its process; a claim brings deliveries without. */
  readonly place: Place | undefined;
  readonly event: EventContent;
};

/** What came back from an endpoint, or did not. */
export type SendResult =
  | {
      readonly kind: 'response';
      readonly status: number;
      readonly retryAfter: string | undefined;
      /** The header `webhook-delivery`: what the endpoint asks for. */
      readonly control: string | undefined;
      /** At most 64 KiB, as received (never inflated). */
      readonly body: Buffer;
      /** Names in lower case, values in turn; at most 4 KiB together. */
      readonly headers: Readonly<Record<string, string>>;
      readonly timing: AttemptTiming;
    }
  | {
      readonly kind: 'failure';
      readonly errorClass: ErrorClass;
      readonly message: string;
      readonly timing: AttemptTiming;
    };

/**
 * What became of a request. Stalled: this process stood still past the deadline (stopped, or its machine paused), and so cannot
 * say that the endpoint took too long; such a try counts for nothing.
 */
export type SendOutcome = SendResult | { readonly kind: 'stalled' };

/** Where the time of an attempt went, in µs. What did not happen is undefined: an open connection needs no handshake. */
export type AttemptTiming = {
  readonly dnsUs?: number | undefined;
  readonly connectUs?: number | undefined;
  readonly tlsUs?: number | undefined;
  /** From the start of the attempt. */
  readonly firstByteUs?: number | undefined;
};

/** Of an attempt that never came so far. */
export const NO_TIMING: AttemptTiming = {};

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
export const DEAD_LETTER_REASONS = [
  'attempts_exhausted',
  'max_age_exceeded',
  'event_expired',
  'aborted',
] as const;
export type DeadLetterReason = (typeof DEAD_LETTER_REASONS)[number];

/** What one attempt means for its delivery. */
export type Verdict =
  | { readonly kind: 'succeeded'; readonly disable: boolean }
  | {
      readonly kind: 'retry';
      readonly delayMs: number;
      readonly errorClass: ErrorClass;
      readonly message: string;
      /** Set when the endpoint said 410, or asked for it: nothing more is sent there. */
      readonly disable: boolean;
    }
  | {
      readonly kind: 'dead';
      readonly reason: DeadLetterReason;
      readonly errorClass: ErrorClass;
      readonly message: string;
      readonly disable: boolean;
    };
