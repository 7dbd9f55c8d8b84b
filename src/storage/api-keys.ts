// API keys. Table: api_keys. Looked up at authentication as dispatch_engine, by id alone; else as dispatch_tenant.
import { z } from 'zod';
import { notFound } from '../domain/errors.ts';
import { idFromUuid, type KeyId, type TenantId, uuidOf } from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import type { ApiKey } from '../domain/tenant.ts';
import { type Database, sql } from './database.ts';

const keyRow = z.object({
  tenant_id: z.string(),
  id: z.string(),
  display_name: z.string(),
  created_at: z.number(),
  expires_at: z.number().nullable(),
  revoked_at: z.number().nullable(),
});

const COLUMNS = sql.fragment`tenant_id, id, display_name, created_at, expires_at, revoked_at`;

function toApiKey(row: z.infer<typeof keyRow>): ApiKey {
  return {
    keyId: idFromUuid('key', row.id) as KeyId,
    tenantId: row.tenant_id as TenantId,
    displayName: row.display_name,
    createdAtMs: row.created_at,
    expiresAtMs: row.expires_at ?? undefined,
    revokedAtMs: row.revoked_at ?? undefined,
  };
}

/** What authentication needs of a live key. */
export type KeyRecord = { readonly tenantId: TenantId; readonly hash: Buffer };

/** The live key with this id; undefined if there is none, or if it was revoked or has expired. */
export async function findLiveKey(db: Pick<Database, 'many'>, keyId: KeyId): Promise<KeyRecord | undefined> {
  const row = await db.many.maybeOne(sql.type(
    z.object({ tenant_id: z.string(), hash: z.instanceof(Buffer) }),
  )`
    SELECT tenant_id, hash FROM api_keys
    WHERE id = ${uuidOf(keyId)} AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())`);
  return row === null ? undefined : { tenantId: row.tenant_id as TenantId, hash: row.hash };
}

/** NOT_FOUND for an unknown tenant. */
export async function createApiKey(
  db: Database,
  tenantId: TenantId,
  key: {
    readonly keyId: KeyId;
    readonly hash: Buffer;
    readonly displayName: string;
    readonly expiresAtMs: number | undefined;
  },
): Promise<ApiKey> {
  const expiry =
    key.expiresAtMs === undefined
      ? sql.fragment`NULL`
      : sql.fragment`to_timestamp(${key.expiresAtMs / 1000})`;
  const row = await db.inTenant(tenantId, (tx) =>
    tx.maybeOne(sql.type(keyRow)`
      INSERT INTO api_keys (tenant_id, id, hash, display_name, expires_at)
      SELECT tenant_id, ${uuidOf(key.keyId)}::uuid, ${sql.binary(key.hash)}, ${key.displayName}, ${expiry}
      FROM tenants WHERE tenant_id = ${tenantId} AND state <> 'deleting' RETURNING ${COLUMNS}`),
  );
  if (row === null) throw notFound('tenant', tenantId);
  return toApiKey(row);
}

/** One more than a page, newest first. */
export async function listApiKeys(db: Database, tenantId: TenantId, page: Page): Promise<ApiKey[]> {
  const after = page.after === undefined ? sql.fragment`` : sql.fragment`AND id < ${page.after}`;
  const rows = await db.inTenant(tenantId, (tx) =>
    tx.any(sql.type(keyRow)`
      SELECT ${COLUMNS} FROM api_keys WHERE tenant_id = ${tenantId} ${after} ORDER BY id DESC LIMIT ${page.size + 1}`),
  );
  return rows.map(toApiKey);
}

/** Revokes a key; a revoked one keeps its first time. NOT_FOUND if it is not this tenant's. */
export async function revokeApiKey(db: Database, tenantId: TenantId, keyId: KeyId): Promise<ApiKey> {
  const row = await db.inTenant(tenantId, (tx) =>
    tx.maybeOne(sql.type(keyRow)`
      UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(keyId)} RETURNING ${COLUMNS}`),
  );
  if (row === null) throw notFound('key', keyId);
  return toApiKey(row);
}
