// Two API with two worker processes, SIGTERM under load, and connections to the database that are cut. The ledger checker
// is the judge. What is killed is in test/faults/.
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { describe, expect, test } from 'vitest';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { ADMIN_KEY, clientsOf, MASTER_KEY } from '../support/instance.ts';
import { arrivalOf, checkLedger, type Verdict } from '../support/ledger.ts';
import { type ProducerLedger, publishUntilAcked } from '../support/load.ts';
import { freePort, spawnDispatch } from '../support/processes.ts';
import { type Receiver, startReceiver } from '../support/receiver.ts';

const ALLOW = { DISPATCH_ALLOW_ENDPOINT_CIDRS: '127.0.0.0/8' };

/** Waits until nothing is unfinished, then judges. */
async function drained(
  owner: pg.Client,
  acked: ProducerLedger,
  receiver: Pick<Receiver, 'received'>,
): Promise<Verdict> {
  const judge = () =>
    checkLedger(owner, { acked, unackedHashes: new Set(), arrivals: receiver.received.map(arrivalOf) });
  return eventually(async () => {
    const verdict = await judge();
    expect(verdict.unfinished).toBe(0);
    return verdict;
  }, 100_000);
}

describe('many processes', () => {
  test('2 API and 2 worker processes deliver 20,000 events, 0 lost and 0 duplicated; SIGTERM of a worker loses nothing', async () => {
    await using database = await cloneDatabase();
    await using receiver = await startReceiver();
    const environment = {
      ...ALLOW,
      DISPATCH_DATABASE_URL: database.url,
      DISPATCH_ADMIN_KEY: ADMIN_KEY,
      DISPATCH_MASTER_KEYS: `test:${MASTER_KEY.toString('base64')}`,
      DISPATCH_DATABASE_POOL_SIZE: '4',
    };
    const apis = [
      await spawnDispatch(environment, ['--roles=api']),
      await spawnDispatch(environment, ['--roles=api']),
    ];
    const workers = [
      await spawnDispatch(environment, ['--roles=worker,maintenance']),
      await spawnDispatch(environment, ['--roles=worker,maintenance']),
    ];
    const clients = apis.map((api) => clientsOf(api.httpPort, ADMIN_KEY));
    const tenants = Array.from({ length: 10 }, (_, i) => `t${i}`);
    for (const [i, tenantId] of tenants.entries()) {
      // Made by one API process and used by the other at once: the configuration is never stale.
      await clients[i % 2]!.tenants.createTenant({ tenant: { tenantId } });
      await clients[(i + 1) % 2]!.subscriptions.createSubscription({
        tenantId,
        subscription: { url: `${receiver.url}/${tenantId}`, eventTypes: ['order.created'] },
      });
    }
    const ledgers = tenants.map((): ProducerLedger => new Map());
    const produced = Promise.all(
      tenants.map((tenantId, i) =>
        publishUntilAcked(() => clients[i % 2]!.publish, tenantId, 0, 2_000, ledgers[i]!, 100),
      ),
    );
    await eventually(() => expect(receiver.received.length).toBeGreaterThan(5_000), 60_000);
    expect(await workers[0]!.kill('SIGTERM')).toBe(0);
    workers[0] = await spawnDispatch(environment, ['--roles=worker']);
    await produced;
    const acked = new Map(ledgers.flatMap((ledger) => [...ledger]));
    const verdict = await drained(database.owner, acked, receiver);
    console.log('ledger, 2 API + 2 workers:', JSON.stringify(verdict));
    expect(verdict).toEqual({
      acked: 20_000,
      receivedRequests: 20_000,
      lost: 0,
      unexpected: 0,
      duplicated: 0,
      fannedOutTwice: 0,
      unfinished: 0,
      missingEvents: 0,
      unknownEvents: 0,
      misrecorded: 0,
    });
    for (const process of [...apis, ...workers]) expect(await process.kill('SIGTERM')).toBe(0);
  }, 240_000);

  test('SIGTERM of an all-in-one process under load: no call fails for a client that tries again, nothing is lost or sent twice', async () => {
    await using database = await cloneDatabase();
    await using receiver = await startReceiver();
    receiver.answer = async () => {
      await wait(5);
      return { status: 200 };
    };
    const environment = {
      ...ALLOW,
      DISPATCH_DATABASE_URL: database.url,
      DISPATCH_ADMIN_KEY: ADMIN_KEY,
      DISPATCH_MASTER_KEYS: `test:${MASTER_KEY.toString('base64')}`,
      DISPATCH_HTTP_PORT: String(await freePort()),
      DISPATCH_GRPC_PORT: String(await freePort()),
    };
    let dispatch = await spawnDispatch(environment);
    const clients = clientsOf(dispatch.httpPort, ADMIN_KEY);
    await clients.tenants.createTenant({ tenant: { tenantId: 'acme' } });
    await clients.subscriptions.createSubscription({
      tenantId: 'acme',
      subscription: { url: receiver.url, eventTypes: ['**'] },
    });
    const acked: ProducerLedger = new Map();
    const produced = Promise.all(
      [0, 1].map((n) => publishUntilAcked(() => clients.publish, 'acme', n * 1_500, (n + 1) * 1_500, acked)),
    );
    for (let restart = 1; restart <= 3; restart++) {
      await eventually(() => expect(acked.size).toBeGreaterThan(restart * 600), 60_000);
      expect(await dispatch.kill('SIGTERM')).toBe(0);
      dispatch = await spawnDispatch(environment);
    }
    await produced;
    const verdict = await drained(database.owner, acked, receiver);
    console.log('ledger, 3 × SIGTERM:', JSON.stringify(verdict));
    expect(verdict).toMatchObject({ acked: 3_000, lost: 0, unexpected: 0, duplicated: 0, unfinished: 0 });
    await dispatch.kill('SIGTERM');
  }, 240_000);

  test('every database connection is cut ten times under load: the process stays, nothing acked is lost', async () => {
    await using database = await cloneDatabase();
    await using receiver = await startReceiver();
    const dispatch = await spawnDispatch({
      ...ALLOW,
      DISPATCH_DATABASE_URL: database.url,
      DISPATCH_ADMIN_KEY: ADMIN_KEY,
      DISPATCH_MASTER_KEYS: `test:${MASTER_KEY.toString('base64')}`,
      DISPATCH_LEASE_SECONDS: '10',
      DISPATCH_LOG_LEVEL: 'silent',
    });
    const clients = clientsOf(dispatch.httpPort, ADMIN_KEY);
    await clients.tenants.createTenant({ tenant: { tenantId: 'acme' } });
    await clients.subscriptions.createSubscription({
      tenantId: 'acme',
      subscription: { url: receiver.url, eventTypes: ['**'], attemptTimeout: { seconds: 3n } },
    });
    const acked: ProducerLedger = new Map();
    const produced = Promise.all(
      [0, 1].map((n) => publishUntilAcked(() => clients.publish, 'acme', n * 1_500, (n + 1) * 1_500, acked)),
    );
    for (let cut = 1; cut <= 10; cut++) {
      await eventually(() => expect(acked.size).toBeGreaterThan(cut * 200), 60_000);
      await database.owner.query(
        'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
      );
    }
    await produced;
    const verdict = await drained(database.owner, acked, receiver);
    console.log('ledger, 10 × connections cut:', JSON.stringify(verdict));
    expect(verdict).toMatchObject({ acked: 3_000, lost: 0, unexpected: 0, unfinished: 0, missingEvents: 0 });
    expect(dispatch.child.exitCode).toBeNull();
    expect(await dispatch.kill('SIGTERM')).toBe(0);
  }, 240_000);
});
