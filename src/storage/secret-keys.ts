// Which master keys the stored secrets need. Table: subscription_secrets, as dispatch_engine.
import { z } from 'zod';
import type { MasterKeys } from '../domain/sealing.ts';
import { type Database, sql } from './database.ts';

/** Throws one line if a secret is sealed under a master key that is not there: its deliveries could not be signed. */
export async function assertMasterKeys(db: Pick<Database, 'many'>, masterKeys: MasterKeys): Promise<void> {
  const used = await db.many.anyFirst(sql.type(z.object({ master_key_id: z.string() }))`
    SELECT DISTINCT master_key_id FROM subscription_secrets`);
  const missing = used.filter((id) => !masterKeys.some((key) => key.id === id));
  if (missing.length === 0) return;
  throw new Error(
    `secrets are sealed under master key ${missing.join(', ')}, which DISPATCH_MASTER_KEYS does not have`,
  );
}
