// What matching and sending need to know of a tenant, cached in memory with a version.
// Publishing checks the version inside its own statement (ingest.ts), so matching is never stale; workers may act on
// a configuration that is up to MAX_AGE_MS old if a notification was lost.
import { z } from 'zod';
import type { TenantId } from '../domain/ids.ts';
import type { Quota } from '../domain/quota.ts';
import type { MasterKeys } from '../domain/sealing.ts';
import { type Database, sql } from './database.ts';
import { type ConfigRead, MAX_BASE_AGE_MS, readConfig, type TenantConfig } from './read-config.ts';

const MAX_AGE_MS = 5_000;
/** How often configurations are looked for that nobody asked for any more since they were forgotten. */
const SWEEP_MS = 60_000;
/** After a check that failed none is tried for this long: a database that is away is not asked by every publish. */
const CHECK_REST_MS = 500;
const MAX_TENANTS = 5_000;

/** The cache. */
export type TenantConfigs = {
  /** The configuration, from memory or from the database; undefined for a tenant that does not exist. */
  readonly get: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  /** The same if it is in memory; asks for a check in the background once it is older than 5 s. */
  readonly peek: (tenantId: TenantId) => TenantConfig | undefined;
  /** Reads it anew from the database, also if it is in memory. */
  readonly reload: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  /** Forgets a tenant, or all: the next use reads what changed since. */
  readonly forget: (tenantId: TenantId | undefined) => void;
  /** A statement that began at `atMs` found this version: what is in memory of it needs no check until it is older than that. */
  readonly confirm: (tenantId: TenantId, version: number, atMs: number) => void;
  /** Nothing that was known counts any more: what answers now may be another database. */
  readonly clear: () => void;
};

type Entry = {
  readonly read: ConfigRead;
  checkedAtMs: number;
  /** It serves only to read what changed since. */
  isForgotten: boolean;
};

/** `now` is a monotonic clock in ms; `onError` hears of background checks that failed. */
export function createTenantConfigs(
  db: Pick<Database, 'many' | 'claims'>,
  masterKeys: MasterKeys,
  defaultQuota: Quota,
  now: () => number,
  onError: (error: unknown) => void,
): TenantConfigs {
  const reader = { pool: db.claims, masterKeys, defaultQuota, now };
  const entries = new Map<TenantId, Entry>(); // in the order of their last load: the oldest is evicted first
  const loading = new Map<TenantId, Promise<TenantConfig | undefined>>();
  const toCheck = new Set<TenantId>();
  /** Grows with clear(): nothing from before is kept, nor given to anybody. */
  let era = 0;
  let checking = false;
  let restUntilMs = Number.NEGATIVE_INFINITY;
  let sweptAtMs = now();

  /**
   * Reads a configuration and keeps it. One that forget() overtook serves its waiters, and the next one is read from it: a
   * large one that changes without a pause would never be there otherwise.
   */
  function load(tenantId: TenantId): Promise<TenantConfig | undefined> {
    const startedAt = now();
    const startedIn = era;
    const mine = readConfig(reader, tenantId, entries.get(tenantId)?.read).then(
      (read) => {
        if (startedIn !== era) return loading.get(tenantId) ?? load(tenantId);
        const isForgotten = loading.get(tenantId) !== mine;
        if (!isForgotten) loading.delete(tenantId);
        if (read !== undefined) keep({ read, checkedAtMs: startedAt, isForgotten });
        else if (!isForgotten) entries.delete(tenantId);
        return read?.config;
      },
      (error) => {
        if (loading.get(tenantId) === mine) loading.delete(tenantId);
        throw error;
      },
    );
    loading.set(tenantId, mine);
    return mine;
  }

  function keep(entry: Entry): void {
    const { tenantId, version } = entry.read.config;
    sweep();
    const known = entries.get(tenantId);
    // Overtaken, and perhaps by one that began later and is there already: then that is the better one.
    if (entry.isForgotten && known !== undefined && known.read.config.version >= version) return;
    entries.delete(tenantId);
    entries.set(tenantId, entry);
    const oldest = entries.size > MAX_TENANTS ? entries.keys().next().value : undefined;
    if (oldest !== undefined) entries.delete(oldest);
  }

  /** Removes what was forgotten and is too old to be built on, once a minute at most, while others are read. */
  function sweep(): void {
    const nowMs = now();
    if (nowMs - sweptAtMs < SWEEP_MS) return;
    sweptAtMs = nowMs;
    for (const [tenantId, entry] of entries) {
      if (entry.isForgotten && nowMs - entry.checkedAtMs > MAX_BASE_AGE_MS) entries.delete(tenantId);
    }
  }

  async function check(): Promise<void> {
    checking = true;
    try {
      const startedAt = now();
      // What was confirmed since it was put there is as good as checked.
      const asked = [...toCheck]
        .map((id) => [id, entries.get(id)] as const)
        .filter(([, entry]) => entry !== undefined && startedAt - entry.checkedAtMs > MAX_AGE_MS);
      toCheck.clear();
      if (asked.length === 0) return;
      const versions = await readVersions(
        db,
        asked.map(([id]) => id),
      );
      for (const [id, entry] of asked) {
        if (entry === undefined || entries.get(id) !== entry) continue; // there is a newer one
        const version = versions.get(id);
        if (version === entry.read.config.version) entry.checkedAtMs = startedAt;
        else if (version === undefined) entries.delete(id);
        else entry.isForgotten = true;
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
    if (entry === undefined || entry.isForgotten) return undefined;
    if (now() - entry.checkedAtMs > MAX_AGE_MS) {
      toCheck.add(tenantId);
      checkSoon();
    }
    return entry.read.config;
  };

  function forget(tenantId: TenantId): void {
    const entry = entries.get(tenantId);
    if (entry !== undefined) entry.isForgotten = true;
    loading.delete(tenantId);
  }

  return {
    peek,
    get: (tenantId) => {
      const known = peek(tenantId);
      return known === undefined ? (loading.get(tenantId) ?? load(tenantId)) : Promise.resolve(known);
    },
    reload: (tenantId) => {
      forget(tenantId);
      return load(tenantId);
    },
    forget(tenantId) {
      if (tenantId !== undefined) forget(tenantId);
      else for (const id of [...entries.keys(), ...loading.keys()]) forget(id);
    },
    confirm(tenantId, version, atMs) {
      const entry = entries.get(tenantId);
      if (entry?.read.config.version === version) entry.checkedAtMs = Math.max(entry.checkedAtMs, atMs);
    },
    clear() {
      era++;
      entries.clear();
      loading.clear();
    },
  };
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
