// Subscriptions and their secrets. Tables: subscriptions, subscription_secrets, tenants (config_version). Runs as
// dispatch_tenant. Every change grows the tenant's config_version in its own transaction: that is what publishing on
// every instance checks.
import { z } from 'zod';
import { DispatchError, mustBeVerified, notFound } from '../domain/errors.ts';
import { idFromUuid, type SubscriptionId, type TenantId, uuidOf } from '../domain/ids.ts';
import type { Page } from '../domain/page.ts';
import { quotaExceeded } from '../domain/quota.ts';
import type { Sealed } from '../domain/sealing.ts';
import { SCHEMES, type SignatureScheme } from '../domain/signature.ts';
import {
  MAX_LIVE_SECRETS,
  type Subscription,
  type SubscriptionSettings,
  type SubscriptionState,
} from '../domain/subscription.ts';
import { BREAKER_JSON, breakerSchema, toBreaker } from './breakers.ts';
import { type Database, sql, type TenantTransaction } from './database.ts';

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

/** A batch policy as it lies in a jsonb column. */
export const batchSchema = z.object({
  maxEvents: z.number(),
  maxBytes: z.number(),
  maxWaitMs: z.number(),
  format: z.enum(['json_array', 'cloudevents']),
});

/** States as they are stored. */
export const STATES = ['active', 'paused', 'disabled', 'pending_verification'] as const;
export const ORDERINGS = ['none', 'subscription', 'key'] as const;
export const ON_DEAD_LETTER = ['skip', 'stop'] as const;

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
  state: z.enum(STATES),
  disabled_reason: z.string(),
  version: z.number(),
  created_at: z.number(),
  updated_at: z.number(),
  signature_schemes: z.array(z.enum(SCHEMES)),
  compatibility_headers: z.boolean(),
  max_per_second: z.number().nullable(),
  max_in_flight: z.number().nullable(),
  sealed: z.instanceof(Buffer).nullable(),
  master_key_id: z.string().nullable(),
  public_keys: z.array(z.instanceof(Buffer)).nullable(),
  breaker: breakerSchema.nullable(),
  ordering: z.enum(ORDERINGS),
  on_dead_letter: z.enum(ON_DEAD_LETTER),
  batch: batchSchema.nullable(),
  verified_at: z.number().nullable(),
  failing_since: z.number().nullable(),
});

// Only in SELECTs of `subscriptions s`: what belongs to a subscription and lies in other tables comes along.
const COLUMNS = sql.fragment`s.tenant_id, s.id, s.url, s.event_types, s.description, s.headers, s.retry_policy,
  s.attempt_timeout_ms, s.metadata, s.state, s.disabled_reason, s.version, s.created_at, s.updated_at,
  s.signature_schemes, s.compatibility_headers, s.max_per_second, s.max_in_flight, c.sealed, c.master_key_id,
  s.ordering, s.on_dead_letter, s.batch, s.verified_at,
  (SELECT h.failing_since FROM subscription_health h
    WHERE h.tenant_id = s.tenant_id AND h.subscription_id = s.id) AS failing_since,
  (SELECT array_agg(k.public_key ORDER BY k.created_at DESC, k.id DESC) FROM subscription_secrets k
    WHERE k.tenant_id = s.tenant_id AND k.subscription_id = s.id AND k.scheme = 'v1a'
      AND (k.expires_at IS NULL OR k.expires_at > now())) AS public_keys,
  ${BREAKER_JSON} AS breaker`;
const FROM = sql.fragment`subscriptions s LEFT JOIN subscription_credentials c
  ON c.tenant_id = s.tenant_id AND c.subscription_id = s.id`;

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
    signatureSchemes: row.signature_schemes,
    compatibilityHeaders: row.compatibility_headers,
    maxPerSecond: row.max_per_second ?? undefined,
    maxInFlight: row.max_in_flight ?? undefined,
    credentials:
      row.sealed === null ? undefined : { masterKeyId: row.master_key_id ?? '', bytes: row.sealed },
    publicKeys: row.public_keys ?? [],
    breaker: row.breaker === null ? undefined : toBreaker(row.breaker),
    ordering: row.ordering,
    onDeadLetter: row.on_dead_letter,
    batch: row.batch ?? undefined,
    verifiedAtMs: row.verified_at ?? undefined,
    failingSinceMs: row.failing_since ?? undefined,
  };
}

/** A new secret, sealed; the plain one is the caller's to show once. */
export type NewSecret = {
  readonly uuid: string;
  readonly scheme: SignatureScheme;
  readonly sealed: Sealed;
  /** Of v1a. */
  readonly publicKey: Buffer | undefined;
};

/** What a change does to the credentials: replaces, removes (undefined), or leaves them. */
export type CredentialsChange = { readonly sealed: Sealed | undefined } | 'unchanged';

/**
 * Stores a subscription and its first secrets. NOT_FOUND for an unknown tenant; RESOURCE_EXHAUSTED when it has
 * `maxSubscriptions` already.
 */
export async function createSubscription(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  settings: SubscriptionSettings,
  secrets: readonly NewSecret[],
  credentials: CredentialsChange,
  maxSubscriptions: number,
  state: 'active' | 'pending_verification',
): Promise<Subscription> {
  return db.inTenant(tenantId, async (tx) => {
    const configVersion = await changeConfig(tx, tenantId);
    const count = await tx.oneFirst(sql.typeAlias('count')`
      SELECT count(*) AS count FROM subscriptions WHERE tenant_id = ${tenantId} AND deleted_at IS NULL`);
    if (count >= maxSubscriptions) {
      const explanation = `it has ${count} subscriptions, and at most ${maxSubscriptions}`;
      throw quotaExceeded(tenantId, 'maxSubscriptions', maxSubscriptions, count, explanation);
    }
    await tx.query(sql.typeAlias('void')`
      INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, retry_policy,
        attempt_timeout_ms, metadata, state, signature_schemes, compatibility_headers, max_per_second, max_in_flight,
        ordering, on_dead_letter, batch, config_version)
      VALUES (${tenantId}, ${uuidOf(subscriptionId)}, ${settings.url}, ${sql.array([...settings.eventTypes], 'text')},
        ${settings.description}, ${sql.jsonb(settings.headers)}, ${policyValue(settings)},
        ${settings.attemptTimeoutMs}, ${sql.jsonb(settings.metadata)}, ${state},
        ${sql.array([...settings.signatureSchemes], 'text')}, ${settings.compatibilityHeaders},
        ${settings.maxPerSecond ?? null}, ${settings.maxInFlight ?? null}, ${settings.ordering},
        ${settings.onDeadLetter}, ${batchValue(settings)}, ${configVersion})`);
    for (const secret of secrets) await insertSecret(tx, tenantId, subscriptionId, secret);
    await writeCredentials(tx, tenantId, subscriptionId, credentials);
    return readOne(tx, tenantId, subscriptionId);
  });
}

async function writeCredentials(
  tx: TenantTransaction,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  credentials: CredentialsChange,
): Promise<void> {
  if (credentials === 'unchanged') return;
  const { sealed } = credentials;
  if (sealed === undefined) {
    await tx.query(sql.typeAlias('void')`
      DELETE FROM subscription_credentials
      WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)}`);
    return;
  }
  await tx.query(sql.typeAlias('void')`
    INSERT INTO subscription_credentials (tenant_id, subscription_id, master_key_id, sealed)
    VALUES (${tenantId}, ${uuidOf(subscriptionId)}, ${sealed.masterKeyId}, ${sql.binary(sealed.bytes)})
    ON CONFLICT (tenant_id, subscription_id) DO UPDATE SET master_key_id = excluded.master_key_id,
      sealed = excluded.sealed, updated_at = now()`);
}

const batchValue = (settings: SubscriptionSettings) =>
  settings.batch === undefined ? sql.fragment`NULL` : sql.jsonb(settings.batch);

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
    SELECT ${COLUMNS} FROM ${FROM}
    WHERE s.tenant_id = ${tenantId} AND s.id = ${uuidOf(subscriptionId)} AND s.deleted_at IS NULL`);
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
  const after = page.after === undefined ? sql.fragment`` : sql.fragment`AND s.id < ${page.after}`;
  const inState = state === undefined ? sql.fragment`` : sql.fragment`AND s.state = ${state}`;
  const rows = await db.inTenant(tenantId, (tx) =>
    tx.any(sql.type(subscriptionRow)`
      SELECT ${COLUMNS} FROM ${FROM}
      WHERE s.tenant_id = ${tenantId} AND s.deleted_at IS NULL ${after} ${inState}
      ORDER BY s.id DESC LIMIT ${page.size + 1}`),
  );
  return rows.map(toSubscription);
}

/** What an update makes of a subscription. */
export type SubscriptionChange = {
  readonly settings: SubscriptionSettings;
  readonly credentials: CredentialsChange;
  /** Of schemes that it did not sign with before. */
  readonly secrets: readonly NewSecret[];
  /** It is another endpoint that has to prove itself first. */
  readonly mustVerify: boolean;
};

/**
 * Replaces the settings by what `change` makes of them, under a lock. `version`, if given, must be the stored one:
 * ABORTED otherwise. Secrets of schemes that are no longer signed with are removed.
 */
export async function updateSubscription(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  version: number | undefined,
  change: (before: Subscription) => SubscriptionChange,
): Promise<Subscription> {
  return db.inTenant(tenantId, async (tx) => {
    const configVersion = await changeConfig(tx, tenantId);
    const before = await readOne(tx, tenantId, subscriptionId);
    assertVersion(before, version);
    const { settings: after, credentials, secrets, mustVerify } = change(before);
    const isNew = after.url !== before.url;
    await tx.query(sql.typeAlias('void')`
      UPDATE subscriptions SET url = ${after.url}, event_types = ${sql.array([...after.eventTypes], 'text')},
        description = ${after.description}, headers = ${sql.jsonb(after.headers)}, retry_policy = ${policyValue(after)},
        attempt_timeout_ms = ${after.attemptTimeoutMs}, metadata = ${sql.jsonb(after.metadata)},
        signature_schemes = ${sql.array([...after.signatureSchemes], 'text')},
        compatibility_headers = ${after.compatibilityHeaders}, max_per_second = ${after.maxPerSecond ?? null},
        max_in_flight = ${after.maxInFlight ?? null}, ordering = ${after.ordering},
        on_dead_letter = ${after.onDeadLetter}, batch = ${batchValue(after)},
        verified_at = CASE WHEN ${isNew} THEN NULL ELSE verified_at END,
        state = CASE WHEN ${mustVerify} THEN 'pending_verification' ELSE state END,
        version = version + 1, config_version = ${configVersion}, updated_at = now()
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)}`);
    if (isNew) await forgetHealth(tx, tenantId, subscriptionId);
    if (after.ordering === 'none' || after.onDeadLetter === 'skip') {
      await openStoppedLines(tx, tenantId, subscriptionId);
    }
    await tx.query(sql.typeAlias('void')`
      DELETE FROM subscription_secrets WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)}
        AND scheme <> ALL(${sql.array([...after.signatureSchemes], 'text')})`);
    for (const secret of secrets) await insertSecret(tx, tenantId, subscriptionId, secret);
    await writeCredentials(tx, tenantId, subscriptionId, credentials);
    return readOne(tx, tenantId, subscriptionId);
  });
}

/** What was known of another endpoint, or of a time before somebody resumed it, counts no more. */
async function forgetHealth(
  tx: TenantTransaction,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
): Promise<void> {
  for (const table of ['subscription_health', 'subscription_probes']) {
    await tx.query(sql.typeAlias('void')`
      DELETE FROM ${sql.identifier([table])}
      WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)}`);
  }
}

/** Dead letters hold their lines no more: the rows that stand for them in the queue go. */
async function openStoppedLines(
  tx: TenantTransaction,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
): Promise<void> {
  await tx.query(sql.typeAlias('void')`
    DELETE FROM deliveries
    WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)} AND run_at = 'infinity'`);
}

/** Hides a subscription at once; maintenance cancels its deliveries and removes its rows. */
export async function deleteSubscription(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  version: number | undefined,
): Promise<void> {
  await db.inTenant(tenantId, async (tx) => {
    const configVersion = await changeConfig(tx, tenantId);
    assertVersion(await readOne(tx, tenantId, subscriptionId), version);
    await tx.query(sql.typeAlias('void')`
      UPDATE subscriptions SET deleted_at = now(), config_version = ${configVersion}
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)}`);
    await tx.query(sql.typeAlias('void')`
      DELETE FROM subscription_secrets
      WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)}`);
    await writeCredentials(tx, tenantId, subscriptionId, { sealed: undefined });
    await tx.query(sql.typeAlias('void')`
      DELETE FROM breakers WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)}`);
    await forgetHealth(tx, tenantId, subscriptionId);
    await openStoppedLines(tx, tenantId, subscriptionId);
  });
}

/**
 * Sets the state; unchanged (also its version) if it is that already. A subscription that has to be verified first is
 * FAILED_PRECONDITION.
 */
export async function setSubscriptionState(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  state: 'active' | 'paused',
): Promise<Subscription> {
  return db.inTenant(tenantId, async (tx) => {
    const configVersion = await changeConfig(tx, tenantId);
    const before = await readOne(tx, tenantId, subscriptionId);
    if (before.state === state) return before;
    if (before.state === 'pending_verification') throw mustBeVerified(subscriptionId);
    await tx.query(sql.typeAlias('void')`
      UPDATE subscriptions SET state = ${state}, disabled_reason = '', is_probed = false, version = version + 1,
        config_version = ${configVersion}, updated_at = now()
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)}`);
    if (state === 'active') await forgetHealth(tx, tenantId, subscriptionId);
    return readOne(tx, tenantId, subscriptionId);
  });
}

const idRow = z.object({ id: z.string() });

/** Disables subscriptions of a tenant, each for its reason. Returns those that were not disabled, nor deleted, before. */
export async function disableSubscriptions(
  db: Database,
  tenantId: TenantId,
  reasons: ReadonlyMap<SubscriptionId, string>,
): Promise<SubscriptionId[]> {
  const ids = sql.array([...reasons.keys()].map(uuidOf), 'uuid');
  const texts = sql.array([...reasons.values()], 'text');
  return db.inTenant(tenantId, async (tx) => {
    const configVersion = await changeConfig(tx, tenantId);
    const disabled = await tx.anyFirst(sql.type(idRow)`
      UPDATE subscriptions s SET state = 'disabled', disabled_reason = r.reason, is_probed = true,
        version = version + 1, config_version = ${configVersion}, updated_at = now()
      FROM unnest(${ids}, ${texts}) AS r (id, reason)
      WHERE s.tenant_id = ${tenantId} AND s.id = r.id AND s.state <> 'disabled' AND s.deleted_at IS NULL
      RETURNING s.id`);
    return disabled.map((id) => idFromUuid('sub', id) as SubscriptionId);
  });
}

/** Records that the endpoint at `url` proved itself; one that waited for that becomes active. */
export async function setVerified(
  db: Database,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  url: string,
): Promise<Subscription> {
  return db.inTenant(tenantId, async (tx) => {
    const configVersion = await changeConfig(tx, tenantId);
    const before = await readOne(tx, tenantId, subscriptionId);
    if (before.url !== url) {
      const message = 'the subscription’s URL was changed meanwhile; verify it again';
      throw new DispatchError('ABORTED', message, { reason: 'URL_CHANGED' });
    }
    await tx.query(sql.typeAlias('void')`
      UPDATE subscriptions SET verified_at = now(), version = version + 1, config_version = ${configVersion},
        updated_at = now(),
        state = CASE WHEN state = 'pending_verification' THEN 'active' ELSE state END
      WHERE tenant_id = ${tenantId} AND id = ${uuidOf(subscriptionId)}`);
    return readOne(tx, tenantId, subscriptionId);
  });
}

const cutRow = z.object({ ends: z.number(), live: z.number() });

/**
 * Adds a secret; those there were of its scheme go on for `overlapMs`, or for what was left to them if that is less. Returns when
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
    const configVersion = await changeConfig(tx, tenantId);
    await readOne(tx, tenantId, subscriptionId);
    const row = await tx.one(sql.type(cutRow)`
      WITH cut AS (
        UPDATE subscription_secrets
        SET expires_at = least(coalesce(expires_at, 'infinity'), now() + ${overlapMs} * interval '1 ms')
        WHERE tenant_id = ${tenantId} AND subscription_id = ${uuidOf(subscriptionId)} AND scheme = ${secret.scheme}
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
      UPDATE subscriptions SET version = version + 1, config_version = ${configVersion}, updated_at = now()
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
    INSERT INTO subscription_secrets (tenant_id, subscription_id, id, master_key_id, sealed, scheme, public_key)
    VALUES (${tenantId}, ${uuidOf(subscriptionId)}, ${secret.uuid}, ${secret.sealed.masterKeyId},
      ${sql.binary(secret.sealed.bytes)}, ${secret.scheme},
      ${secret.publicKey === undefined ? sql.fragment`NULL` : sql.binary(secret.publicKey)})`);
}

const configVersionRow = z.object({ config_version: z.number() });

/**
 * Grows the version that publishing checks, and locks the tenant's row: changes to one tenant come one by one. Returns the
 * version, which the caller sets on every subscription that it changes: others read those alone (read-config.ts).
 */
async function changeConfig(tx: TenantTransaction, tenantId: TenantId): Promise<number> {
  const version = await tx.maybeOneFirst(sql.type(configVersionRow)`
    UPDATE tenants SET config_version = config_version + 1, marked_changes = marked_changes + 1
    WHERE tenant_id = ${tenantId} AND state <> 'deleting' RETURNING config_version`);
  if (version === null) throw notFound('tenant', tenantId);
  return version;
}

function assertVersion(before: Subscription, version: number | undefined): void {
  if (version === undefined || version === before.version) return;
  throw new DispatchError('ABORTED', 'the subscription was changed since its etag was read; read it again', {
    reason: 'ETAG_MISMATCH',
  });
}
