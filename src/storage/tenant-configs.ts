// What matching and sending need to know of a tenant, cached in memory with a version.
// Publishing checks the version inside its own statement (ingest.ts), so matching is never stale; workers may act on
// a configuration that is up to MAX_AGE_MS old if a notification was lost.
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { DEFAULT_RETRY_POLICY, type RetryPolicy } from '../domain/backoff.ts';
import { type EndpointCredentials, type EndpointTls, NO_CREDENTIALS } from '../domain/credentials.ts';
import { createPatternIndex, type PatternIndex } from '../domain/event-type.ts';
import { idBytes, idFromUuid, type SubscriptionId, type TenantId } from '../domain/ids.ts';
import type { Quota } from '../domain/quota.ts';
import { type MasterKeys, type Sealed, type Unseal, unsealerOf } from '../domain/sealing.ts';
import { type KeyRoom, keyRoom, SCHEMES, type SigningKey, signingKey } from '../domain/signature.ts';
import type { BatchPolicy, OnDeadLetter, Ordering, SubscriptionState } from '../domain/subscription.ts';
import type { TenantState } from '../domain/tenant.ts';
import { BREAKER_JSON, breakerSchema } from './breakers.ts';
import { type Database, sql } from './database.ts';
import type { Statements } from './hot-pool.ts';
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
};

export type TargetBreaker = {
  readonly phase: 'open' | 'closed';
  readonly openCount: number;
  readonly changedAtMs: number;
  /** Of an open one: when a probe may go out. */
  readonly untilMs: number;
};

/** A tenant as matching and sending see it. */
export type TenantConfig = {
  readonly tenantId: TenantId;
  /** Another one for each that was read, from 1 on. */
  readonly serial: number;
  readonly version: number;
  readonly state: TenantState;
  /** What is in force. */
  readonly quota: Quota;
  readonly targets: ReadonlyMap<SubscriptionId, Target>;
  readonly matches: PatternIndex<Target>;
  /** Whether any of its subscriptions has an order: then its events are stored in the order they came in. */
  readonly isOrdered: boolean;
  /** Some subscription has batches. */
  readonly hasBatches: boolean;
};

const MAX_AGE_MS = 5_000;
/** After a check that failed none is tried for this long: a database that is away is not asked by every publish. */
const CHECK_REST_MS = 500;
const MAX_TENANTS = 5_000;

/** The cache. */
export type TenantConfigs = {
  /** The configuration, from memory or from the database; undefined for a tenant that does not exist. */
  readonly get: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  /** The same if it is in memory; asks for a check in the background once it is older than 5 s. */
  readonly peek: (tenantId: TenantId) => TenantConfig | undefined;
  /** Reads it anew from the database, whatever is in memory. */
  readonly reload: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  /** Forgets a tenant, or all: the next use reads it anew. */
  readonly forget: (tenantId: TenantId | undefined) => void;
};

type Entry = { readonly config: TenantConfig; checkedAtMs: number };

/** `now` is a monotonic clock in ms; `onError` hears of background checks that failed. */
export function createTenantConfigs(
  db: Pick<Database, 'many' | 'claims'>,
  masterKeys: MasterKeys,
  defaultQuota: Quota,
  now: () => number,
  onError: (error: unknown) => void,
): TenantConfigs {
  const entries = new Map<TenantId, Entry>(); // in the order of their last load: the oldest is evicted first
  const loading = new Map<TenantId, Promise<TenantConfig | undefined>>();
  const toCheck = new Set<TenantId>();
  let checking = false;
  let restUntilMs = Number.NEGATIVE_INFINITY;

  /** Reads a configuration and keeps it, unless forget() overtook it: then it serves its waiters only. */
  function load(tenantId: TenantId): Promise<TenantConfig | undefined> {
    const startedAt = now();
    const mine = readConfig(db.claims, masterKeys, defaultQuota, tenantId, now).then(
      (config) => {
        if (loading.get(tenantId) !== mine) return config;
        loading.delete(tenantId);
        if (config !== undefined) keep(config, startedAt);
        return config;
      },
      (error) => {
        if (loading.get(tenantId) === mine) loading.delete(tenantId);
        throw error;
      },
    );
    loading.set(tenantId, mine);
    return mine;
  }

  function keep(config: TenantConfig, checkedAtMs: number): void {
    entries.delete(config.tenantId);
    entries.set(config.tenantId, { config, checkedAtMs });
    const oldest = entries.size > MAX_TENANTS ? entries.keys().next().value : undefined;
    if (oldest !== undefined) entries.delete(oldest);
  }

  async function check(): Promise<void> {
    checking = true;
    try {
      const ids = [...toCheck];
      toCheck.clear();
      const startedAt = now();
      const versions = await readVersions(db, ids);
      for (const id of ids) {
        const entry = entries.get(id);
        if (entry === undefined) continue;
        if (versions.get(id) === entry.config.version) entry.checkedAtMs = startedAt;
        else entries.delete(id);
      }
    } catch (error) {
      restUntilMs = now() + CHECK_REST_MS;
      onError(error);
    } finally {
      checking = false;
      if (toCheck.size > 0) checkSoon();
    }
  }

  function checkSoon(): void {
    if (!checking && now() >= restUntilMs) void check();
  }

  const peek = (tenantId: TenantId) => {
    const entry = entries.get(tenantId);
    if (entry === undefined) return undefined;
    if (now() - entry.checkedAtMs > MAX_AGE_MS) {
      toCheck.add(tenantId);
      checkSoon();
    }
    return entry.config;
  };

  return {
    peek,
    get: (tenantId) => {
      const known = peek(tenantId);
      return known === undefined ? (loading.get(tenantId) ?? load(tenantId)) : Promise.resolve(known);
    },
    reload: (tenantId) => {
      entries.delete(tenantId);
      return load(tenantId);
    },
    forget(tenantId) {
      if (tenantId === undefined) {
        entries.clear();
        loading.clear();
      } else {
        entries.delete(tenantId);
        loading.delete(tenantId);
      }
    },
  };
}

const configRow = z.object({
  config_version: z.number(),
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
type ConfigRow = z.infer<typeof configRow>;

const READ_CONFIG = `
  SELECT t.config_version::float8, t.state AS tenant_state, s.id, s.url, s.event_types, s.headers, s.retry_policy,
    s.attempt_timeout_ms, s.state, k.sealed, k.master_key_ids, k.live_ms, k.schemes, t.quota,
    s.compatibility_headers, s.max_per_second, s.max_in_flight, c.sealed AS credentials,
    c.master_key_id AS credentials_key_id, ${BREAKER_JSON.sql} AS breaker, s.ordering, s.on_dead_letter, s.batch
  FROM tenants t
  LEFT JOIN LATERAL (
    SELECT * FROM subscriptions WHERE tenant_id = t.tenant_id AND id > $2 AND deleted_at IS NULL ORDER BY id LIMIT $3) s ON true
  LEFT JOIN LATERAL (
    SELECT sealed, master_key_id FROM subscription_credentials
    WHERE tenant_id = s.tenant_id AND subscription_id = s.id OFFSET 0) c ON true
  LEFT JOIN LATERAL (
    SELECT array_agg(sealed ORDER BY created_at DESC, id DESC) AS sealed,
      array_agg(master_key_id ORDER BY created_at DESC, id DESC) AS master_key_ids,
      array_agg(scheme ORDER BY created_at DESC, id DESC) AS schemes,
      array_agg(extract(epoch FROM expires_at - now())::float8 * 1000 ORDER BY created_at DESC, id DESC) AS live_ms
    FROM subscription_secrets k
    WHERE k.tenant_id = s.tenant_id AND k.subscription_id = s.id AND (k.expires_at IS NULL OR k.expires_at > now())) k
    ON true
  WHERE t.tenant_id = $1 ORDER BY s.id`;

let readCount = 0;

/** Subscriptions of a page. Ten thousand take 0.3 s to read and make ready: other tenants' events have their turns between pages. */
const PAGE = 200;
const BEFORE_ALL = '00000000-0000-0000-0000-000000000000';

/**
 * The version is read with the first page, so that it is never newer than what was read with it: if anything changes before the
 * last, the version is an old one, and whoever checks it reads anew. The statement is prepared, since planning it takes
 * longer than running it, and the first publish of every tenant waits for it. Its plan is for all tenants, so it must be
 * right for whatever the planner believed: each subscription's rows are looked up by their key (OFFSET 0), never joined
 * with all of the tenant's.
 */
async function readConfig(
  pool: Statements,
  masterKeys: MasterKeys,
  defaultQuota: Quota,
  tenantId: TenantId,
  now: () => number,
): Promise<TenantConfig | undefined> {
  const pageAfter = async (id: string) => {
    const nowMs = now(); // before the page's: what ends by its clock ends no later by this one
    const values = [tenantId, id, PAGE];
    const { rows } = await pool.query({ name: 'tenant-config', text: READ_CONFIG, values });
    return { rows: rows.map((row) => configRow.parse(row)), nowMs };
  };
  let { rows, nowMs } = await pageAfter(BEFORE_ALL);
  const first = rows[0];
  if (first === undefined) return undefined;
  const quota = { ...defaultQuota, ...first.quota };
  const unseal = unsealerOf(masterKeys);
  const same = createSame();
  const targets = new Map<SubscriptionId, Target>();
  const patterns: { patterns: readonly string[]; value: Target }[] = [];
  for (;;) {
    const keys = keyRoom(rows.reduce((count, { sealed }) => count + (sealed?.length ?? 0), 0));
    for (const row of rows) {
      if (row.id === null) continue;
      const target = toTarget(tenantId, row, unseal, quota, nowMs, same, keys);
      targets.set(target.subscriptionId, target);
      patterns.push({ patterns: row.event_types ?? [], value: target });
    }
    const last = rows.length < PAGE ? null : rows[PAGE - 1]!.id;
    if (last === null) break;
    ({ rows, nowMs } = await pageAfter(last));
  }
  const matches = createPatternIndex(patterns);
  const isOrdered = [...targets.values()].some((target) => target.ordering !== 'none');
  const hasBatches = [...targets.values()].some((target) => target.batch !== undefined);
  const { config_version: version, tenant_state: state } = first;
  return { tenantId, serial: ++readCount, version, state, quota, targets, matches, isOrdered, hasBatches };
}

/**
 * One copy of what many subscriptions of a tenant have in common: of ten thousand each delivery is to another, and what is
 * theirs alone is in no cache.
 */
function createSame() {
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

function toTarget(
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
  };
}

const targetBreaker = (row: z.infer<typeof breakerSchema>, nowMs: number): TargetBreaker => ({
  phase: row.phase,
  openCount: row.openCount,
  changedAtMs: nowMs - row.agoMs,
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

const versionRow = z.object({ tenant_id: z.string(), config_version: z.number() });

async function readVersions(
  db: Pick<Database, 'many'>,
  ids: readonly TenantId[],
): Promise<Map<string, number>> {
  const rows = await db.many.any(sql.type(versionRow)`
    SELECT tenant_id, config_version FROM tenants WHERE tenant_id = ANY(${sql.array(ids, 'text')})`);
  return new Map(rows.map((row) => [row.tenant_id, row.config_version]));
}
