// Through a real PgBouncer in transaction mode, with one connection to the database that everybody shares in turn: neither
// the role nor the tenant of one transaction is there in the next (ADR 0019).
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { z } from 'zod';
import { lowestUuidAt, parseTenantId, type TenantId } from '../../src/domain/ids.ts';
import { claim } from '../../src/storage/claims.ts';
import { type Database, openDatabase, sql } from '../../src/storage/database.ts';
import { openHotPool } from '../../src/storage/hot-pool.ts';
import { createWalk } from '../../src/storage/walk.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { type PgBouncer, startPgBouncer } from '../support/pgbouncer.ts';

const onIdleError = () => {};
const TENANTS = Array.from({ length: 20 }, (_, i) => parseTenantId(`t${i}`));

let database: TestDatabase;
let pooler: PgBouncer;
let db: Database;

beforeAll(async () => {
  database = await cloneDatabase();
  pooler = await startPgBouncer(database.url, 1);
  db = await openDatabase(pooler.url, 4, onIdleError, database.url);
  for (const [i, tenantId] of TENANTS.entries()) {
    const id = lowestUuidAt(Date.now() + i);
    await database.owner.query(
      "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')",
      [tenantId],
    );
    await database.owner.query(
      "INSERT INTO events (tenant_id, id, type, payload) VALUES ($1, $2, 'x', 'x')",
      [tenantId, id],
    );
    await database.owner.query(
      'INSERT INTO deliveries (tenant_id, id, subscription_id, run_at) VALUES ($1, $2, $2, now())',
      [tenantId, id],
    );
  }
});
afterAll(async () => {
  await db[Symbol.asyncDispose]();
  await pooler[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

const session = z.object({ role: z.string(), tenant: z.string().nullable(), seqscan: z.string() });
const SESSION = `SELECT current_user::text AS role, NULLIF(current_setting('app.tenant_id', true), '') AS tenant,
  current_setting('enable_seqscan') AS seqscan`;
const sessionSql = sql.type(session)`SELECT current_user::text AS role,
  NULLIF(current_setting('app.tenant_id', true), '') AS tenant, current_setting('enable_seqscan') AS seqscan`;

async function rawSession(): Promise<unknown> {
  const client = new pg.Client({ connectionString: pooler.url });
  await client.connect();
  try {
    return (await client.query(SESSION)).rows[0];
  } finally {
    await client.end();
  }
}

test('20 tenants at once see their own rows and nobody else’s, between statements of the engine', async () => {
  const tenantRow = z.object({ tenant_id: z.string() });
  let foreign = 0;
  let own = 0;
  const asTenant = async (tenantId: TenantId) => {
    const ids = await db.inTenant(tenantId, async (tx) => [
      ...(await tx.anyFirst(sql.type(tenantRow)`SELECT tenant_id FROM tenants`)),
      ...(await tx.anyFirst(sql.type(tenantRow)`SELECT tenant_id FROM deliveries`)),
      ...(await tx.anyFirst(sql.type(tenantRow)`SELECT tenant_id FROM events`)),
    ]);
    for (const id of ids) {
      if (id === tenantId) own++;
      else foreign++;
    }
  };
  const asEngine = async () => {
    const { rows } = await db.engine.query<z.infer<typeof session>>(SESSION);
    expect(rows[0]).toEqual({ role: 'dispatch_engine', tenant: null, seqscan: 'off' });
    expect(await db.many.any(sessionSql)).toEqual(rows);
  };
  for (let round = 0; round < 20; round++) {
    await Promise.all([...TENANTS.map(asTenant), asEngine(), asEngine()]);
  }
  expect(foreign).toBe(0);
  expect(own).toBe(20 * 20 * 3);
});

test('nothing of a transaction is left in the session, also when it failed', async () => {
  const clean = { role: await ownerName(), tenant: null, seqscan: 'on' };
  const a = TENANTS[0]!;
  await db.inTenant(a, (tx) => tx.any(sessionSql));
  expect(await rawSession()).toEqual(clean);
  await db.engine.query(SESSION);
  expect(await rawSession()).toEqual(clean);
  await db.many.any(sessionSql);
  expect(await rawSession()).toEqual(clean);
  await expect(db.engine.query('SELECT 1 / 0')).rejects.toThrow('division by zero');
  await expect(db.inTenant(a, (tx) => tx.any(sql.unsafe`SELECT 1 / 0`))).rejects.toThrow();
  expect(await rawSession()).toEqual(clean);
});

test('a tenant cannot write for another, and a role that cannot be taken stops what comes after it', async () => {
  const write = db.inTenant(TENANTS[0]!, (tx) =>
    tx.query(sql.typeAlias('void')`
      INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ('zz', '', '{}', 'active')`),
  );
  await expect(write).rejects.toThrow();
  const settings = { role: 'nobody_of_this_name' };
  const pool = openHotPool({ url: pooler.url, name: 'test', settings, max: 1, isPooled: true, onIdleError });
  const attempt = pool.query("UPDATE tenants SET display_name = 'changed'");
  await expect(attempt).rejects.toThrow('nobody_of_this_name');
  await pool.end();
  const { rows } = await database.owner.query("SELECT 1 FROM tenants WHERE display_name = 'changed'");
  expect(rows).toEqual([]);
});

test('named statements of the hot path run on whatever session they meet, and errors in a transaction undo all', async () => {
  const walk = createWalk(db.claims);
  for (let i = 0; i < 5; i++) {
    const { heads } = await walk(undefined, 100);
    expect(heads).toHaveLength(TENANTS.length);
  }
  const { heads } = await walk(undefined, 100);
  const wanted = heads.map((head) => ({ ...head, room: 1, after: undefined }));
  const { deliveries } = await claim(db.claims, wanted, randomBytes(16), 60_000, 0);
  expect(deliveries.map(({ event }) => event.payload)).toEqual(TENANTS.map(() => Buffer.from('x')));
  const undone = db.engine.transaction(async (tx) => {
    await tx.query("UPDATE tenants SET display_name = 'changed'");
    await tx.query('SELECT 1 / 0').catch(() => {});
  });
  await expect(undone).rejects.toThrow('rolled back');
  const { rows } = await database.owner.query("SELECT 1 FROM tenants WHERE display_name = 'changed'");
  expect(rows).toEqual([]);
});

async function ownerName(): Promise<string> {
  const { rows } = await database.owner.query<{ name: string }>('SELECT current_user::text AS name');
  return rows[0]!.name;
}
