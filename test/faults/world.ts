// What a scenario works with: a seed, a size, the ledger, and real servers and processes that end with it.
import pg from 'pg';
import type { TestDatabase } from '../support/database.ts';
import { cloneDatabaseOn } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { environmentOn } from '../support/fleet.ts';
import { ADMIN_KEY } from '../support/instance.ts';
import { type Acked, type Arrival, checkLedger, type Verdict } from '../support/ledger.ts';
import { type DispatchProcess, spawnDispatch } from '../support/processes.ts';
import { randomFrom } from '../support/random.ts';
import { type Clients, clientsOf } from '../support/rpc-clients.ts';
import { createTimeline, type Timeline } from './timeline.ts';

export type WorldOptions = {
  /** Replays the random choices of a run; the moments at which real processes do things are not replayed. */
  readonly seed: number;
  /** In (0, 1]: how much of the full size. */
  readonly scale: number;
  /** A PostgreSQL with the migrated template, shared by scenarios that leave it alone. */
  readonly serverUrl: string;
  /** Where the source of the processes is, if not here: a build that is broken on purpose. */
  readonly checkout?: string;
  /** Ends the run before its time. */
  readonly signal?: AbortSignal;
  /** Says what goes on, while it goes on. */
  readonly say: (line: string) => void;
};

export type World = AsyncDisposable & {
  readonly seed: number;
  readonly scale: number;
  /** In [0, 1), from the seed. */
  readonly random: () => number;
  /** A whole number in [from, to]. */
  readonly between: (from: number, to: number) => number;
  /** A size of the full run at this scale, at least `least`. */
  readonly sized: (full: number, least?: number) => number;
  readonly timeline: Timeline;
  readonly ledger: WorldLedger;
  readonly say: (line: string) => void;
  /** Everything that is opened in a run is closed with it, last first. */
  readonly use: <T extends AsyncDisposable>(resource: T) => T;
  readonly serverUrl: string;
  /** A database of its own on the shared server. */
  readonly database: () => Promise<TestDatabase>;
  /** A dispatch process on a database; it is killed with the world. */
  readonly dispatch: (
    databaseUrl: string,
    roles: string,
    settings?: Readonly<Record<string, string>>,
    /** Where its source is, if not where that of the others is. */
    checkout?: string,
  ) => Promise<DispatchProcess>;
  /** Waits until no delivery is unfinished, then judges what the ledger holds. */
  readonly judge: (ownerUrl: string, drainWithinMs?: number) => Promise<Verdict>;
};

/** What the producers and receivers of a run write down. */
export type WorldLedger = {
  readonly acked: Map<string, Acked>;
  readonly unackedHashes: Set<string>;
  readonly arrivals: Arrival[];
};

export function createWorld(options: WorldOptions): World {
  const stack = new AsyncDisposableStack();
  const random = randomFrom(options.seed);
  const ledger: WorldLedger = { acked: new Map(), unackedHashes: new Set(), arrivals: [] };
  return {
    seed: options.seed,
    scale: options.scale,
    random,
    between: (from, to) => from + Math.floor(random() * (to - from + 1)),
    sized: (full, least = 1) => Math.max(least, Math.round(full * options.scale)),
    timeline: createTimeline(),
    ledger,
    say: options.say,
    use: (resource) => stack.use(resource),
    serverUrl: options.serverUrl,
    database: async () => stack.use(await cloneDatabaseOn(options.serverUrl)),
    async dispatch(databaseUrl, roles, settings = {}, checkout = options.checkout) {
      const environment = { ...environmentOn(databaseUrl), DISPATCH_LOG_LEVEL: 'fatal', ...settings };
      const child = await spawnDispatch(environment, [`--roles=${roles}`], {}, checkout);
      stack.defer(async () => void (await child.kill('SIGKILL')));
      return child;
    },
    async judge(ownerUrl, drainWithinMs = 120_000) {
      const owner = new pg.Client({ connectionString: ownerUrl });
      await owner.connect();
      try {
        await eventually(async () => {
          const { rows } = await owner.query<{ n: string }>('SELECT count(*) AS n FROM deliveries');
          if (rows[0]!.n !== '0') throw new Error(`${rows[0]!.n} deliveries are unfinished`);
        }, drainWithinMs).catch((error) => options.say(String(error))); // the ledger counts them
        return await checkLedger(owner, ledger);
      } finally {
        await owner.end();
      }
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

/** Clients of a process, with the platform key. */
export const adminOf = (process: Pick<DispatchProcess, 'httpPort'>): Clients =>
  clientsOf(process.httpPort, ADMIN_KEY);

/** A tenant with a subscription to everything, at an endpoint. Returns the subscription's id. */
export async function subscribe(
  clients: Clients,
  tenantId: string,
  url: string,
  more: Readonly<Record<string, unknown>> = {},
): Promise<string> {
  const known = await clients.tenants.getTenant({ tenantId }).catch(() => undefined);
  if (known === undefined) await clients.tenants.createTenant({ tenant: { tenantId } });
  const { subscription } = await clients.subscriptions.createSubscription({
    tenantId,
    subscription: { url, eventTypes: ['**'], attemptTimeout: { seconds: 5n }, ...more },
  });
  return subscription!.subscriptionId;
}
