// The audit log. Table: audit_log, append-only: the service roles may insert and read. Entries of changes are written
// by Database.audited() in the change's own transaction; this file holds the rest.
import { z } from 'zod';
import { type Change, PLATFORM } from '../domain/audit.ts';
import { type AuditId, idFromUuid, type TenantId, uuidOf } from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import { asOwner, type Database, sql } from './database.ts';

/** A stored entry. */
export type AuditEntry = Change & {
  readonly auditId: AuditId;
  /** Empty for what belongs to no tenant. */
  readonly tenantId: TenantId | '';
  readonly atMs: number;
};

export type AuditFilter = {
  readonly actor: string;
  readonly action: string;
  readonly startMs: number | undefined;
  readonly endMs: number | undefined;
};

const auditRow = z.object({
  id: z.string(),
  at: z.number(),
  actor: z.string(),
  action: z.string(),
  resource: z.string(),
  address: z.string(),
  detail: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])),
});

/** One more than a page, newest first. */
export async function listAuditLog(
  db: Database,
  tenantId: TenantId,
  page: Page,
  filter: AuditFilter,
): Promise<AuditEntry[]> {
  const conditions = [sql.fragment`tenant_id = ${tenantId}`];
  if (page.after !== undefined) conditions.push(sql.fragment`id < ${page.after}`);
  if (filter.actor !== '') conditions.push(sql.fragment`actor = ${filter.actor}`);
  if (filter.action !== '') conditions.push(sql.fragment`action = ${filter.action}`);
  if (filter.startMs !== undefined)
    conditions.push(sql.fragment`at >= to_timestamp(${filter.startMs / 1000})`);
  if (filter.endMs !== undefined) conditions.push(sql.fragment`at < to_timestamp(${filter.endMs / 1000})`);
  const rows = await db.inTenant(tenantId, (tx) =>
    tx.any(sql.type(auditRow)`
      SELECT id, at, actor, action, resource, address, detail FROM audit_log
      WHERE ${sql.join(conditions, sql.fragment` AND `)} ORDER BY id DESC LIMIT ${page.size + 1}`),
  );
  return rows.map((row) => ({
    auditId: idFromUuid('aud', row.id) as AuditId,
    tenantId: tenantId === PLATFORM ? '' : tenantId,
    atMs: row.at,
    actor: row.actor,
    action: row.action,
    resource: row.resource,
    address: row.address,
    detail: row.detail,
  }));
}

/** Writes one entry by itself: what was refused changes nothing, so there is no other transaction. */
export async function writeAudit(
  db: Pick<Database, 'many'>,
  tenantId: TenantId | typeof PLATFORM,
  auditId: AuditId,
  change: Change,
): Promise<void> {
  await db.many.query(sql.typeAlias('void')`
    INSERT INTO audit_log (tenant_id, id, actor, action, resource, address, detail)
    VALUES (${tenantId}, ${uuidOf(auditId)}, ${change.actor}, ${change.action}, ${change.resource}, ${change.address},
      ${sql.jsonb(change.detail)})`);
}

/** Removes entries that are older than the retention. Returns how many. */
export function pruneAudit(ownerUrl: string, days: number): Promise<number> {
  return asOwner(ownerUrl, async (client) => {
    const old = "DELETE FROM audit_log WHERE at < now() - $1 * interval '1 day'";
    return (await client.query(old, [days])).rowCount ?? 0;
  });
}

/** Removes a deleted tenant's entries; that it was deleted goes on to be said in the platform's own log. */
export async function eraseAudit(ownerUrl: string, tenantId: TenantId): Promise<void> {
  await asOwner(ownerUrl, async (client) => {
    await client.query('DELETE FROM audit_log WHERE tenant_id = $1', [tenantId]);
  });
}
