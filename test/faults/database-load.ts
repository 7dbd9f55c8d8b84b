// The load of the runs in which the database fails: publishes, deliveries and administration on several processes of
// all roles, and what they promise whatever the database does.
import { setTimeout as wait } from 'node:timers/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import { Ordering } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import type { DispatchProcess } from '../support/processes.ts';
import type { Clients } from '../support/rpc-clients.ts';
import { type Producer, startProducer } from './producer.ts';
import { startEndpoint } from './receiver.ts';
import type { Figure } from './scenario.ts';
import { adminOf, subscribe, type World } from './world.ts';

export type DatabaseLoad = {
  /** Waits until so many more events are acked than now; fails if a publish was refused for good meanwhile. */
  readonly acked: (count: number) => Promise<void>;
  /** Publishes that failed so far and were tried again. */
  readonly failureCount: () => number;
  /** From now, in seconds, until over a second both publishes and deliveries are back at RATE_PART of their rate. */
  readonly rateIsBack: () => Promise<number>;
  /** No new events; resolves with the figures that bound what was seen, when all that was published is acked. */
  readonly stop: () => Promise<Figure[]>;
};

/** Events a second. */
export const PER_SECOND = 300;
const PLAIN = ['t0', 't1', 't2', 't3'];
/** Beside them: a tenant near the end of a quota, and one whose deliveries go in order, which take paths of their own. */
const SPECIAL = ['near', 'in-order'];
const SPECIAL_PER_SECOND = 20;
/** Within what one instance may have under way: near the end from the first event on, and more than any run publishes. */
const NEAR_PER_DAY = 4_900n;
/** The shortest lease: what a commit of unknown outcome claimed is due again after it. */
const LEASE_S = 10;
const RATE_PART = 0.95;
const RATE_OVER_MS = 1_000;
/** A rate that is not back by then is not waited for any longer: the figure's bound is far below. */
const RATE_WAIT_MS = 30_000;
/** Longer than dispatch takes to give up on a database: the code that a producer sees is dispatch's. */
const TIMEOUT_MS = 20_000;

const ALLOWED = new Set(['Unavailable', 'ResourceExhausted']);

export async function startDatabaseLoad(world: World, databaseUrl: string): Promise<DatabaseLoad> {
  const settings = { DISPATCH_LEASE_SECONDS: String(LEASE_S) };
  const endpoint = await startEndpoint(world);
  const processes = await Promise.all(
    // A worker in the process that published hands over in memory; the others claim.
    ['api', 'api,worker', 'worker,maintenance'].map((roles) => world.dispatch(databaseUrl, roles, settings)),
  );
  const clients = processes.slice(0, 2).map(adminOf);
  const admin = clients[0]!;
  for (const tenantId of [...PLAIN, ...SPECIAL]) {
    const ordering = tenantId === 'in-order' ? Ordering.KEY : Ordering.NONE;
    await subscribe(admin, tenantId, endpoint.url, { ordering });
  }
  await admin.tenants.setQuota({ tenantId: 'near', quota: { eventsPerDay: NEAR_PER_DAY } });
  let isOver = false;
  world.use({
    async [Symbol.asyncDispose]() {
      isOver = true; // what a run that failed half-way left running ends too
    },
  });
  const clientsUntilOver = () => {
    if (isOver) throw new Error('the run is over');
    return clients;
  };
  const common = { clients: clientsUntilOver, timeoutMs: TIMEOUT_MS };
  const producers = [
    startProducer(world, { ...common, tenantIds: PLAIN, perSecond: PER_SECOND - SPECIAL_PER_SECOND }),
    startProducer(world, { ...common, tenantIds: SPECIAL, perSecond: SPECIAL_PER_SECOND, batch: 2 }),
  ];
  const refused = Promise.all(producers.map((producer) => producer.done)).then(
    () => new Promise<never>(() => {}),
  );
  refused.catch(() => {}); // whoever waits for something hears of it
  const administration = startAdministration(clientsUntilOver);
  const ackedCount = () => producers.reduce((sum, producer) => sum + producer.ackedCount(), 0);

  return {
    failureCount: () => producers.reduce((sum, { failures }) => sum + countOf(failures), 0),
    async acked(count) {
      const until = ackedCount() + count;
      const arrived = async () => {
        while (ackedCount() < until && !isOver) await wait(10);
      };
      await Promise.race([arrived(), refused]);
    },
    rateIsBack: () => Promise.race([rateIsBack(ackedCount, () => world.ledger.arrivals.length), refused]),
    async stop() {
      const administrationFailures = await administration.stop();
      await Promise.all(producers.map((producer) => producer.stop()));
      return [...figuresOf(processes, producers), otherCodes('administration', administrationFailures)];
    },
  };
}

async function rateIsBack(...counts: readonly (() => number)[]): Promise<number> {
  const startedAt = performance.now();
  const samples: { readonly atMs: number; readonly counts: readonly number[] }[] = [];
  for (;;) {
    const atMs = performance.now() - startedAt;
    const now = counts.map((count) => count());
    samples.push({ atMs, counts: now });
    const then = samples.findLast((sample) => sample.atMs <= atMs - RATE_OVER_MS);
    if (then !== undefined) {
      const least = (RATE_PART * PER_SECOND * (atMs - then.atMs)) / 1000;
      if (now.every((count, i) => count - then.counts[i]! >= least)) return then.atMs / 1000;
    }
    if (atMs > RATE_WAIT_MS) return atMs / 1000;
    await wait(50);
  }
}

const ADMINISTRATION_MS = 100;

/** What operators and tenants do meanwhile: reads and audited writes, in transactions of the other role. */
function startAdministration(clientsNow: () => readonly Clients[]) {
  const failures = new Map<string, number>();
  let stopped = false;
  const run = async () => {
    for (let turn = 0; !stopped; turn++) {
      const clients = clientsNow();
      const { tenants, subscriptions, events } = clients[turn % clients.length]!;
      const tenantId = PLAIN[turn % PLAIN.length]!;
      const calls = [
        () => tenants.updateTenant({ tenant: { tenantId, displayName: `${turn}` }, updateMask: MASK }),
        () => subscriptions.listSubscriptions({ tenantId }),
        () => events.listDeliveries({ tenantId, pageSize: 10 }),
      ];
      try {
        await calls[turn % calls.length]!();
      } catch (error) {
        const name = Code[ConnectError.from(error).code];
        failures.set(name, (failures.get(name) ?? 0) + 1);
      }
      await wait(ADMINISTRATION_MS);
    }
  };
  const running = run();
  running.catch(() => {}); // the run is over
  return {
    async stop() {
      stopped = true;
      await running;
      return failures;
    },
  };
}

const MASK = { paths: ['display_name'] };

function figuresOf(processes: readonly DispatchProcess[], producers: readonly Producer[]): Figure[] {
  const failures = producers.flatMap((producer) => [...producer.failures]);
  const ended = processes.filter(({ child }) => child.exitCode !== null || child.signalCode !== null);
  return [
    { name: 'publishes tried again', value: countOf(failures) },
    otherCodes('publishes', failures),
    { name: 'processes that ended', value: ended.length, atMost: 0 },
  ];
}

const countOf = (failures: Iterable<readonly [string, number]>) => {
  let sum = 0;
  for (const [, count] of failures) sum += count;
  return sum;
};

function otherCodes(of: string, failures: Iterable<readonly [string, number]>): Figure {
  const others = [...failures].filter(([code]) => !ALLOWED.has(code));
  const named = others.length === 0 ? '' : ` (${others.map(([code]) => code).join(', ')})`;
  return { name: `${of} with other codes${named}`, value: countOf(others), atMost: 0 };
}
