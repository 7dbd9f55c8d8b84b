// Which master keys the stored secrets need, and how they move to a new one. Tables: subscription_secrets,
// subscription_credentials, as dispatch_engine.
import { z } from 'zod';
import { idFromUuid } from '../domain/ids.ts';
import { type MasterKeys, seal, unseal } from '../domain/sealing.ts';
import { type Database, sql } from './database.ts';

const usedRow = z.object({ master_key_id: z.string() });

/** Throws one line if a secret is sealed under a master key that is not there: its deliveries could not be signed. */
export async function assertMasterKeys(db: Pick<Database, 'many'>, masterKeys: MasterKeys): Promise<void> {
  const used = await db.many.anyFirst(sql.type(usedRow)`
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
  id: z.string(),
  master_key_id: z.string(),
  sealed: z.instanceof(Buffer),
});

const START = {
  tenantId: '',
  subscriptionId: '00000000-0000-0000-0000-000000000000',
  id: '00000000-0000-0000-0000-000000000000',
};

const SEALED = [
  { table: 'subscription_secrets', column: 'secret', key: sql.fragment`id` },
  { table: 'subscription_credentials', column: 'credentials', key: sql.fragment`subscription_id` },
] as const;

/**
 * Makes the step that seals a chunk of what lies under other master keys anew under the first one, and returns how many
 * rows it sealed. What is left to do is what the tables say, so a run that was cut short goes on by itself; a row that
 * changed meanwhile, or that does not open (`onError` hears of it), is left for the next run.
 */
export function createRewrap(
  db: Pick<Database, 'many'>,
  masterKeys: MasterKeys,
  randomBytes: (size: number) => Buffer,
  onError: (error: unknown) => void,
): () => Promise<number> {
  const known = masterKeys.slice(1).map((k) => k.id);
  let table = 0;
  let after = START;

  async function reseal(row: z.infer<typeof sealedRow>): Promise<number> {
    const { table: name, column, key } = SEALED[table]!;
    const context = { tenantId: row.tenant_id, resourceId: idFromUuid('sub', row.subscription_id), column };
    const plain = unseal(masterKeys, context, { masterKeyId: row.master_key_id, bytes: row.sealed });
    const sealed = seal(masterKeys, context, plain, randomBytes(12));
    const result = await db.many.query(sql.typeAlias('void')`
      UPDATE ${sql.identifier([name])} SET sealed = ${sql.binary(sealed.bytes)}, master_key_id = ${sealed.masterKeyId}
      WHERE tenant_id = ${row.tenant_id} AND subscription_id = ${row.subscription_id} AND ${key} = ${row.id}
        AND sealed = ${sql.binary(row.sealed)}`);
    return result.rowCount;
  }

  return async () => {
    if (known.length === 0) return 0;
    for (; table < SEALED.length; table++, after = START) {
      const { table: name, key } = SEALED[table]!;
      const rows = await db.many.any(sql.type(sealedRow)`
        SELECT tenant_id, subscription_id, ${key} AS id, master_key_id, sealed FROM ${sql.identifier([name])}
        WHERE (tenant_id, subscription_id, ${key}) > (${after.tenantId}, ${after.subscriptionId}::uuid, ${after.id}::uuid)
          AND master_key_id = ANY(${sql.array(known, 'text')})
        ORDER BY tenant_id, subscription_id, ${key} LIMIT ${CHUNK}`);
      let count = 0;
      for (const row of rows) {
        after = { tenantId: row.tenant_id, subscriptionId: row.subscription_id, id: row.id };
        try {
          count += await reseal(row);
        } catch (error) {
          onError(error);
        }
      }
      if (count > 0) return count;
    }
    table = 0;
    after = START;
    return 0;
  };
}
