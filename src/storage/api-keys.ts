// API keys. Table: api_keys. Looked up at authentication as dispatch_engine, by id alone; else as dispatch_tenant.
import { z } from 'zod';
import { PLATFORM } from '../domain/audit.ts';
import { DispatchError, notFound } from '../domain/errors.ts';
import { idFromUuid, type KeyId, type TenantId, uuidOf } from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import { type KeyRole, ROLES } from '../domain/roles.ts';
import type { ApiKey } from '../domain/tenant.ts';
import { type Database, sql } from './database.ts';

const keyRow = z.object({
  tenant_id: z.string(),
  id: z.string(),
  display_name: z.string(),
  created_at: z.number(),
  expires_at: z.number().nullable(),
  revoked_at: z.number().nullable(),
  role: z.enum(ROLES),
  last_used_at: z.number().nullable(),
});

const COLUMNS = sql.fragment`tenant_id, id, display_name, created_at, expires_at, revoked_at, role, last_used_at`;

function toApiKey(row: z.infer<typeof keyRow>): ApiKey {
  return {
    keyId: idFromUuid('key', row.id) as KeyId,
    tenantId: row.tenant_id as TenantId,
    displayName: row.display_name,
    createdAtMs: row.created_at,
    expiresAtMs: row.expires_at ?? undefined,
    revokedAtMs: row.revoked_at ?? undefined,
    role: row.role,
    lastUsedAtMs: row.last_used_at ?? undefined,
  };
}

/** Most keys of one tenant that are neither revoked nor expired. */
const MAX_LIVE_KEYS = 100;

/** What authentication needs of a key. */
export type KeyRecord = {
  /** PLATFORM for a platform-admin's. */
  readonly tenantId: TenantId;
  readonly hash: Buffer;
  readonly role: KeyRole;
  /** Neither revoked nor expired. */
  readonly isLive: boolean;
  /** Until it expires; undefined if it never does. */
  readonly expiresInMs: number | undefined;
};

const keyRecord = z.object({
  tenant_id: z.string(),
  hash: z.instanceof(Buffer),
  role: z.enum(ROLES),
  is_live: z.boolean(),
  expires_in: z.number().nullable(),
});

/** The key with this id; undefined if there is none. Notes that it was used, to the hour. */
export async function findKey(db: Pick<Database, 'many'>, keyId: KeyId): Promise<KeyRecord | undefined> {
  const row = await db.many.maybeOne(sql.type(keyRecord)`
    SELECT tenant_id, hash, role, revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) AS is_live,
      extract(epoch FROM expires_at - now())::float8 * 1000 AS expires_in
    FROM api_keys WHERE id = ${uuidOf(keyId)}`);
  if (row === null) return undefined;
  return {
    tenantId: row.tenant_id as TenantId,
    hash: row.hash,
    role: row.role,
    isLive: row.is_live,
    expiresInMs: row.expires_in ?? undefined,
  };
}

/** Notes that a key was used; writes at most once an hour. */
export async function noteKeyUse(db: Pick<Database, 'many'>, keyId: KeyId): Promise<void> {
  await db.many.query(sql.typeAlias('void')`
    UPDATE api_keys SET last_used_at = now()
    WHERE id = ${uuidOf(keyId)} AND (last_used_at IS NULL OR last_used_at < now() - interval '1 hour')`);
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
    readonly role: KeyRole;
  },
): Promise<ApiKey> {
  const expiry =
    key.expiresAtMs === undefined
      ? sql.fragment`NULL`
      : sql.fragment`to_timestamp(${key.expiresAtMs / 1000})`;
  const owner =
    tenantId === PLATFORM
      ? sql.fragment`(VALUES (${PLATFORM})) AS platform (tenant_id)`
      : sql.fragment`tenants WHERE tenant_id = ${tenantId} AND state <> 'deleting'`;
  return db.inTenant(tenantId, async (tx) => {
    const live = await tx.oneFirst(sql.typeAlias('count')`
      SELECT count(*) AS count FROM api_keys
      WHERE tenant_id = ${tenantId} AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())`);
    if (live >= MAX_LIVE_KEYS) {
      const message = `${live} keys are live, which is the most; revoke one first`;
      throw new DispatchError('RESOURCE_EXHAUSTED', message, { reason: 'TOO_MANY_KEYS' });
    }
    const row = await tx.maybeOne(sql.type(keyRow)`
      INSERT INTO api_keys (tenant_id, id, hash, display_name, expires_at, role)
      SELECT tenant_id, ${uuidOf(key.keyId)}::uuid, ${sql.binary(key.hash)}, ${key.displayName}, ${expiry}, ${key.role}
      FROM ${owner} RETURNING ${COLUMNS}`);
    if (row === null) throw notFound('tenant', tenantId);
    return toApiKey(row);
  });
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
  return db.inTenant(tenantId, async (tx) => {
    const row = await tx.maybeOne(sql.type(keyRow)`
      UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(keyId)} RETURNING ${COLUMNS}`);
    if (row === null) throw notFound('key', keyId);
    return toApiKey(row);
  });
}
