// Tenants. Table: tenants. One tenant at a time as dispatch_tenant; the list as dispatch_engine.
import { z } from 'zod';
import { DispatchError, notFound } from '../domain/errors.ts';
import type { TenantId } from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import { POLICY_FIELDS, type TenantPolicy } from '../domain/policy.ts';
import { QUOTA_FIELDS, type Quota, type QuotaField } from '../domain/quota.ts';
import type { Tenant, TenantState } from '../domain/tenant.ts';
import { type Database, sql, type TenantTransaction } from './database.ts';

const tenantRow = z.object({
  tenant_id: z.string(),
  display_name: z.string(),
  metadata: z.record(z.string(), z.string()),
  state: z.enum(['active', 'suspended', 'deleting']),
  created_at: z.number(),
  updated_at: z.number(),
  policy: z.record(z.string(), z.unknown()).transform(toPolicy),
});

const COLUMNS = sql.fragment`tenant_id, display_name, metadata, state, created_at, updated_at, policy`;

/** A policy as it is stored, without fields that a newer version added. */
function toPolicy(stored: Readonly<Record<string, unknown>>): Partial<TenantPolicy> {
  return Object.fromEntries(POLICY_FIELDS.flatMap((f) => (stored[f] === undefined ? [] : [[f, stored[f]]])));
}

function toTenant(row: z.infer<typeof tenantRow>): Tenant {
  return {
    tenantId: row.tenant_id as TenantId,
    displayName: row.display_name,
    metadata: row.metadata,
    state: row.state,
    createdAtMs: row.created_at,
    updatedAtMs: row.updated_at,
    policy: row.policy,
  };
}

/** What a tenant's owner decides. */
export type TenantSettings = Pick<Tenant, 'displayName' | 'metadata' | 'policy'>;

/** ALREADY_EXISTS if the id is taken. */
export async function createTenant(
  db: Database,
  tenantId: TenantId,
  settings: TenantSettings,
): Promise<Tenant> {
  return db.inTenant(tenantId, async (tx) => {
    const row = await tx.maybeOne(sql.type(tenantRow)`
      INSERT INTO tenants (tenant_id, display_name, metadata, state, policy)
      VALUES (${tenantId}, ${settings.displayName}, ${sql.jsonb(settings.metadata)}, 'active',
        ${sql.jsonb(settings.policy)})
      ON CONFLICT (tenant_id) DO NOTHING RETURNING ${COLUMNS}`);
    if (row !== null) return toTenant(row);
    throw new DispatchError('ALREADY_EXISTS', `tenant ${tenantId} exists already`, {
      reason: 'TENANT_EXISTS',
    });
  });
}

/** NOT_FOUND if there is none. */
export async function getTenant(db: Database, tenantId: TenantId): Promise<Tenant> {
  return db.inTenant(tenantId, (tx) => readTenant(tx, tenantId));
}

async function readTenant(tx: TenantTransaction, tenantId: TenantId): Promise<Tenant> {
  const row = await tx.maybeOne(sql.type(tenantRow)`
    SELECT ${COLUMNS} FROM tenants WHERE tenant_id = ${tenantId} FOR UPDATE`);
  if (row === null) throw notFound('tenant', tenantId);
  return toTenant(row);
}

/** One more than a page, by id. */
export async function listTenants(db: Database, page: Page): Promise<Tenant[]> {
  const rows = await db.many.any(sql.type(tenantRow)`
    SELECT ${COLUMNS} FROM tenants WHERE tenant_id > ${page.after ?? ''} ORDER BY tenant_id LIMIT ${page.size + 1}`);
  return rows.map(toTenant);
}

/** Replaces the settings by what `change` makes of them. */
export async function updateTenant(
  db: Database,
  tenantId: TenantId,
  change: (before: Tenant) => TenantSettings,
): Promise<Tenant> {
  return db.inTenant(tenantId, async (tx) => {
    const after = change(await readTenant(tx, tenantId));
    const row = await tx.one(sql.type(tenantRow)`
      UPDATE tenants SET display_name = ${after.displayName}, metadata = ${sql.jsonb(after.metadata)},
        policy = ${sql.jsonb(after.policy)}, updated_at = now()
      WHERE tenant_id = ${tenantId} RETURNING ${COLUMNS}`);
    return toTenant(row);
  });
}

/** Sets the state. FAILED_PRECONDITION for a tenant that is being deleted, unless that is what is asked. */
export async function setTenantState(db: Database, tenantId: TenantId, state: TenantState): Promise<Tenant> {
  return db.inTenant(tenantId, async (tx) => {
    const before = await readTenant(tx, tenantId);
    if (before.state === state) return before;
    if (before.state === 'deleting') {
      throw new DispatchError('FAILED_PRECONDITION', `tenant ${tenantId} is being deleted`, {
        reason: 'TENANT_DELETING',
      });
    }
    const row = await tx.one(sql.type(tenantRow)`
      UPDATE tenants SET state = ${state}, config_version = config_version + 1, updated_at = now()
      WHERE tenant_id = ${tenantId} RETURNING ${COLUMNS}`);
    return toTenant(row);
  });
}

/** What SetQuota set, as it lies in tenants.quota. Fields that a newer version added are left out. */
export const ownQuotaSchema = z.record(z.string(), z.union([z.number(), z.boolean()])).transform((stored) => {
  const own: Partial<Record<QuotaField, number | boolean>> = {};
  for (const field of QUOTA_FIELDS) if (stored[field] !== undefined) own[field] = stored[field];
  return own as Partial<Quota>;
});

const quotaRow = z.object({ quota: ownQuotaSchema });

/** The quota of a tenant's own. NOT_FOUND if there is none. */
export async function getOwnQuota(db: Database, tenantId: TenantId): Promise<Partial<Quota>> {
  return db.inTenant(tenantId, (tx) => readOwnQuota(tx, tenantId));
}

async function readOwnQuota(tx: TenantTransaction, tenantId: TenantId): Promise<Partial<Quota>> {
  const row = await tx.maybeOne(sql.type(quotaRow)`
    SELECT quota FROM tenants WHERE tenant_id = ${tenantId} AND state <> 'deleting' FOR UPDATE`);
  if (row === null) throw notFound('tenant', tenantId);
  return row.quota;
}

/** Replaces the quota by what `change` makes of it; grows the version that publishing checks. */
export async function setOwnQuota(
  db: Database,
  tenantId: TenantId,
  change: (before: Partial<Quota>) => Partial<Quota>,
): Promise<Partial<Quota>> {
  return db.inTenant(tenantId, async (tx) => {
    const after = change(await readOwnQuota(tx, tenantId));
    await tx.query(sql.typeAlias('void')`
      UPDATE tenants SET quota = ${sql.jsonb(after)}, config_version = config_version + 1, updated_at = now()
      WHERE tenant_id = ${tenantId}`);
    return after;
  });
}

const historyRow = z.object({ tenant_id: z.string(), days: z.number() });

/** Tenants with a retention of their own, and how many days it is. */
export async function shorterHistories(
  db: Pick<Database, 'many'>,
  defaultDays: number,
): Promise<readonly { readonly tenantId: TenantId; readonly days: number }[]> {
  const rows = await db.many.any(sql.type(historyRow)`
    SELECT tenant_id, days FROM tenants,
      LATERAL (SELECT coalesce((quota->>'historyDays')::float8, ${defaultDays}::float8) AS days) d WHERE days > 0`);
  return rows.map((row) => ({ tenantId: row.tenant_id as TenantId, days: row.days }));
}
