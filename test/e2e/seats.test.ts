// Two workers on a host with one core, which is full: what a kernel says of its cores is the only thing that is made up.
import { afterAll, expect, test, vi } from 'vitest';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { storeBacklog } from '../support/fleet.ts';
import { startTestInstance } from '../support/instance.ts';
import { startReceiver } from '../support/receiver.ts';

const BACKLOG = 40_000;
let ticks = 0;

vi.mock('../../src/compose/host.ts', () => ({
  readHost: () => ({ id: 'one-core', coreCount: 1, coreTicks: () => ({ all: ++ticks, free: 0 }) }),
}));
vi.spyOn(performance, 'eventLoopUtilization').mockReturnValue({ idle: 0, active: 1, utilization: 1 });
afterAll(() => void vi.restoreAllMocks());

type Worker = AsyncDisposable & { readonly httpPort: number; readonly end: () => Promise<void> };

/** One that may end before the test does. */
async function startWorker(database: TestDatabase): Promise<Worker> {
  const instance = await startTestInstance({ DISPATCH_ROLES: 'worker' }, database);
  let ended: Promise<void> | undefined;
  const end = () => (ended ??= Promise.resolve(instance[Symbol.asyncDispose]()));
  return { httpPort: instance.httpPort, end, [Symbol.asyncDispose]: end };
}

async function isBack({ httpPort }: Worker): Promise<boolean> {
  const text = await (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text();
  return /^dispatch_worker_stepped_back 1$/m.test(text);
}

test('of two workers on one full core one steps back, takes over from the other when that ends, and nothing is left behind', async () => {
  await using database = await cloneDatabase();
  await using receiver = await startReceiver();
  await using api = await startTestInstance({ DISPATCH_ROLES: 'api' }, database);
  const { tenants, subscriptions } = api.clients();
  const tenantIds = ['acme', 'globex'];
  for (const tenantId of tenantIds) {
    await tenants.createTenant({ tenant: { tenantId } });
    await subscriptions.createSubscription({
      tenantId,
      subscription: { url: receiver.url, eventTypes: ['**'] },
    });
  }
  const { rows } = await database.owner.query<{ tenant_id: string; id: string }>(
    'SELECT tenant_id, id FROM subscriptions',
  );
  for (const { tenant_id, id } of rows) await storeBacklog(database, tenant_id, id, BACKLOG / 2);
  await using first = await startWorker(database);
  await using second = await startWorker(database);
  const both = [first, second];
  const back = await eventually(async () => {
    const areBack = await Promise.all(both.map(isBack));
    expect(areBack.filter(Boolean)).toHaveLength(1);
    return both[areBack.indexOf(true)]!;
  });
  const working = both.find((one) => one !== back)!;
  expect(receiver.received.length).toBeLessThan(BACKLOG);
  await working.end();
  await eventually(async () => expect(await isBack(back)).toBe(false));
  const ids = () => new Set(receiver.received.map(({ headers }) => headers['webhook-id']));
  await eventually(() => expect(ids().size).toBe(BACKLOG), 100_000);
});
