// Sign: from a delivery and its target to a request that is ready to send.
import type { EventContent } from '../domain/delivery.ts';
import type { DeliveryId } from '../domain/ids.ts';
import { predecessorSignature, type SigningKey, signatureHeader } from '../domain/signature.ts';
import type { SignedRequest } from '../egress/sender.ts';
import type { Target } from '../storage/tenant-configs.ts';

/** What is signed. */
export type Signable = {
  readonly event: EventContent;
  readonly deliveryId: DeliveryId;
  /** 1-based. */
  readonly attempt: number;
};

/** Sign: Standard Webhooks headers with a fresh timestamp, by every live secret, newest first. */
export function sign(
  delivery: Signable,
  target: Target,
  at: { readonly nowMs: number; readonly monotonicMs: number; readonly timeoutMs: number },
  userAgent: string,
  authorization: string | undefined,
): SignedRequest {
  const { event } = delivery;
  const keys = target.secrets.filter((s) => s.liveUntilMs > at.monotonicMs).map((s) => s.key);
  if (keys.length === 0) throw new Error(`subscription ${target.subscriptionId} has no live secret`);
  const timestamp = Math.floor(at.nowMs / 1000);
  const headers = [
    'content-type',
    event.contentType,
    'user-agent',
    userAgent,
    'webhook-id',
    event.eventId,
    'webhook-timestamp',
    String(timestamp),
    'webhook-signature',
    signatureHeader(keys, event.eventId, timestamp, event.payload),
    'dispatch-event-type',
    event.type,
    'dispatch-delivery-id',
    delivery.deliveryId,
    'dispatch-attempt',
    String(delivery.attempt),
  ];
  for (const name in target.headers) headers.push(name, target.headers[name]!);
  if (authorization !== undefined) headers.push('authorization', authorization);
  if (target.compatibilityHeaders) addPredecessorHeaders(headers, keys, event, timestamp);
  const { origin, path, tlsId } = target;
  const tls = target.credentials.tls;
  return { origin, path, headers, body: event.payload, timeoutMs: at.timeoutMs, tlsId, tls };
}

/** What dispatch's predecessor sent, for receivers that still check it. */
function addPredecessorHeaders(
  headers: string[],
  keys: readonly SigningKey[],
  event: EventContent,
  timestamp: number,
): void {
  headers.push('X-Dispatch-Event-ID', event.eventId, 'X-Dispatch-Event-Type', event.type);
  headers.push('X-Dispatch-Timestamp', String(timestamp));
  const newest = keys.find((k) => k.scheme === 'v1');
  if (newest !== undefined) {
    headers.push('X-Dispatch-Signature', predecessorSignature(newest.key, event.payload));
  }
}
