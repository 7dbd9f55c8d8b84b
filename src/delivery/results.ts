// From what came back to what is recorded and logged.
import type { ClaimedDelivery, SendResult, Verdict } from '../domain/delivery.ts';
import type { AttemptRecord, DeliveryRecord } from '../storage/records.ts';
import type { Target } from '../storage/targets.ts';
import type { AttemptEvent } from '../telemetry/events.ts';

/** When an attempt was made: ms since 1970, and how long it took. */
export type Times = { readonly startedAtMs: number; readonly durationMs: number; readonly lagMs: number };

/** What fences every write about a delivery. */
export const fenceOf = (d: Pick<ClaimedDelivery, 'tenantId' | 'idBytes' | 'lease'>) => ({
  tenantId: d.tenantId,
  idBytes: d.idBytes,
  lease: d.lease,
});

/** What is written about one delivery of a request. `batchSize` is 0 for a request with one event. */
export function recordOf(
  delivery: Pick<ClaimedDelivery, 'tenantId' | 'idBytes' | 'lease' | 'attemptCount' | 'isOrdered' | 'event'>,
  target: Pick<Target, 'ordering' | 'onDeadLetter'>,
  result: SendResult,
  verdict: Verdict,
  times: Times,
  batchSize: number,
): DeliveryRecord {
  const attemptNumber = delivery.attemptCount + 1;
  const isResponse = result.kind === 'response';
  const attempt: AttemptRecord = {
    attempt: attemptNumber,
    status: isResponse ? result.status : undefined,
    startedAtMs: times.startedAtMs,
    durationUs: Math.round(times.durationMs * 1000),
    timing: result.timing,
    responseBody: isResponse ? result.body : Buffer.alloc(0),
    responseHeaders: isResponse ? result.headers : undefined,
    batchSize,
  };
  const fence = fenceOf(delivery);
  switch (verdict.kind) {
    case 'succeeded':
      return { ...fence, kind: 'succeeded', attempt };
    case 'retry':
      return { ...fence, kind: 'retry', attempt, failure: verdict, delayMs: verdict.delayMs };
    case 'dead': {
      const { reason } = verdict;
      const { type: eventType } = delivery.event;
      const stopsLine = delivery.isOrdered && target.ordering !== 'none' && target.onDeadLetter === 'stop';
      const died = { reason, attempt, failure: verdict, eventType, attemptCount: attemptNumber, stopsLine };
      return { ...fence, kind: 'dead', ...died };
    }
  }
}

/** The line of the log about a request: that of its first delivery, with how many there were. */
export function eventOf(
  delivery: ClaimedDelivery,
  target: Target,
  result: SendResult,
  verdict: Verdict,
  times: Times,
  request: { readonly batchSize: number; readonly bodyBytes: number },
): AttemptEvent {
  return {
    tenantId: delivery.tenantId,
    eventId: delivery.event.eventId,
    eventType: delivery.event.type,
    subscriptionId: delivery.subscriptionId,
    deliveryId: delivery.deliveryId,
    attempt: delivery.attemptCount + 1,
    outcome: verdict.kind,
    status: result.kind === 'response' ? result.status : 0,
    errorClass: verdict.kind === 'succeeded' ? undefined : verdict.errorClass,
    origin: target.origin,
    durationMs: Math.round(times.durationMs * 1000) / 1000,
    lagMs: Math.round(times.lagMs * 1000) / 1000,
    retryInMs: verdict.kind === 'retry' ? verdict.delayMs : undefined,
    payloadBytes: request.bodyBytes,
    ...(request.batchSize === 0 ? {} : { batchSize: request.batchSize }),
  };
}
