// Targets: subscriptions as matching and sending see them, made of what lies in the database.
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { DEFAULT_RETRY_POLICY, type RetryPolicy } from '../domain/backoff.ts';
import { type EndpointCredentials, type EndpointTls, NO_CREDENTIALS } from '../domain/credentials.ts';
import { idBytes, idFromUuid, type SubscriptionId, type TenantId } from '../domain/ids.ts';
import type { Quota } from '../domain/quota.ts';
import type { Sealed, Unseal } from '../domain/sealing.ts';
import { type KeyRoom, SCHEMES, type SigningKey, signingKey } from '../domain/signature.ts';
import type { BatchPolicy, OnDeadLetter, Ordering, SubscriptionState } from '../domain/subscription.ts';
import { breakerSchema } from './breakers.ts';
import { batchSchema, ON_DEAD_LETTER, ORDERINGS, retryPolicySchema, STATES } from './subscriptions.ts';
import { ownQuotaSchema } from './tenants.ts';

/** Where a subscription's deliveries go, and how. */
export type Target = {
  readonly subscriptionId: SubscriptionId;
  /** 16 bytes. */
  readonly idBytes: Buffer;
  readonly origin: string;
  /** Path and query. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly retryPolicy: RetryPolicy;
  readonly attemptTimeoutMs: number;
  readonly state: SubscriptionState;
  /** Newest first. `liveUntilMs` is on the monotonic clock. */
  readonly secrets: readonly { readonly key: SigningKey; readonly liveUntilMs: number }[];
  /** Their keys, while none of them is to end; undefined: look at each. */
  readonly lastingKeys: readonly SigningKey[] | undefined;
  /** Whether the predecessor's headers are sent too. */
  readonly compatibilityHeaders: boolean;
  /** Over all workers; undefined: no limit. */
  readonly maxPerSecond: number | undefined;
  readonly maxInFlight: number | undefined;
  readonly credentials: EndpointCredentials;
  /** Changes when the connection's identity does: a part of the key of its pool. Empty without one. */
  readonly tlsId: string;
  /** The breaker's last transition; times on the monotonic clock. Undefined: it never opened. */
  readonly breaker: TargetBreaker | undefined;
  /** Whether the tenant may have http endpoints and token URLs. */
  readonly allowHttp: boolean;
  readonly url: string;
  readonly ordering: Ordering;
  readonly onDeadLetter: OnDeadLetter;
  readonly batch: BatchPolicy | undefined;
  /** Patterns. */
  readonly eventTypes: readonly string[];
};

export type TargetBreaker = {
  readonly phase: 'open' | 'closed';
  readonly openCount: number;
  readonly changedAtMs: number;
  /** The same on the database's clock: which transition it was. */
  readonly writtenAtMs: number;
  /** Of an open one: when a probe may go out. */
  readonly untilMs: number;
};

/** A tenant, and one of its subscriptions, if there is one. */
export const configRow = z.object({
  config_version: z.number(),
  marked_changes: z.number(),
  read_at_ms: z.number(),
  live_count: z.number().nullable(),
  /** What the next page begins after; its subscription may be gone. */
  at: z.string().nullable(),
  changed_in: z.number().nullable(),
  is_deleted: z.boolean(),
  tenant_state: z.enum(['active', 'suspended', 'deleting']),
  id: z.string().nullable(),
  url: z.string().nullable(),
  event_types: z.array(z.string()).nullable(),
  headers: z.record(z.string(), z.string()).nullable(),
  retry_policy: retryPolicySchema.nullable(),
  attempt_timeout_ms: z.number().nullable(),
  state: z.enum(STATES).nullable(),
  sealed: z.array(z.instanceof(Buffer)).nullable(),
  master_key_ids: z.array(z.string()).nullable(),
  live_ms: z.array(z.number().nullable()).nullable(),
  schemes: z.array(z.enum(SCHEMES)).nullable(),
  quota: ownQuotaSchema,
  compatibility_headers: z.boolean().nullable(),
  max_per_second: z.number().nullable(),
  max_in_flight: z.number().nullable(),
  credentials: z.instanceof(Buffer).nullable(),
  credentials_key_id: z.string().nullable(),
  breaker: breakerSchema.nullable(),
  ordering: z.enum(ORDERINGS).nullable(),
  on_dead_letter: z.enum(ON_DEAD_LETTER).nullable(),
  batch: batchSchema.nullable(),
});
export type ConfigRow = z.infer<typeof configRow>;

/**
 * One copy of what many subscriptions of a tenant have in common: of ten thousand each delivery is to another, and what is
 * theirs alone is in no cache.
 */
export function createSame() {
  const texts = new Map<string, string>();
  const objects = new Map<string, unknown>();
  return {
    text(text: string): string {
      const known = texts.get(text);
      if (known === undefined) texts.set(text, text);
      return known ?? text;
    },
    /** Of JSON. */
    object<T>(value: T): T {
      const key = JSON.stringify(value);
      const known = objects.get(key);
      if (known === undefined) objects.set(key, value);
      return (known as T | undefined) ?? value;
    },
  };
}

/** Throws if a secret was changed, moved or its master key is absent. */
export function toTarget(
  tenantId: TenantId,
  row: ConfigRow,
  unseal: Unseal,
  quota: Quota,
  nowMs: number,
  same: ReturnType<typeof createSame>,
  keys: KeyRoom,
): Target {
  const subscriptionId = idFromUuid('sub', row.id ?? '') as SubscriptionId;
  const context = { tenantId, resourceId: subscriptionId, column: 'secret' };
  const { origin, pathname, search } = new URL(row.url ?? '');
  const sealed = { masterKeyId: row.credentials_key_id ?? '', bytes: row.credentials ?? Buffer.alloc(0) };
  const credentials =
    row.credentials === null ? NO_CREDENTIALS : openCredentials(unseal, tenantId, subscriptionId, sealed);
  const secrets = (row.sealed ?? []).map((bytes, i) => ({
    key: signingKey(
      row.schemes?.[i] ?? 'v1',
      unseal(context, { masterKeyId: row.master_key_ids?.[i] ?? '', bytes }),
      keys,
    ),
    liveUntilMs: nowMs + (row.live_ms?.[i] ?? Number.POSITIVE_INFINITY),
  }));
  const allLast = secrets.every((secret) => secret.liveUntilMs === Number.POSITIVE_INFINITY);
  // In the order of use: first what a publish looks at, then what an attempt does, and last what most never do. In this order
  // they lie in memory, and of very many targets each line of it is one that no cache has.
  return {
    subscriptionId,
    idBytes: idBytes(subscriptionId),
    state: row.state ?? 'disabled',
    ordering: row.ordering ?? 'none',
    breaker: row.breaker === null ? undefined : targetBreaker(row.breaker, nowMs),
    maxPerSecond: row.max_per_second ?? undefined,
    maxInFlight: row.max_in_flight ?? undefined,
    batch: row.batch === null ? undefined : same.object(row.batch),
    attemptTimeoutMs: row.attempt_timeout_ms ?? 0,
    credentials,
    allowHttp: quota.allowHttpEndpoints,
    origin: same.text(origin),
    lastingKeys: allLast ? secrets.map((secret) => secret.key) : undefined,
    headers: same.object(row.headers ?? {}),
    compatibilityHeaders: row.compatibility_headers ?? false,
    path: same.text(pathname + search),
    tlsId: credentials.tls === undefined ? '' : tlsIdOf(subscriptionId, credentials.tls),
    retryPolicy: same.object(row.retry_policy ?? DEFAULT_RETRY_POLICY),
    onDeadLetter: row.on_dead_letter ?? 'skip',
    secrets,
    url: same.text(row.url ?? ''),
    eventTypes: same.object(row.event_types ?? []),
  };
}

const targetBreaker = (row: z.infer<typeof breakerSchema>, nowMs: number): TargetBreaker => ({
  phase: row.phase,
  openCount: row.openCount,
  changedAtMs: nowMs - row.agoMs,
  writtenAtMs: row.changedAtMs,
  untilMs: nowMs + (row.openForMs ?? 0),
});

/** Credentials as they are sealed: a JSON document. Throws if it was changed, moved or its master key is absent. */
export function openCredentials(
  unseal: Unseal,
  tenantId: TenantId,
  subscriptionId: SubscriptionId,
  sealed: Sealed,
): EndpointCredentials {
  const context = { tenantId, resourceId: subscriptionId, column: 'credentials' };
  return JSON.parse(unseal(context, sealed).toString('utf8')) as EndpointCredentials;
}

/** Two subscriptions never share a connection that one of them authenticated. */
function tlsIdOf(subscriptionId: SubscriptionId, tls: EndpointTls): string {
  const hash = createHash('sha256');
  for (const part of [tls.certificatePem, tls.privateKeyPem, tls.caPem]) hash.update(part).update('\0');
  return `${subscriptionId}/${hash.digest('base64url')}`;
}
