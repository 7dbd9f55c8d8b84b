// What must be there before an instance can start: a database (embedded unless one is given), its schema, and keys.
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Config } from './config.ts';
import type { MasterKeys } from './domain/sealing.ts';
import { lockDataDir } from './storage/data-dir-lock.ts';
import { asOwner } from './storage/database.ts';
import { startEmbedded } from './storage/embedded.ts';
import { type MigrationReport, migrate } from './storage/migrate.ts';

/** What an instance needs and the configuration may not have. */
export type Installed = {
  readonly databaseUrl: string;
  readonly adminKey: string;
  readonly masterKeys: MasterKeys;
  /** True if the admin key was generated just now, to be shown once. */
  readonly isAdminKeyNew: boolean;
};

/** Starts the embedded database if none is given, makes keys if none are given, migrates. Disposing stops it. */
export async function install(
  config: Config,
): Promise<Installed & AsyncDisposable & { readonly migration: MigrationReport }> {
  await using stack = new AsyncDisposableStack();
  let databaseUrl = config.databaseUrl;
  if (databaseUrl === undefined) {
    stack.use(await lockDataDir(config.dataDir));
    databaseUrl = stack.use(await startEmbedded({ dataDir: config.dataDir })).url;
  }
  const keys = config.databaseUrl === undefined ? await embeddedKeys(config) : givenKeys(config);
  const migration = await migrate(config.directDatabaseUrl ?? databaseUrl, config);
  // Whoever was running before the embedded database started is gone, and is not to be counted with.
  if (config.databaseUrl === undefined)
    await asOwner(databaseUrl, (owner) => owner.query('DELETE FROM instances'));
  const owned = stack.move();
  return { databaseUrl, ...keys, migration, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** In a child of a process that installed: everything came by configuration. */
export function installedBefore(config: Config): Installed {
  if (config.databaseUrl === undefined) throw new Error('a child process was started without a database');
  return { databaseUrl: config.databaseUrl, ...givenKeys(config) };
}

function givenKeys(config: Config) {
  if (config.adminKey === undefined) throw new Error('DISPATCH_ADMIN_KEY is required');
  return { adminKey: config.adminKey, masterKeys: config.masterKeys, isAdminKeyNew: false };
}

/** Keys that live with the embedded database, made on the first start and readable by their owner only. */
async function embeddedKeys(config: Config): Promise<Omit<Installed, 'databaseUrl'>> {
  await mkdir(config.dataDir, { recursive: true });
  const master = await keep(join(config.dataDir, 'master-key'), () => randomBytes(32).toString('base64'));
  const masterKeys = [...config.masterKeys, { id: 'embedded', key: Buffer.from(master.text, 'base64') }];
  if (config.adminKey !== undefined) return { adminKey: config.adminKey, masterKeys, isAdminKeyNew: false };
  const admin = await keep(
    join(config.dataDir, 'admin-key'),
    () => `dsp_admin_${randomBytes(32).toString('base64url')}`,
  );
  return { adminKey: admin.text, masterKeys, isAdminKeyNew: admin.isNew };
}

async function keep(
  file: string,
  make: () => string,
): Promise<{ readonly text: string; readonly isNew: boolean }> {
  const text = make();
  try {
    await writeFile(file, text, { mode: 0o600, flag: 'wx' });
    return { text, isNew: true };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    return { text: (await readFile(file, 'utf8')).trim(), isNew: false };
  }
}
