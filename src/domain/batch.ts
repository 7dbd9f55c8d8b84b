// The body of a batched request: a JSON array of events, or a CloudEvents 1.0 JSON batch. JSON bodies are spliced in as the
// bytes they are: nothing is parsed or written anew.
import { createHash } from 'node:crypto';
import type { EventContent } from './delivery.ts';
import { encodeId, idBytes, type TenantId, timeOfId } from './ids.ts';
import type { BatchPolicy } from './subscription.ts';

const JSON_TYPE = /^application\/(?:[\w.-]+\+)?json\b/i;
const OPEN = Buffer.from('[');
const COMMA = Buffer.from(',');
const CLOSE = Buffer.from(']');

/** The media type of a batch. */
export const batchContentType = (format: BatchPolicy['format']): string =>
  format === 'cloudevents' ? 'application/cloudevents-batch+json' : 'application/json';

/** One event of a batch, as bytes of JSON. */
export function batchItem(tenantId: TenantId, event: EventContent, format: BatchPolicy['format']): Buffer {
  const isJson = JSON_TYPE.test(event.contentType);
  const timestamp = new Date(timeOfId(idBytes(event.eventId))).toISOString();
  const { eventId: id, type, contentType } = event;
  const source = event.source === '' ? `/dispatch/${tenantId}` : event.source;
  const subject = event.subject === '' ? {} : { subject: event.subject };
  const head =
    format === 'cloudevents'
      ? { specversion: '1.0', id, source, type, ...subject, time: timestamp, datacontenttype: contentType }
      : { id, type, timestamp, ...(isJson ? {} : { contentType }) };
  const name = isJson ? 'data' : format === 'cloudevents' ? 'data_base64' : 'dataBase64';
  const start = `${JSON.stringify(head).slice(0, -1)},"${name}":`;
  if (isJson) return Buffer.concat([Buffer.from(start), event.payload, Buffer.from('}')]);
  return Buffer.from(`${start}"${event.payload.toString('base64')}"}`);
}

/** The body of a batch. */
export function batchBody(items: readonly Buffer[]): Buffer {
  const parts: Buffer[] = [OPEN];
  for (const [i, item] of items.entries()) {
    if (i > 0) parts.push(COMMA);
    parts.push(item);
  }
  parts.push(CLOSE);
  return Buffer.concat(parts);
}

/** Bytes that an item adds to a body. */
export const itemBytes = (item: Buffer): number => item.length + 1;

/** The `webhook-id` of a batch: the same for the same events, whenever and in whatever order they go together (promise P3). */
export function batchId(eventIds: readonly string[]): string {
  const hash = createHash('sha256');
  for (const id of [...eventIds].sort()) hash.update(id).update('\n');
  const bytes = hash.digest().subarray(0, 16);
  return encodeId('bat', bytes);
}
