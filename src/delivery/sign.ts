// Sign: from deliveries and their target to a request that is ready to send.
import { batchBody, batchContentType, batchId } from '../domain/batch.ts';
import type { EventContent } from '../domain/delivery.ts';
import type { DeliveryId } from '../domain/ids.ts';
import { predecessorSignature, type SigningKey, signatureHeader } from '../domain/signature.ts';
import type { SignedRequest } from '../egress/sender.ts';
import type { Target } from '../storage/targets.ts';

/** One request: what `webhook-id` names, and the headers that say what it is. */
export type Signable = {
  readonly id: string;
  readonly contentType: string;
  readonly body: Buffer;
  /** The predecessor's `X-Dispatch-Event-Type`. */
  readonly type: string;
  /** Names and values in turn. */
  readonly headers: readonly string[];
};

/** A request with one event. `attempt` is 1-based. */
export function signable(event: EventContent, deliveryId: DeliveryId, attempt: number): Signable {
  const { eventId: id, contentType, payload: body, type } = event;
  const headers = [
    'dispatch-event-type',
    type,
    'dispatch-delivery-id',
    deliveryId,
    'dispatch-attempt',
    String(attempt),
  ];
  return { id, contentType, body, type, headers };
}

/** A request with several; `attempt` is that of the one that was tried most often. */
export function signableBatch(
  eventIds: readonly string[],
  items: readonly Buffer[],
  format: 'json_array' | 'cloudevents',
  attempt: number,
): Signable {
  return {
    id: batchId(eventIds),
    contentType: batchContentType(format),
    body: batchBody(items),
    type: 'batch',
    headers: ['dispatch-batch-size', String(items.length), 'dispatch-attempt', String(attempt)],
  };
}

/** Sign: Standard Webhooks headers with a fresh timestamp, by every live secret, newest first. */
export function sign(
  what: Signable,
  target: Target,
  at: { readonly nowMs: number; readonly monotonicMs: number; readonly timeoutMs: number },
  userAgent: string,
  authorization: string | undefined,
): SignedRequest {
  const keys = target.lastingKeys ?? liveKeys(target, at.monotonicMs);
  if (keys.length === 0) throw new Error(`subscription ${target.subscriptionId} has no live secret`);
  const timestamp = Math.floor(at.nowMs / 1000);
  const headers = [
    'content-type',
    what.contentType,
    'user-agent',
    userAgent,
    'webhook-id',
    what.id,
    'webhook-timestamp',
    String(timestamp),
    'webhook-signature',
    signatureHeader(keys, what.id, timestamp, what.body),
    ...what.headers,
  ];
  for (const name in target.headers) headers.push(name, target.headers[name]!);
  if (authorization !== undefined) headers.push('authorization', authorization);
  if (target.compatibilityHeaders) addPredecessorHeaders(headers, keys, what, timestamp);
  const { origin, path, tlsId } = target;
  const tls = target.credentials.tls;
  return { origin, path, headers, body: what.body, timeoutMs: at.timeoutMs, tlsId, tls };
}

const liveKeys = ({ secrets }: Target, nowMs: number) =>
  secrets.filter((s) => s.liveUntilMs > nowMs).map((s) => s.key);

/** What dispatch's predecessor sent, for receivers that still check it. */
function addPredecessorHeaders(
  headers: string[],
  keys: readonly SigningKey[],
  what: Signable,
  timestamp: number,
): void {
  headers.push('X-Dispatch-Event-ID', what.id, 'X-Dispatch-Event-Type', what.type);
  headers.push('X-Dispatch-Timestamp', String(timestamp));
  const newest = keys.find((k) => k.scheme === 'v1');
  if (newest !== undefined) headers.push('X-Dispatch-Signature', predecessorSignature(newest, what.body));
}
