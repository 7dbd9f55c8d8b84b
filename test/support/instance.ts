// A running dispatch for a test file: in this process, on a database of its own, with every role unless told.
import { randomBytes } from 'node:crypto';
import { startInstance } from '../../src/compose/instance.ts';
import { type Config, parseConfig } from '../../src/config.ts';
import { createLog } from '../../src/telemetry/logger.ts';
import { cloneDatabase, type TestDatabase } from './database.ts';
import { type Clients, clientsOf } from './rpc-clients.ts';

export { type Clients, clientsOf } from './rpc-clients.ts';

export const ADMIN_KEY = 'test-admin-key-0123456789';
export const MASTER_KEY = randomBytes(32);

export type TestInstance = AsyncDisposable & {
  readonly database: TestDatabase;
  readonly httpPort: number;
  readonly grpcPort: number;
  /** Clients over Connect JSON, with the platform key unless another is given. */
  readonly clients: (key?: string) => Clients;
};

/** Settings of a test instance: any DISPATCH_* variable over the defaults for tests. */
export function testConfig(databaseUrl: string, settings: Readonly<Record<string, string>> = {}): Config {
  const result = parseConfig(
    {
      DISPATCH_DATABASE_URL: databaseUrl,
      DISPATCH_ADMIN_KEY: ADMIN_KEY,
      DISPATCH_MASTER_KEYS: `test:${MASTER_KEY.toString('base64')}`,
      DISPATCH_ALLOW_ENDPOINT_CIDRS: '127.0.0.0/8',
      DISPATCH_REFUSALS_PER_MINUTE: '1000000',
      DISPATCH_HTTP_PORT: '0',
      DISPATCH_GRPC_PORT: '0',
      DISPATCH_LOG_LEVEL: 'silent',
      ...settings,
    },
    '/',
  );
  if (!result.ok) throw new Error(result.problems.join('\n'));
  return result.config;
}

/** Starts one on `on`, or on a database of its own that goes away with it. */
export async function startTestInstance(
  settings: Readonly<Record<string, string>> = {},
  on?: TestDatabase,
): Promise<TestInstance> {
  const database = on ?? (await cloneDatabase());
  const config = testConfig(database.url, settings);
  const instance = await startInstance({
    config,
    databaseUrl: database.url,
    adminKey: ADMIN_KEY,
    masterKeys: config.masterKeys,
    version: 'test',
    log: createLog(config.logLevel),
  });
  const { httpPort } = instance;
  return {
    database,
    httpPort,
    grpcPort: instance.grpcPort ?? 0,
    clients: (key = ADMIN_KEY) => clientsOf(httpPort, key),
    async [Symbol.asyncDispose]() {
      await instance[Symbol.asyncDispose]();
      if (on === undefined) await database[Symbol.asyncDispose]();
    },
  };
}

/** A new tenant with a key of its own. */
export async function newTenant(admin: Clients, tenantId: string): Promise<{ readonly key: string }> {
  await admin.tenants.createTenant({ tenant: { tenantId } });
  const { key } = await admin.tenants.createApiKey({ tenantId, displayName: 'test' });
  return { key };
}
