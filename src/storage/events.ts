// Reads the history of events. Table: events. Runs as dispatch_tenant.
import { z } from 'zod';
import { notFound } from '../domain/errors.ts';
import { matchesPattern } from '../domain/event-type.ts';
import { type EventId, encodeId, lowestUuidAt, type TenantId, timeOfId, uuidOf } from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import { type Database, sql } from './database.ts';
import { type ScannedPage, scanPage } from './scan-page.ts';

/** An event as it is stored. */
export type StoredEvent = {
  readonly tenantId: TenantId;
  readonly eventId: EventId;
  readonly uuid: string;
  readonly type: string;
  /** Undefined in lists. */
  readonly payload: Buffer | undefined;
  readonly payloadBytes: number;
  readonly contentType: string;
  readonly source: string;
  readonly subject: string;
  readonly idempotencyKey: string;
  readonly orderingKey: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly createdAtMs: number;
  readonly deliverAfterMs: number | undefined;
};

const eventRow = z.object({
  id: z.string(),
  type: z.string(),
  payload: z.instanceof(Buffer).nullable(),
  payload_bytes: z.number(),
  content_type: z.string().nullable(),
  source: z.string().nullable(),
  subject: z.string().nullable(),
  idempotency_key: z.string().nullable(),
  ordering_key: z.string().nullable(),
  metadata: z.record(z.string(), z.string()).nullable(),
  deliver_after: z.number().nullable(),
});

const COLUMNS = sql.fragment`id, type, octet_length(payload) AS payload_bytes, content_type, source, subject,
  idempotency_key, ordering_key, metadata, deliver_after`;

function toEvent(tenantId: TenantId, row: z.infer<typeof eventRow>): StoredEvent {
  const bytes = Buffer.from(row.id.replaceAll('-', ''), 'hex');
  return {
    tenantId,
    eventId: encodeId('evt', bytes) as EventId,
    uuid: row.id,
    type: row.type,
    payload: row.payload ?? undefined,
    payloadBytes: row.payload_bytes,
    contentType: row.content_type ?? 'application/json',
    source: row.source ?? '',
    subject: row.subject ?? '',
    idempotencyKey: row.idempotency_key ?? '',
    orderingKey: row.ordering_key ?? '',
    metadata: row.metadata ?? {},
    createdAtMs: timeOfId(bytes),
    deliverAfterMs: row.deliver_after ?? undefined,
  };
}

/** Reads one with its payload. NOT_FOUND if it is not this tenant's. */
export async function getEvent(db: Database, tenantId: TenantId, eventId: EventId): Promise<StoredEvent> {
  const row = await db.inTenant(tenantId, (tx) =>
    tx.maybeOne(sql.type(eventRow)`
      SELECT ${COLUMNS}, payload FROM events WHERE tenant_id = ${tenantId} AND id = ${uuidOf(eventId)}`),
  );
  if (row === null) throw notFound('event', eventId);
  return toEvent(tenantId, row);
}

/** Which events. Times in ms since 1970: from startMs, before endMs. */
export type EventFilter = {
  readonly typePattern: string | undefined;
  readonly startMs: number | undefined;
  readonly endMs: number | undefined;
};

/** A page, newest first. */
export async function listEvents(
  db: Database,
  tenantId: TenantId,
  page: Page,
  filter: EventFilter,
): Promise<ScannedPage<StoredEvent>> {
  const { typePattern } = filter;
  const from = lowestUuidAt(filter.startMs ?? 0);
  const highest = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  const first = filter.endMs === undefined ? highest : lowestUuidAt(filter.endMs);
  return db.inTenant(tenantId, (tx) =>
    scanPage(
      page,
      async (after, limit) => {
        const rows = await tx.any(sql.type(eventRow)`
          SELECT ${COLUMNS}, NULL::bytea AS payload FROM events
          WHERE tenant_id = ${tenantId} AND id >= ${from} AND id < ${after ?? first} ORDER BY id DESC LIMIT ${limit}`);
        return rows.map((row) => toEvent(tenantId, row));
      },
      (event) => event.uuid,
      typePattern === undefined ? undefined : (event) => matchesPattern(typePattern, event.type),
    ),
  );
}
