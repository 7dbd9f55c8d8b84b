// What the log and the metrics are told: plain data with every id.

/** An attempt and what became of it. */
export type AttemptEvent = {
  readonly tenantId: string;
  readonly eventId: string;
  readonly eventType: string;
  readonly subscriptionId: string;
  readonly deliveryId: string;
  /** 1-based. */
  readonly attempt: number;
  readonly outcome: 'succeeded' | 'retry' | 'dead';
  /** 0 when no response came. */
  readonly status: number;
  readonly errorClass: string | undefined;
  readonly origin: string;
  readonly durationMs: number;
  /** From due to sent. */
  readonly lagMs: number;
  readonly retryInMs: number | undefined;
  readonly payloadBytes: number;
  /** Deliveries in the same request, if it was a batch: the ids are those of the first. */
  readonly batchSize?: number;
};
