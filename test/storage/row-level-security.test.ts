import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { lowestUuidAt, parseTenantId } from '../../src/domain/ids.ts';
import { assertRolesAreBound, type Database, openDatabase, sql } from '../../src/storage/database.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';

let database: TestDatabase;
let db: Database;

const TENANT_TABLES = [
  'api_keys',
  'attempts',
  'audit_log',
  'breakers',
  'closed_deliveries',
  'dead_letters',
  'deliveries',
  'events',
  'idempotency_keys',
  'quota_alerts',
  'replays',
  'subscription_credentials',
  'subscription_health',
  'subscription_probes',
  'subscription_secrets',
  'subscriptions',
  'tenants',
  'usage',
];

beforeAll(async () => {
  database = await cloneDatabase();
  db = await openDatabase(database.url, 4, () => {});
  for (const t of ['a', 'b']) {
    await database.owner.query(
      "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')",
      [t],
    );
    const id = lowestUuidAt(Date.now());
    await database.owner.query(
      "INSERT INTO events (tenant_id, id, type, payload) VALUES ($1, $2, 'x', 'x')",
      [t, id],
    );
    await database.owner.query(
      'INSERT INTO deliveries (tenant_id, id, subscription_id, run_at) VALUES ($1, $2, $2, now())',
      [t, id],
    );
  }
});
afterAll(async () => {
  await db[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

describe('the catalogue', () => {
  test('every table with a tenant_id, parent and leaf, has row-level security, forced, with both policies', async () => {
    const { rows } = await database.owner.query<{
      name: string;
      enabled: boolean;
      forced: boolean;
      policies: string[];
      parent: string;
    }>(`
      SELECT c.relname AS name, c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced,
        ARRAY(SELECT polname::text FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY 1) AS policies,
        coalesce(i.inhparent::regclass::text, '') AS parent
      FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
      LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
      WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace`);
    expect(
      rows
        .filter((row) => row.parent === '')
        .map((row) => row.name)
        .sort(),
    ).toEqual(TENANT_TABLES);
    expect(rows.filter((row) => row.parent !== '').length).toBeGreaterThan(30);
    for (const row of rows) {
      expect(row, row.name).toMatchObject({
        enabled: true,
        forced: true,
        policies:
          row.name === 'audit_log'
            ? ['engine_all', 'owner_prunes', 'tenant_only']
            : ['engine_all', 'tenant_only'],
      });
    }
  });

  test('every primary key and index of tenant data begins with tenant_id, but for the look-up of keys by id and what is parked by time', async () => {
    const { rows } = await database.owner.query<{ name: string }>(`
      SELECT ic.relname AS name FROM pg_index x JOIN pg_class ic ON ic.oid = x.indexrelid
      JOIN pg_class c ON c.oid = x.indrelid
      JOIN pg_attribute t ON t.attrelid = c.oid AND t.attname = 'tenant_id'
      WHERE c.relnamespace = 'public'::regnamespace AND NOT ic.relispartition AND x.indkey[0] <> t.attnum ORDER BY 1`);
    expect(rows.map((row) => row.name)).toEqual(['api_keys_by_id', 'deliveries_parked_by_time']);
  });

  test('neither role is a superuser, bypasses row-level security, may log in or owns anything', async () => {
    const { rows } = await database.owner.query(`
      SELECT rolname, rolsuper, rolbypassrls, rolcanlogin, rolcreaterole,
        (SELECT count(*)::int FROM pg_class WHERE relowner = r.oid) AS owned
      FROM pg_roles r WHERE rolname LIKE 'dispatch\\_tenant' OR rolname LIKE 'dispatch\\_engine' ORDER BY 1`);
    const bound = {
      rolsuper: false,
      rolbypassrls: false,
      rolcanlogin: false,
      rolcreaterole: false,
      owned: 0,
    };
    expect(rows).toEqual([
      { rolname: 'dispatch_engine', ...bound },
      { rolname: 'dispatch_tenant', ...bound },
    ]);
  });

  test('the start is refused if a role owns a table', async () => {
    await database.owner.query('CREATE TABLE stray (x int); ALTER TABLE stray OWNER TO dispatch_tenant');
    await expect(assertRolesAreBound(database.owner)).rejects.toThrow('dispatch_tenant owns stray');
    await database.owner.query('DROP TABLE stray');
    await expect(assertRolesAreBound(database.owner)).resolves.toBeUndefined();
  });
});

describe('the tenant role', () => {
  const count = z.object({ n: z.number() });
  const who = z.object({ role: z.string() });

  test('is what every transaction runs as, also on a connection that was used before', async () => {
    const tenants = ['a', 'b', 'a', 'b'].map((t) => parseTenantId(t));
    const roles = [];
    for (const tenantId of tenants) {
      roles.push(
        await db.inTenant(tenantId, (tx) => tx.oneFirst(sql.type(who)`SELECT current_user::text AS role`)),
      );
    }
    expect(new Set(roles)).toEqual(new Set(['dispatch_tenant']));
    expect(await db.many.oneFirst(sql.type(who)`SELECT current_user::text AS role`)).toBe('dispatch_engine');
    expect((await db.engine.query('SELECT current_user AS role')).rows).toEqual([
      { role: 'dispatch_engine' },
    ]);
  });

  test('sees its own rows of every table and leaf, and none of another tenant', async () => {
    const a = parseTenantId('a');
    expect(
      await db.inTenant(a, (tx) =>
        tx.anyFirst(sql.type(z.object({ tenant_id: z.string() }))`SELECT tenant_id FROM tenants`),
      ),
    ).toEqual(['a']);
    const { rows } = await database.owner.query<{ name: string }>(
      `SELECT c.relname AS name FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
       WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace`,
    );
    for (const { name } of rows) {
      const foreign = await db.inTenant(a, (tx) =>
        tx.oneFirst(
          sql.type(count)`SELECT count(*) AS n FROM ${sql.identifier([name])} WHERE tenant_id <> 'a'`,
        ),
      );
      expect(foreign, name).toBe(0);
    }
  });

  test('sees nothing without a tenant, and cannot write for another', async () => {
    const url = new URL(database.url);
    url.searchParams.set('options', '-c role=dispatch_tenant');
    const client = new pg.Client({ connectionString: url.toString() });
    await client.connect();
    for (const table of TENANT_TABLES)
      expect((await client.query(`SELECT 1 FROM ${table}`)).rowCount, table).toBe(0);
    await client.query("SELECT set_config('app.tenant_id', '', false)");
    expect((await client.query('SELECT 1 FROM tenants')).rowCount).toBe(0);
    await client.query("SELECT set_config('app.tenant_id', 'a', false)");
    expect((await client.query('SELECT 1 FROM tenants')).rowCount).toBe(1);
    expect((await client.query("UPDATE tenants SET display_name = 'x' WHERE tenant_id = 'b'")).rowCount).toBe(
      0,
    );
    await expect(
      client.query(
        "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ('c', '', '{}', 'active')",
      ),
    ).rejects.toThrow('row-level security');
    await client.end();
  });
});
