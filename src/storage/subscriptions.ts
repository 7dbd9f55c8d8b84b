// Subscriptions and their secrets. Tables: subscriptions, subscription_secrets, tenants (config_version). Runs as
// dispatch_tenant. Every change grows the tenant's config_version in its own transaction: that is what publishing on
// every instance checks.
import { z } from 'zod';
import { DispatchError, notFound } from '../domain/errors.ts';
import { idFromUuid, type SubscriptionId, type TenantId, uuidOf } from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import type { Sealed } from '../domain/sealing.ts';
import {
  MAX_LIVE_SECRETS,
  type Subscription,
  type SubscriptionSettings,
  type SubscriptionState,
} from '../domain/subscription.ts';
import { type Database, sql, type TenantTransaction } from './database.ts';

/** Most subscriptions of one tenant. */
export const MAX_SUBSCRIPTIONS = 10_000;

/** A retry policy as it lies in a jsonb column. */
export const retryPolicySchema = z.object({
  schedule: z.discriminatedUnion('kind', [
    z.object({ kind: z.literal('list'), delaysMs: z.array(z.number()) }),
    z.object({
      kind: z.literal('exponential'),
      baseMs: z.number(),
      factor: z.number(),
      capMs: z.number(),
      maxAttempts: z.number(),
    }),
  ]),
  jitter: z.enum(['full', 'none']),
  maxAgeMs: z.number().optional(),
});

const subscriptionRow = z.object({
  tenant_id: z.string(),
  id: z.string(),
  url: z.string(),
  event_types: z.array(z.string()),
  description: z.string(),
  headers: z.record(z.string(), z.string()),
  retry_policy: retryPolicySchema.nullable(),
  attempt_timeout_ms: z.number(),
  metadata: z.record(z.string(), z.string()),
  state: z.enum(['active', 'paused', 'disabled']),
  disabled_reason: z.string(),
  version: z.number(),
  created_at: z.number(),
  updated_at: z.number(),
});

const COLUMNS = sql.fragment`tenant_id, id, url, event_types, description, headers, retry_policy, attempt_timeout_ms,
  metadata, state, disabled_reason, version, created_at, updated_at`;

function toSubscription(row: z.infer<typeof subscriptionRow>): Subscription {
  return {
    tenantId: row.tenant_id as TenantId,
    subscriptionId: idFromUuid('sub', row.id) as SubscriptionId,
    url: row.url,
    eventTypes: row.event_types,
    description: row.description,
    headers: row.headers,
    retryPolicy: row.retry_policy ?? undefined,
    attemptTimeoutMs: row.attempt_timeout_ms,
    metadata: row.metadata,
    state: row.state,
    disabledReason: row.disabled_reason,
    version: row.version,
    createdAtMs: row.created_at,
    updatedAtMs: row.updated_at,
  };
}

/** A new secret, sealed; the plain one is the caller's to show once. */
export type NewSecret = { readonly uuid: string; readonly sealed: Sealed };

/** Stores a subscription and its first secret. NOT_FOUND for an unknown tenant, RESOURCE_EXHAUSTED at the limit. */
export async function createSubscription(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  settings: SubscriptionSettings,
  secret: NewSecret,
): Promise<Subscription> {
  return db.inTenant(tenantId, async (tx) => {
    await changeConfig(tx, tenantId);
    const count = await tx.oneFirst(sql.type(z.object({ count: z.number() }))`
      SELECT count(*) AS count FROM subscriptions WHERE tenant_id = ${tenantId} AND deleted_at IS NULL`);
    if (count >= MAX_SUBSCRIPTIONS) {
      const message = `tenant ${tenantId} has ${count} subscriptions, which is the most it may have`;
      throw new DispatchError('RESOURCE_EXHAUSTED', message, { reason: 'TOO_MANY_SUBSCRIPTIONS' });
    }
    const row = await tx.one(sql.type(subscriptionRow)`
      INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, retry_policy,
        attempt_timeout_ms, metadata, state)
      VALUES (${tenantId}, ${uuidOf(subscriptionId)}, ${settings.url}, ${sql.array([...settings.eventTypes], 'text')},
        ${settings.description}, ${sql.jsonb(settings.headers)}, ${policyValue(settings)},
        ${settings.attemptTimeoutMs}, ${sql.jsonb(settings.metadata)}, 'active')
      RETURNING ${COLUMNS}`);
    await insertSecret(tx, tenantId, subscriptionId, secret);
    return toSubscription(row);
  });
}

const policyValue = (settings: SubscriptionSettings) =>
  settings.retryPolicy === undefined ? sql.fragment`NULL` : sql.jsonb(settings.retryPolicy);

/** Reads one. NOT_FOUND if it is not this tenant's. */
export async function getSubscription(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
): Promise<Subscription> {
  return db.inTenant(tenantId, (tx) => readOne(tx, tenantId, subscriptionId));
}

async function readOne(
  tx: TenantTransaction,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
): Promise<Subscription> {
  const row = await tx.maybeOne(sql.type(subscriptionRow)`
    SELECT ${COLUMNS} FROM subscriptions
    WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)} AND deleted_at IS NULL`);
  if (row === null) throw notFound('subscription', subscriptionId);
  return toSubscription(row);
}

/** One more than a page, newest first. */
export async function listSubscriptions(
  db: Database,
  tenantId: TenantId,
  page: Page,
  state: SubscriptionState | undefined,
): Promise<Subscription[]> {
  const after = page.after === undefined ? sql.fragment`` : sql.fragment`AND id < ${page.after}`;
  const inState = state === undefined ? sql.fragment`` : sql.fragment`AND state = ${state}`;
  const rows = await db.inTenant(tenantId, (tx) =>
    tx.any(sql.type(subscriptionRow)`
      SELECT ${COLUMNS} FROM subscriptions
      WHERE tenant_id = ${tenantId} AND deleted_at IS NULL ${after} ${inState} ORDER BY id DESC LIMIT ${page.size + 1}`),
  );
  return rows.map(toSubscription);
}

/**
 * Replaces the settings by what `change` makes of them, under a lock. `version`, if given, must be the stored one:
 * ABORTED otherwise.
 */
export async function updateSubscription(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  version: number | undefined,
  change: (before: Subscription) => SubscriptionSettings,
): Promise<Subscription> {
  return db.inTenant(tenantId, async (tx) => {
    await changeConfig(tx, tenantId);
    const before = await readOne(tx, tenantId, subscriptionId);
    assertVersion(before, version);
    const after = change(before);
    const row = await tx.one(sql.type(subscriptionRow)`
      UPDATE subscriptions SET url = ${after.url}, event_types = ${sql.array([...after.eventTypes], 'text')},
        description = ${after.description}, headers = ${sql.jsonb(after.headers)}, retry_policy = ${policyValue(after)},
        attempt_timeout_ms = ${after.attemptTimeoutMs}, metadata = ${sql.jsonb(after.metadata)},
        version = version + 1, updated_at = now()
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)} RETURNING ${COLUMNS}`);
    return toSubscription(row);
  });
}

/** Hides a subscription at once; maintenance cancels its deliveries and removes its rows. */
export async function deleteSubscription(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  version: number | undefined,
): Promise<void> {
  await db.inTenant(tenantId, async (tx) => {
    await changeConfig(tx, tenantId);
    assertVersion(await readOne(tx, tenantId, subscriptionId), version);
    await tx.query(sql.typeAlias('void')`
      UPDATE subscriptions SET deleted_at = now() WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)}`);
    await tx.query(sql.typeAlias('void')`
      DELETE FROM subscription_secrets
      WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)}`);
  });
}

/** Sets the state; unchanged (also its version) if it is that already. */
export async function setSubscriptionState(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  state: SubscriptionState,
  disabledReason: string,
): Promise<Subscription> {
  return db.inTenant(tenantId, async (tx) => {
    await changeConfig(tx, tenantId);
    const before = await readOne(tx, tenantId, subscriptionId);
    if (before.state === state) return before;
    const row = await tx.one(sql.type(subscriptionRow)`
      UPDATE subscriptions SET state = ${state}, disabled_reason = ${disabledReason}, version = version + 1,
        updated_at = now()
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)} RETURNING ${COLUMNS}`);
    return toSubscription(row);
  });
}

/**
 * Adds a secret; those there were go on for `overlapMs`, or for what was left to them if that is less. Returns when
 * the last of them ends. RESOURCE_EXHAUSTED if that would make more than 5 live secrets.
 */
export async function rotateSecret(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  overlapMs: number,
  secret: NewSecret,
): Promise<{ readonly previousExpireAtMs: number }> {
  return db.inTenant(tenantId, async (tx) => {
    await changeConfig(tx, tenantId);
    await readOne(tx, tenantId, subscriptionId);
    const row = await tx.one(sql.type(z.object({ ends: z.number(), live: z.number() }))`
      WITH cut AS (
        UPDATE subscription_secrets
        SET expires_at = least(coalesce(expires_at, 'infinity'), now() + ${overlapMs} * interval '1 ms')
        WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)}
          AND (expires_at IS NULL OR expires_at > now())
        RETURNING expires_at)
      SELECT coalesce(max(expires_at), now()) AS ends, count(*) FILTER (WHERE expires_at > now()) AS live FROM cut`);
    if (row.live >= MAX_LIVE_SECRETS) {
      const message = `${MAX_LIVE_SECRETS} secrets are live already; wait for one to end, or rotate with a shorter overlap`;
      throw new DispatchError('RESOURCE_EXHAUSTED', message, { reason: 'TOO_MANY_SECRETS' });
    }
    await tx.query(sql.typeAlias('void')`
      DELETE FROM subscription_secrets WHERE tenant_id = ${tenantId}
        AND subscription_id = ${uuidOf(subscriptionId)} AND expires_at <= now()`);
    await insertSecret(tx, tenantId, subscriptionId, secret);
    await tx.query(sql.typeAlias('void')`
      UPDATE subscriptions SET version = version + 1, updated_at = now()
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)}`);
    return { previousExpireAtMs: row.ends };
  });
}

async function insertSecret(
  tx: TenantTransaction,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  secret: NewSecret,
): Promise<void> {
  await tx.query(sql.typeAlias('void')`
    INSERT INTO subscription_secrets (tenant_id, subscription_id, id, master_key_id, sealed)
    VALUES (${tenantId}, ${uuidOf(subscriptionId)}, ${secret.uuid}, ${secret.sealed.masterKeyId},
      ${sql.binary(secret.sealed.bytes)})`);
}

/** Grows the version that publishing checks, and locks the tenant's row: changes to one tenant come one by one. */
async function changeConfig(tx: TenantTransaction, tenantId: TenantId): Promise<void> {
  const { rowCount } = await tx.query(sql.typeAlias('void')`
    UPDATE tenants SET config_version = config_version + 1 WHERE tenant_id = ${tenantId} AND state <> 'deleting'`);
  if (rowCount === 0) throw notFound('tenant', tenantId);
}

function assertVersion(before: Subscription, version: number | undefined): void {
  if (version === undefined || version === before.version) return;
  throw new DispatchError('ABORTED', 'the subscription was changed since its etag was read; read it again', {
    reason: 'ETAG_MISMATCH',
  });
}
