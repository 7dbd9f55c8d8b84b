// Which master keys the stored secrets need, and how they move to a new one. Tables: subscription_secrets,
// subscription_credentials, as dispatch_engine.
import { z } from 'zod';
import { idFromUuid } from '../domain/ids.ts';
import { type MasterKeys, seal, unseal } from '../domain/sealing.ts';
import { type Database, sql } from './database.ts';

/** Throws one line if a secret is sealed under a master key that is not there: its deliveries could not be signed. */
export async function assertMasterKeys(db: Pick<Database, 'many'>, masterKeys: MasterKeys): Promise<void> {
  const used = await db.many.anyFirst(sql.type(z.object({ master_key_id: z.string() }))`
    SELECT master_key_id FROM subscription_secrets UNION SELECT master_key_id FROM subscription_credentials`);
  const missing = used.filter((id) => !masterKeys.some((key) => key.id === id));
  if (missing.length === 0) return;
  throw new Error(
    `secrets are sealed under master key ${missing.join(', ')}, which DISPATCH_MASTER_KEYS does not have`,
  );
}

const CHUNK = 200;
const sealedRow = z.object({
  tenant_id: z.string(),
  subscription_id: z.string(),
  id: z.string().nullable(),
  master_key_id: z.string(),
  sealed: z.instanceof(Buffer),
});

/**
 * Seals a chunk of what lies under other master keys anew under the first one. What is left to do is what the tables
 * say, so a run that was cut short goes on by itself; a row that changed meanwhile is left for the next run. Returns
 * how many rows were sealed anew.
 */
export async function rewrapSecrets(
  db: Pick<Database, 'many'>,
  masterKeys: MasterKeys,
  randomBytes: (size: number) => Buffer,
): Promise<number> {
  const first = masterKeys[0];
  if (first === undefined) return 0;
  const known = sql.array(
    masterKeys.slice(1).map((k) => k.id),
    'text',
  );
  let count = 0;
  for (const [table, column, key] of [
    ['subscription_secrets', 'secret', sql.fragment`id`],
    ['subscription_credentials', 'credentials', sql.fragment`NULL::uuid`],
  ] as const) {
    const name = sql.identifier([table]);
    const rows = await db.many.any(sql.type(sealedRow)`
      SELECT tenant_id, subscription_id, ${key} AS id, master_key_id, sealed FROM ${name}
      WHERE master_key_id = ANY(${known}) LIMIT ${CHUNK}`);
    for (const row of rows) {
      const { tenant_id: tenantId, subscription_id: uuid, id } = row;
      const context = { tenantId, resourceId: idFromUuid('sub', uuid), column };
      const plain = unseal(masterKeys, context, { masterKeyId: row.master_key_id, bytes: row.sealed });
      const sealed = seal(masterKeys, context, plain, randomBytes(12));
      const which = id === null ? sql.fragment`true` : sql.fragment`id = ${id}`;
      const result = await db.many.query(sql.typeAlias('void')`
        UPDATE ${name} SET sealed = ${sql.binary(sealed.bytes)}, master_key_id = ${sealed.masterKeyId}
        WHERE tenant_id = ${tenantId} AND subscription_id = ${uuid} AND ${which}
          AND sealed = ${sql.binary(row.sealed)}`);
      count += result.rowCount;
    }
  }
  return count;
}
