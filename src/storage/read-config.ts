// Reads a tenant's configuration: all of it, or what changed since another one was read (ADR 0031).
import { createPatternIndex, type PatternIndex } from '../domain/event-type.ts';
import { idFromUuid, type SubscriptionId, type TenantId } from '../domain/ids.ts';
import type { Quota } from '../domain/quota.ts';
import { type MasterKeys, unsealerOf } from '../domain/sealing.ts';
import { keyRoom } from '../domain/signature.ts';
import type { TenantState } from '../domain/tenant.ts';
import { BREAKER_JSON } from './breakers.ts';
import type { Statements } from './hot-pool.ts';
import { type ConfigRow, configRow, createSame, type Target, toTarget } from './targets.ts';

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

/** A configuration, and what the next one needs to know of it. */
export type ConfigRead = {
  readonly config: TenantConfig;
  /** How many of the changes up to its version are marked on the subscriptions that they changed. */
  readonly markedChanges: number;
  /** By the database's clock, ms since 1970. */
  readonly readAtMs: number;
  /** When all of it was read, by the same clock. */
  readonly allReadAtMs: number;
};

export type ConfigReader = {
  readonly pool: Statements;
  readonly masterKeys: MasterKeys;
  readonly defaultQuota: Quota;
  /** A monotonic clock in ms. */
  readonly now: () => number;
};

/** The id that the first page begins after. */
const BEFORE_ALL = '00000000-0000-0000-0000-000000000000';

const select = (subscriptions: string, liveCount: string) => `
  SELECT t.config_version::float8, t.marked_changes::float8, t.state AS tenant_state, t.quota,
    extract(epoch FROM now())::float8 * 1000 AS read_at_ms, ${liveCount} AS live_count, s.at, s.id,
    s.config_version::float8 AS changed_in, s.deleted_at IS NOT NULL AS is_deleted, s.url, s.event_types, s.headers,
    s.retry_policy, s.attempt_timeout_ms, s.state, k.sealed, k.master_key_ids, k.live_ms, k.schemes,
    s.compatibility_headers, s.max_per_second, s.max_in_flight, c.sealed AS credentials,
    c.master_key_id AS credentials_key_id, ${BREAKER_JSON.sql} AS breaker, s.ordering, s.on_dead_letter, s.batch
  FROM tenants t
  LEFT JOIN LATERAL (${subscriptions}) s ON true
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
  WHERE t.tenant_id = $1 ORDER BY s.at`;

const ALL = {
  name: 'tenant-config',
  text: select(
    `SELECT id AS at, * FROM subscriptions
    WHERE tenant_id = t.tenant_id AND id > $2 AND deleted_at IS NULL ORDER BY id LIMIT $3`,
    'NULL::int4',
  ),
};

// A breaker is written without growing the version, at its transaction's time and visible when that commits: a minute is
// more than one takes. A breaker may be of a subscription that is gone. The orders are those of the indexes that were made for
// this: without them a plan that was made while the tables were empty would take any other.
const CHANGED = {
  name: 'tenant-config-changes',
  text: select(
    `SELECT ids.id AS at, changed.* FROM (
      SELECT id FROM (
        SELECT id FROM subscriptions WHERE tenant_id = $1 AND config_version > 0 AND config_version > $4
        ORDER BY tenant_id, config_version OFFSET 0) marked WHERE id > $2
      UNION
      SELECT id FROM (
        SELECT subscription_id AS id FROM breakers
        WHERE tenant_id = $1 AND changed_at > to_timestamp($5::float8 / 1000) - interval '60 s'
        ORDER BY tenant_id, changed_at OFFSET 0) written WHERE id > $2
      ORDER BY id LIMIT $3) ids
    LEFT JOIN LATERAL (SELECT * FROM subscriptions WHERE tenant_id = $1 AND id = ids.id OFFSET 0) changed ON true`,
    // Counted for the first page only: it looks at every subscription.
    `(SELECT count(*)::int4 FROM subscriptions
      WHERE tenant_id = $1 AND deleted_at IS NULL AND $2 = '${BEFORE_ALL}'::uuid)`,
  ),
};

let readCount = 0;

/** Subscriptions of a page. Ten thousand take 0.3 s to read and make ready: other tenants' events have their turns between pages. */
const PAGE = 200;
/** If more than this changed all is read, which is made for that. */
const MAX_CHANGES = 1_000;
/** The first change after this time reads all again: nothing that went wrong, or was lost, stays for long. */
export const MAX_BASE_AGE_MS = 10 * 60_000;

/**
 * The statements are prepared, since planning them takes longer than running them, and the first publish of every tenant
 * waits for it. Their plans may be for all tenants, so they must be right for whatever the planner believed: each
 * subscription's rows are looked up by their key, never joined with all of the tenant's (OFFSET 0), and no other index can
 * pass for that key (migration 0007).
 */
async function* pagesOf(
  { pool, now }: ConfigReader,
  statement: { readonly name: string; readonly text: string },
  tenantId: TenantId,
  values: readonly unknown[],
): AsyncGenerator<{ readonly rows: readonly ConfigRow[]; readonly nowMs: number }> {
  for (let after = BEFORE_ALL; ; ) {
    const nowMs = now(); // before the page's: what ends by its clock ends no later by this one
    const page = await pool.query({ ...statement, values: [tenantId, after, PAGE, ...values] });
    const rows = page.rows.map((row) => configRow.parse(row));
    yield { rows, nowMs };
    const last = rows.length < PAGE ? null : rows[PAGE - 1]!.at;
    if (last === null) return;
    after = last;
  }
}

const byId = (a: Target, b: Target) => (a.subscriptionId < b.subscriptionId ? -1 : 1);
const entryOf = (value: Target) => ({ patterns: value.eventTypes, value });
/** Keys of HMAC signatures have a place in a room. */
const roomFor = (rows: readonly ConfigRow[]) =>
  keyRoom(
    rows.reduce((sum, { schemes }) => sum + (schemes ?? []).filter((scheme) => scheme === 'v1').length, 0),
  );

/**
 * Reads a configuration; undefined: there is no such tenant. With a `base` only what changed since that was read, if the
 * database says that this is all there is to it. The version is read with the first page, so that it is never newer than
 * what was read with it: if anything changes before the last, the version is an old one, and whoever checks it reads anew.
 */
export async function readConfig(
  reader: ConfigReader,
  tenantId: TenantId,
  base: ConfigRead | undefined,
): Promise<ConfigRead | undefined> {
  const read = base === undefined ? 'all' : await readChanges(reader, base);
  return read === 'all' ? readAll(reader, tenantId) : read;
}

async function readAll(reader: ConfigReader, tenantId: TenantId): Promise<ConfigRead | undefined> {
  const unseal = unsealerOf(reader.masterKeys);
  const same = createSame();
  const targets = new Map<SubscriptionId, Target>();
  let first: ConfigRow | undefined;
  for await (const { rows, nowMs } of pagesOf(reader, ALL, tenantId, [])) {
    first ??= rows[0];
    if (first === undefined) return undefined;
    const quota = quotaOf(reader, first);
    const keys = roomFor(rows);
    for (const row of rows) {
      if (row.id === null) continue;
      const target = toTarget(tenantId, row, unseal, quota, nowMs, same, keys);
      targets.set(target.subscriptionId, target);
    }
  }
  const matches = createPatternIndex([...targets.values()].map(entryOf), byId);
  return first && readOf(reader, tenantId, first, targets, matches, first.read_at_ms);
}

/** What a configuration became, or 'all': only reading all of it can say that. */
async function readChanges(reader: ConfigReader, base: ConfigRead): Promise<ConfigRead | 'all' | undefined> {
  const { tenantId, version, matches } = base.config;
  const unseal = unsealerOf(reader.masterKeys);
  const same = createSame();
  const targets = new Map(base.config.targets);
  const removed: Target[] = [];
  const added: Target[] = [];
  let first: ConfigRow | undefined;
  let changeCount = 0;
  /**
   * How many more there are by changes that came after the first page. One that was made before it and changes after it is
   * counted once too often, and all is read.
   */
  let moreSince = 0;
  for await (const { rows, nowMs } of pagesOf(reader, CHANGED, tenantId, [version, base.readAtMs])) {
    if (first === undefined) {
      first = rows[0];
      if (first === undefined) return undefined;
      if (!mayBuildOn(base, first)) return 'all';
    }
    const quota = quotaOf(reader, first);
    for (const row of rows) {
      if (row.id === null) continue;
      const id = idFromUuid('sub', row.id) as SubscriptionId;
      const before = targets.get(id);
      if (before !== undefined && !hasChanged(before, row, version)) continue;
      if (++changeCount > MAX_CHANGES) return 'all';
      if (before !== undefined) removed.push(before);
      if (row.is_deleted) {
        targets.delete(id);
      } else {
        // Its keys in a room of its own: what stays for long must not keep the keys of others that change again.
        const target = toTarget(tenantId, row, unseal, quota, nowMs, same, roomFor([row]));
        targets.set(id, target);
        added.push(target);
      }
      if (row.changed_in! > first.config_version) {
        moreSince += (row.is_deleted ? 0 : 1) - (before === undefined ? 0 : 1);
      }
    }
  }
  if (first === undefined) return undefined;
  // Of one that was deleted and is purged by now nothing says that it is gone.
  if (targets.size - moreSince !== first.live_count) return 'all';
  const next = matches.with(removed.map(entryOf), added.map(entryOf));
  return readOf(reader, tenantId, first, targets, next, base.allReadAtMs);
}

/**
 * Whether every change since a configuration was read is marked on what it changed: the version before marks none. Versions
 * and clocks that went back are those of a database that lost something.
 */
function mayBuildOn({ config, markedChanges, readAtMs, allReadAtMs }: ConfigRead, row: ConfigRow): boolean {
  const changes = row.config_version - config.version;
  const isMarked = changes >= 0 && changes === row.marked_changes - markedChanges;
  return isMarked && row.read_at_ms >= readAtMs && row.read_at_ms - allReadAtMs <= MAX_BASE_AGE_MS;
}

/** Breakers of the last minute are read each time. */
const hasChanged = (before: Target, row: ConfigRow, version: number): boolean =>
  row.changed_in! > version || row.breaker?.changedAtMs !== before.breaker?.writtenAtMs;

const quotaOf = (reader: ConfigReader, row: ConfigRow): Quota => ({ ...reader.defaultQuota, ...row.quota });

function readOf(
  reader: ConfigReader,
  tenantId: TenantId,
  first: ConfigRow,
  targets: ReadonlyMap<SubscriptionId, Target>,
  matches: PatternIndex<Target>,
  allReadAtMs: number,
): ConfigRead {
  const config = {
    tenantId,
    serial: ++readCount,
    version: first.config_version,
    state: first.tenant_state,
    quota: quotaOf(reader, first),
    targets,
    matches,
    isOrdered: some(targets, (target) => target.ordering !== 'none'),
    hasBatches: some(targets, (target) => target.batch !== undefined),
  };
  return { config, markedChanges: first.marked_changes, readAtMs: first.read_at_ms, allReadAtMs };
}

function some(targets: ReadonlyMap<unknown, Target>, is: (target: Target) => boolean): boolean {
  for (const target of targets.values()) if (is(target)) return true;
  return false;
}
