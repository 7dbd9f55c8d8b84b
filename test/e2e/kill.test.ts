// kill -9 of the all-in-one process with its embedded database, and database connections that are cut. The ledger
// checker is the judge.
import { mkdtemp, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { removeEmbedded } from '../../src/storage/embedded.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { ADMIN_KEY, clientsOf, MASTER_KEY } from '../support/instance.ts';
import { arrivalOf, checkLedger, type Verdict } from '../support/ledger.ts';
import { type ProducerLedger, publishUntilAcked } from '../support/load.ts';
import { type DispatchProcess, freePort, spawnDispatch } from '../support/processes.ts';
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

describe('kill -9', () => {
  test('5,000 events while the all-in-one process is killed five times: nothing acked is lost, nothing is unexpected', async () => {
    const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-kill-'));
    await using receiver = await startReceiver();
    const environment = {
      ...ALLOW,
      DISPATCH_DATA_DIR: dataDir,
      DISPATCH_HTTP_PORT: String(await freePort()),
      DISPATCH_GRPC_PORT: String(await freePort()),
      // Short leases, so that what a killed process held is due again soon.
      DISPATCH_LEASE_SECONDS: '20',
    };
    let dispatch: DispatchProcess = await spawnDispatch(environment);
    const adminKey = await readFile(join(dataDir, 'admin-key'), 'utf8');
    const clients = clientsOf(dispatch.httpPort, adminKey);
    await clients.tenants.createTenant({ tenant: { tenantId: 'acme' } });
    await clients.subscriptions.createSubscription({
      tenantId: 'acme',
      subscription: { url: receiver.url, eventTypes: ['order.*'], attemptTimeout: { seconds: 5n } },
    });
    const acked: ProducerLedger = new Map();
    const produced = Promise.all(
      [0, 1, 2, 3, 4].map((n) =>
        publishUntilAcked(() => clients.publish, 'acme', n * 1_000, (n + 1) * 1_000, acked),
      ),
    );
    for (let kill = 1; kill <= 5; kill++) {
      // Each kill comes once some more events were acked: in the middle of the work, wherever that is.
      await eventually(() => expect(acked.size).toBeGreaterThanOrEqual(Math.min(kill * 700, 4_900)), 60_000);
      await dispatch.kill('SIGKILL');
      dispatch = await spawnDispatch(environment);
    }
    await produced;
    expect(acked.size).toBe(5_000);
    const password = await readFile(join(dataDir, 'postgres', 'password'), 'utf8').catch(() => undefined);
    const home = password === undefined ? await outsideHome(dataDir) : join(dataDir, 'postgres');
    const port = await readFile(join(home, 'port'), 'utf8');
    const owner = new pg.Client({
      host: '127.0.0.1',
      port: Number(port),
      user: 'dispatch',
      database: 'dispatch',
      password: (await readFile(join(home, 'password'), 'utf8')).trim(),
    });
    await owner.connect();
    const verdict = await drained(owner, acked, receiver);
    console.log('ledger, 5 × SIGKILL:', JSON.stringify(verdict));
    expect(verdict).toMatchObject({ acked: 5_000, lost: 0, unexpected: 0, unfinished: 0, missingEvents: 0 });
    await owner.end();
    expect(await dispatch.kill('SIGTERM')).toBe(0);
    await removeEmbedded(dataDir);
  }, 240_000);
});

/** Where the data is when the database's user cannot enter the data directory. */
async function outsideHome(dataDir: string): Promise<string> {
  const note = await readFile(join(dataDir, 'postgres', 'README'), 'utf8');
  return note.trim().split(' ').pop() ?? '';
}

describe('a database', () => {
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
