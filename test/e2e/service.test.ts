// The service as a whole: idle cost, --processes, embedded database as root and as an ordinary user, start problems.
import { spawn, spawnSync } from 'node:child_process';
import { chmod, cp, mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { create } from '@bufbuild/protobuf';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { DeliveryState } from '../../gen/dispatch/v1/event_pb.ts';
import { BreakerState, RetryListSchema } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { lockDataDir } from '../../src/storage/data-dir-lock.ts';
import { findPlace, removeEmbedded, startEmbedded } from '../../src/storage/embedded.ts';
import { migrate } from '../../src/storage/migrate.ts';
import { startPostgres } from '../faults/postgres-server.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { freePort } from '../support/free-port.ts';
import { ADMIN_KEY, clientsOf, MASTER_KEY } from '../support/instance.ts';
import { spawnDispatch } from '../support/processes.ts';
import { startReceiver } from '../support/receiver.ts';

const ROOT = new URL('../../', import.meta.url).pathname;
const external = (url: string) => ({
  DISPATCH_DATABASE_URL: url,
  DISPATCH_ADMIN_KEY: ADMIN_KEY,
  DISPATCH_MASTER_KEYS: `test:${MASTER_KEY.toString('base64')}`,
  DISPATCH_ALLOW_ENDPOINT_CIDRS: '127.0.0.0/8',
});

describe('an idle service', () => {
  test('makes at most 2 queries a second, with a paused backlog and a retry hours away', async () => {
    // The first visit of autovacuum is 15 transactions that nobody told from the service's: it has none here.
    await using server = await startPostgres(['autovacuum=off']);
    const dispatch = await spawnDispatch(external(server.url));
    const clients = clientsOf(dispatch.httpPort, ADMIN_KEY);
    await clients.tenants.createTenant({ tenant: { tenantId: 'acme' } });
    const slow = {
      schedule: {
        case: 'list' as const,
        value: create(RetryListSchema, { delays: [durationFromMs(36_000_000)] }),
      },
    };
    await clients.subscriptions.createSubscription({
      tenantId: 'acme',
      subscription: { url: 'http://127.0.0.1:1/', eventTypes: ['a'], retryPolicy: slow },
    });
    const { subscription } = await clients.subscriptions.createSubscription({
      tenantId: 'acme',
      subscription: { url: 'http://127.0.0.1:1/', eventTypes: ['b'] },
    });
    await clients.subscriptions.pauseSubscription({
      tenantId: 'acme',
      subscriptionId: subscription!.subscriptionId,
    });
    for (const type of ['a', 'b'])
      await clients.publish.publish({ tenantId: 'acme', event: { type, body: { case: 'data', value: {} } } });
    // What an idle service runs are single statements, each its own transaction: the server counts those.
    // The asker is in another database, and is not counted.
    const executed = async () => {
      const [row] = await server.ask<{ n: string }>(
        "SELECT xact_commit + xact_rollback AS n FROM pg_stat_database WHERE datname = 'dispatch'",
        [],
        'postgres',
      );
      return Number(row!.n);
    };
    await wait(12_000); // the caches' checks and the first maintenance are over
    const windowSeconds = 20;
    const before = await executed();
    await wait(windowSeconds * 1_000); // this is the measurement itself
    const perSecond = ((await executed()) - before) / windowSeconds;
    console.log(`idle: ${perSecond.toFixed(2)} transactions/s, each of one statement`);
    expect(perSecond).toBeGreaterThan(0.5); // the poll beneath the hints is there
    expect(perSecond).toBeLessThanOrEqual(2);
    await dispatch.kill('SIGTERM');
  });
});

describe('--processes', () => {
  test('serves from several processes on the same ports, replaces one that is killed, and drains on SIGTERM', async () => {
    await using database = await cloneDatabase();
    await using receiver = await startReceiver();
    const dispatch = await spawnDispatch(external(database.url), ['--processes=2']);
    const clients = clientsOf(dispatch.httpPort, ADMIN_KEY);
    await eventually(() => clients.tenants.createTenant({ tenant: { tenantId: 'acme' } }));
    await clients.subscriptions.createSubscription({
      tenantId: 'acme',
      subscription: { url: receiver.url, eventTypes: ['**'] },
    });
    const { pid } = dispatch.child;
    const children = async () => {
      const list = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8');
      return list.trim().split(' ').map(Number);
    };
    const first = await children();
    expect(first).toHaveLength(2);
    process.kill(first[0]!, 'SIGKILL');
    const publish = () =>
      clients.publish.publish({ tenantId: 'acme', event: { type: 'a', body: { case: 'data', value: {} } } });
    for (let i = 0; i < 20; i++) await eventually(publish);
    await eventually(async () =>
      expect((await children()).filter((pid) => !first.includes(pid))).toHaveLength(1),
    );
    await eventually(() =>
      expect(new Set(receiver.received.map((r) => r.headers['webhook-id'])).size).toBeGreaterThanOrEqual(20),
    );
    expect(await dispatch.kill('SIGTERM')).toBe(0);
  });

  test('tells the metrics of all of them, whichever is asked', async () => {
    await using database = await cloneDatabase();
    const dispatch = await spawnDispatch(external(database.url), ['--processes=2']);
    const clients = clientsOf(dispatch.httpPort, ADMIN_KEY);
    await eventually(() => clients.tenants.createTenant({ tenant: { tenantId: 'acme' } }));
    const metrics = async () => {
      const response = await fetch(`http://127.0.0.1:${dispatch.httpPort}/metrics`, {
        headers: { connection: 'close' }, // each from another process
      });
      return await response.text();
    };
    await eventually(async () => expect(await metrics()).toContain('dispatch_in_flight'));
    const body = { case: 'data' as const, value: {} };
    for (let i = 0; i < 5; i++)
      await clients.publish.publish({ tenantId: 'acme', event: { type: 'a', body } });
    for (let i = 0; i < 6; i++) {
      expect(await metrics()).toMatch(/^dispatch_publishes_total\{outcome="stored"\} 5$/m);
    }
    expect(await metrics()).toMatch(/^dispatch_limits_degraded 0$/m);
    expect(await dispatch.kill('SIGTERM')).toBe(0);
  });
});

test('a process without the api role has health and metrics on its HTTP port, and nothing else', async () => {
  await using database = await cloneDatabase();
  const dispatch = await spawnDispatch(external(database.url), ['--roles=worker,maintenance']);
  const url = `http://127.0.0.1:${dispatch.httpPort}`;
  expect(dispatch.output()).toContain(`(worker, maintenance): /healthz, /readyz and /metrics on ${url}`);
  const get = async (path: string) => {
    const response = await fetch(url + path);
    return [response.status, await response.text()] as const;
  };
  expect(await get('/healthz')).toEqual([200, 'ok\n']);
  expect(await get('/readyz')).toEqual([200, 'ready\n']);
  expect((await get('/metrics'))[1]).toContain('dispatch_claim_seconds_count');
  const call = `${url}/dispatch.v1.TenantService/ListTenants`;
  const response = await fetch(call, { method: 'POST', headers: { authorization: `Bearer ${ADMIN_KEY}` } });
  expect([response.status, await response.text()]).toEqual([
    404,
    'there is nothing here; this process has no api role; it has /healthz, /readyz, /metrics\n',
  ]);
  expect(await dispatch.kill('SIGTERM')).toBe(0);
});

test('a process that is stopped past the deadlines of what is on the wire blames no endpoint for it', async () => {
  await using database = await cloneDatabase();
  await using receiver = await startReceiver();
  const dispatch = await spawnDispatch(external(database.url));
  const clients = clientsOf(dispatch.httpPort, ADMIN_KEY);
  const tenantId = 'acme';
  await clients.tenants.createTenant({ tenant: { tenantId } });
  const hour = durationFromMs(3_600_000);
  const value = { base: hour, cap: hour, factor: 1, maxAttempts: 1 };
  const once = { schedule: { case: 'exponential' as const, value } };
  const subscribe = async (path: string) => {
    const { subscription } = await clients.subscriptions.createSubscription({
      tenantId,
      subscription: {
        url: `${new URL(receiver.url).origin}/${path}`,
        eventTypes: [path],
        attemptTimeout: durationFromMs(1_000),
        retryPolicy: once,
      },
    });
    return subscription!.subscriptionId;
  };
  const slow = await subscribe('slow');
  const silent = await subscribe('silent');
  let isStill = true;
  receiver.answer = async ({ path }) => {
    await wait(path === '/slow' ? 700 : isStill ? 30_000 : 0, undefined, { ref: false });
    return { status: 204 };
  };
  for (const type of ['slow', 'silent']) {
    const events = Array.from({ length: 8 }, () => ({ type, body: { case: 'data' as const, value: {} } }));
    await clients.publish.publishBatch({ tenantId, events });
  }
  await eventually(() => expect(receiver.received).toHaveLength(16));
  dispatch.child.kill('SIGSTOP');
  await wait(3_500);
  isStill = false;
  dispatch.child.kill('SIGCONT');
  // What was answered counts; what was not goes out again, uncharged, though one attempt is all that it has.
  for (const subscriptionId of [slow, silent]) {
    const deliveries = await eventually(async () => {
      const { deliveries } = await clients.events.listDeliveries({ tenantId, subscriptionId });
      expect(deliveries.map((d) => d.state)).toEqual(Array(8).fill(DeliveryState.SUCCEEDED));
      return deliveries;
    });
    expect(deliveries.map((d) => d.attemptCount)).toEqual(Array(8).fill(1));
    const { subscription } = await clients.subscriptions.getSubscription({ tenantId, subscriptionId });
    expect(subscription!.breaker?.state ?? BreakerState.CLOSED).toBe(BreakerState.CLOSED);
  }
  const bySlow = receiver.received.filter((r) => r.path === '/slow');
  expect([bySlow.length, receiver.received.length]).toEqual([8, 24]);
  expect(await dispatch.kill('SIGTERM')).toBe(0);
});

test('`npm start` is the process itself: SIGTERM drains it, and nothing of it is left', async () => {
  await using database = await cloneDatabase();
  const [http, grpc] = [await freePort(), await freePort()];
  const npm = spawn('npm', ['start'], {
    cwd: ROOT,
    env: {
      ...process.env,
      ...external(database.url),
      DISPATCH_HTTP_PORT: String(http),
      DISPATCH_GRPC_PORT: String(grpc),
    },
    stdio: 'ignore',
  });
  const ready = () => fetch(`http://127.0.0.1:${http}/readyz`).then((response) => response.status);
  await eventually(async () => expect(await ready()).toBe(200), 30_000);
  const ended = new Promise((done) => npm.once('exit', done));
  npm.kill('SIGTERM');
  await ended;
  await eventually(async () => await expect(ready()).rejects.toThrow());
});

test('a data directory of a process that has ended is free, also while nobody has asked for its end', async () => {
  const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-zombie-'));
  // The parent becomes a program that asks for no child.
  const parent = spawn('sh', ['-c', 'sleep 3 & echo $!; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const pid = await new Promise<number>((done) =>
    parent.stdout.once('data', (text) => done(Number(String(text)))),
  );
  const statOf = async () => (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]!.split(' ');
  await writeFile(join(dataDir, 'lock'), `${pid} ${(await statOf())[19]}`);
  await expect(lockDataDir(dataDir)).rejects.toThrow(`is in use by the dispatch with pid ${pid}`);
  await eventually(async () => expect((await statOf())[0]).toBe('Z'));
  await (await lockDataDir(dataDir))[Symbol.asyncDispose]();
  parent.kill();
  await rm(dataDir, { recursive: true });
});

describe('the embedded database', () => {
  test('keeps its data over restarts, and its keys private', async () => {
    const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-data-'));
    await chmod(dataDir, 0o755);
    let dispatch = await spawnDispatch({ DISPATCH_DATA_DIR: dataDir });
    const key = await readFile(join(dataDir, 'admin-key'), 'utf8');
    expect(dispatch.output()).toContain(key);
    expect((await stat(join(dataDir, 'admin-key'))).mode & 0o777).toBe(0o600);
    expect((await stat(join(dataDir, 'master-key'))).mode & 0o777).toBe(0o600);
    await clientsOf(dispatch.httpPort, key).tenants.createTenant({ tenant: { tenantId: 'acme' } });
    const second = spawnDispatch({ DISPATCH_DATA_DIR: dataDir });
    await expect(second).rejects.toThrow(/is in use by the dispatch with pid \d+/);
    await dispatch.kill('SIGTERM');
    dispatch = await spawnDispatch({ DISPATCH_DATA_DIR: dataDir });
    expect(dispatch.output()).not.toContain(key); // shown once
    const { tenant } = await clientsOf(dispatch.httpPort, key).tenants.getTenant({ tenantId: 'acme' });
    expect(tenant!.tenantId).toBe('acme');
    await dispatch.kill('SIGTERM');
    await removeEmbedded(dataDir);
  });

  test('is there again when it was killed, with all that was committed', async () => {
    const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-crash-'));
    const dispatch = await spawnDispatch({ DISPATCH_DATA_DIR: dataDir });
    const key = await readFile(join(dataDir, 'admin-key'), 'utf8');
    const { tenants } = clientsOf(dispatch.httpPort, key);
    await tenants.createTenant({ tenant: { tenantId: 'acme' } });
    const { home } = await findPlace(dataDir);
    const postmaster = async () =>
      Number((await readFile(join(home, 'data', 'postmaster.pid'), 'utf8')).split('\n')[0]);
    const killed = await postmaster();
    process.kill(killed, 'SIGKILL');
    // Its backends answer until they notice that it is gone: what they answer shows nothing.
    const restarted = await eventually(async () => {
      const pid = await postmaster();
      expect(pid).not.toBe(killed);
      return pid;
    }, 60_000);
    let tries = 0;
    await eventually(() => tenants.createTenant({ tenant: { tenantId: `after-${tries++}` } }), 60_000);
    const acme = await eventually(() => tenants.getTenant({ tenantId: 'acme' }), 60_000);
    expect(acme.tenant!.tenantId).toBe('acme');
    await dispatch.kill('SIGTERM');
    // The server removes its lock when it was stopped in order, as the last thing but its own end.
    await expect(stat(join(home, 'data', 'postmaster.pid'))).rejects.toThrow('ENOENT');
    await eventually(() => expect(() => process.kill(restarted, 0)).toThrow('ESRCH'));
    await removeEmbedded(dataDir);
  });

  test('waits for a server that was killed and is not gone yet', async () => {
    const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-killed-'));
    const first = await startEmbedded({ dataDir });
    const client = new pg.Client({ connectionString: first.url });
    await client.connect();
    const { rows } = await client.query('SHOW data_directory');
    await client.end();
    await first[Symbol.asyncDispose]();
    // A process of the server's own user has the pid that the lock names.
    const { uid, gid } = await stat(rows[0].data_directory);
    const holder = spawn('sleep', ['60'], { uid, gid });
    const lock = join(rows[0].data_directory, 'postmaster.pid');
    await writeFile(lock, `${holder.pid}\n${rows[0].data_directory}\n0\n0\n\n127.0.0.1\n`);
    await chmod(lock, 0o644);
    const log = join(rows[0].data_directory, '..', 'server.log');
    const second = startEmbedded({ dataDir });
    await eventually(async () => expect(await readFile(log, 'utf8')).toContain('already exists'));
    holder.kill();
    await (await second)[Symbol.asyncDispose]();
    await removeEmbedded(dataDir);
  });

  test('works in a folder that other users cannot enter', async () => {
    const closed = await mkdtemp(join(tmpdir(), 'dispatch-closed-'));
    expect((await stat(closed)).mode & 0o077).toBe(0);
    const embedded = await startEmbedded({ dataDir: join(closed, 'data') });
    expect(
      (await migrate(embedded.url, { hashPartitions: 2, partitionDays: 7 })).applied.length,
    ).toBeGreaterThan(0);
    expect((await migrate(embedded.url, { hashPartitions: 2, partitionDays: 7 })).applied).toEqual([]);
    await embedded[Symbol.asyncDispose]();
    await removeEmbedded(join(closed, 'data'));
    await rm(closed, { recursive: true });
  });

  test.runIf(process.getuid?.() === 0)('works for an ordinary user, from a checkout of its own', async () => {
    // A world-readable copy of what runs, so that the user can enter it; node_modules is linked where it can be.
    const home = await mkdtemp(join(tmpdir(), 'dispatch-user-'));
    await chmod(home, 0o777);
    const checkout = join(home, 'dispatch');
    await mkdir(checkout);
    for (const name of ['src', 'gen', 'migrations', 'proto', 'package.json'])
      await cp(join(ROOT, name), join(checkout, name), { recursive: true });
    const nobody = { uid: 65_534, gid: 65_534 };
    const modules = join(ROOT, 'node_modules');
    const mayRead = spawnSync('test', ['-r', join(modules, 'pg/package.json')], nobody).status === 0;
    if (mayRead) await symlink(modules, join(checkout, 'node_modules'));
    else await cp(modules, join(checkout, 'node_modules'), { recursive: true, verbatimSymlinks: true });
    const dataDir = join(home, 'data');
    const dispatch = await spawnDispatch(
      { DISPATCH_DATA_DIR: dataDir },
      [],
      { uid: 65_534, gid: 65_534 },
      checkout,
    );
    const key = (await readFile(join(dataDir, 'admin-key'), 'utf8')).trim();
    await clientsOf(dispatch.httpPort, key).tenants.createTenant({ tenant: { tenantId: 'acme' } });
    await dispatch.kill('SIGTERM');
    await rm(home, { recursive: true });
  });
});

describe('a start that cannot work', () => {
  test('says which port is in use', async () => {
    await using database = await cloneDatabase();
    const port = await freePort();
    const taken = createServer();
    await new Promise<void>((done) => taken.listen(port, '127.0.0.1', done));
    await expect(
      spawnDispatch({ ...external(database.url), DISPATCH_HTTP_PORT: String(port) }),
    ).rejects.toThrow(`port ${port} is in use`);
    await expect(
      spawnDispatch({ ...external(database.url), DISPATCH_GRPC_PORT: String(port) }),
    ).rejects.toThrow(`${port}`);
    taken.close();
  });

  test('says that the database is not there', async () => {
    await expect(spawnDispatch(external('postgres://x:y@127.0.0.1:1/z'))).rejects.toThrow(
      /refused the connection/,
    );
  });

  test('reports every wrong setting at once', async () => {
    const wrong = {
      DISPATCH_HTTP_PORT: '99999',
      DISPATCH_ROLES: 'api,cook',
      DISPATCH_MASTER_KEYS: 'x',
      DISPATCH_LOG_LEVEL: 'loud',
      DISPATCH_COLOUR: 'red',
    };
    const failed = spawnDispatch(wrong);
    for (const name of Object.keys(wrong)) await expect(failed).rejects.toThrow(name);
  });
});
