// Several dispatch processes on one database, and Redis if asked for: for tests of what holds over all of them.

import { isParkedAt } from '../../src/storage/parking.ts';
import { cloneDatabase, type TestDatabase } from './database.ts';
import { ADMIN_KEY, MASTER_KEY } from './instance.ts';
import { type DispatchProcess, spawnDispatch } from './processes.ts';
import { type RedisServer, startRedis } from './redis.ts';
import { type Clients, clientsOf } from './rpc-clients.ts';

export type Fleet = AsyncDisposable & {
  readonly database: TestDatabase;
  /** Undefined if none was asked for. */
  readonly redis: RedisServer | undefined;
  readonly environment: Readonly<Record<string, string>>;
  readonly apis: DispatchProcess[];
  readonly workers: DispatchProcess[];
  /** Clients of the first API process, with the platform key. */
  readonly admin: Clients;
};

/** What processes on a database need, and quotas that are in nobody's way. */
export const environmentOn = (databaseUrl: string) => ({
  DISPATCH_DATABASE_URL: databaseUrl,
  DISPATCH_ADMIN_KEY: ADMIN_KEY,
  DISPATCH_MASTER_KEYS: `test:${MASTER_KEY.toString('base64')}`,
  DISPATCH_DATABASE_POOL_SIZE: '4',
  DISPATCH_ALLOW_ENDPOINT_CIDRS: '127.0.0.0/8',
  DISPATCH_DEFAULT_QUOTA: '{"publishPerSecond": 0}',
});

export async function startFleet(
  size: { readonly apis: number; readonly workers: number; readonly redis: boolean },
  settings: Readonly<Record<string, string>> = {},
): Promise<Fleet> {
  await using stack = new AsyncDisposableStack();
  const database = stack.use(await cloneDatabase());
  const redis = size.redis ? stack.use(await startRedis()) : undefined;
  const environment = {
    ...environmentOn(database.url),
    ...(redis === undefined ? {} : { DISPATCH_REDIS_URL: redis.url }),
    ...settings,
  };
  const apis: DispatchProcess[] = [];
  const workers: DispatchProcess[] = [];
  stack.defer(async () => {
    await Promise.all([...apis, ...workers].map((p) => p.kill('SIGKILL')));
  });
  for (let i = 0; i < size.apis; i++) apis.push(await spawnDispatch(environment, ['--roles=api']));
  for (let i = 0; i < size.workers; i++) {
    workers.push(await spawnDispatch(environment, ['--roles=worker,maintenance']));
  }
  const owned = stack.move();
  return {
    database,
    redis,
    environment,
    apis,
    workers,
    admin: clientsOf(apis[0]!.httpPort, ADMIN_KEY),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Stores events with one delivery each, due after some seconds, as publishing would have, and much faster. */
export function storeBacklog(
  database: Pick<TestDatabase, 'owner'>,
  tenantId: string,
  subscriptionUuid: string,
  count: number,
  dueInSeconds = 0,
): Promise<void> {
  return storeBacklogs(database, [{ tenant_id: tenantId, id: subscriptionUuid }], count, dueInSeconds);
}

/** The same for several subscriptions, as rows of their table: so many for each. */
export async function storeBacklogs(
  database: Pick<TestDatabase, 'owner'>,
  subscriptions: readonly { readonly tenant_id: string; readonly id: string }[],
  count: number,
  dueInSeconds = 0,
  /** JSON, the same for all; a few bytes of it when left out. */
  body?: Buffer,
): Promise<void> {
  // A UUIDv7 of now whose last three bytes are zero; the delivery's are its ordinal (ADR 0003).
  const id = (last: string) =>
    `(lpad(to_hex((extract(epoch FROM now()) * 1000)::int8), 12, '0') || '70008000' || lpad(to_hex(i), 6, '0')
      || '${last}')::uuid`;
  for (const { tenant_id, id: subscriptionUuid } of subscriptions) {
    await database.owner.query(
      `INSERT INTO events (tenant_id, id, type, payload)
       SELECT $1, ${id('000000')}, 'order.created', coalesce($3, convert_to('{"n":' || i || '}', 'UTF8'))
       FROM generate_series(1, $2::int) AS i`,
      [tenant_id, count, body ?? null],
    );
    await database.owner.query(
      `INSERT INTO deliveries (tenant_id, id, subscription_id, run_at, is_parked)
       SELECT tenant_id, overlay(id::text PLACING '000001' FROM 31)::uuid, $2, now() + make_interval(secs => $3),
         ${isParkedAt('now() + make_interval(secs => $3)')}
       FROM events WHERE tenant_id = $1`,
      [tenant_id, subscriptionUuid, dueInSeconds],
    );
  }
  await database.owner.query('ANALYZE deliveries, events');
}
