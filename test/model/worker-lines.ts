// Workers with the product's own lines (src/delivery/lines.ts) on the model's database. A claim is in the database before
// its worker hears of it, and so is a result: what happens in between is what this is about.
import { createLines } from '../../src/delivery/lines.ts';
import type { ClaimedDelivery } from '../../src/domain/delivery.ts';
import type { DeliveryId, SubscriptionId, TenantId } from '../../src/domain/ids.ts';
import { claimed, type Ending, isUnder, letsLineGoOn } from '../../src/domain/lease.ts';
import { brokenBySending } from './promises.ts';
import { leaseOver } from './protocol.ts';
import { EVENT, endingOf, written } from './results.ts';
import { type Held, initial, type Setup, type State, withEntry } from './state.ts';

type Result = { readonly delivery: ClaimedDelivery; readonly ending: Ending };

type Worker = {
  readonly lines: ReturnType<typeof createLines>;
  /** Claims that are in the database and not here yet. */
  readonly unheard: ClaimedDelivery[][];
  readonly ready: ClaimedDelivery[];
  readonly sent: ClaimedDelivery[];
  readonly results: Result[];
  /** Results that are in the database, or are not, and of which the worker has not heard. */
  readonly answers: (Result & { readonly isWritten: boolean })[];
  /** Held in the scheduler for what is behind the heads of lines. */
  places: number;
};

export type Simulation = {
  /** Does one of the things that may happen next; false: there are none. `choice` is counted round. */
  readonly step: (choice: number, isFair: boolean) => boolean;
  readonly isDone: () => boolean;
  /** Places that workers hold in all. */
  readonly places: () => number;
  readonly broken: () => string | undefined;
  readonly path: readonly string[];
};

export function simulate(setup: Setup): Simulation {
  let state: State = initial({ ...setup, workers: 0 });
  let leases = 0;
  let broken: string | undefined;
  const path: string[] = [];
  const over = new Set<string>();
  const workers = Array.from({ length: setup.workers }, newWorker);

  const leaseOf = (delivery: ClaimedDelivery) => delivery.lease.toString('latin1');
  const idOf = (delivery: ClaimedDelivery) => Number(delivery.deliveryId);

  /** What the promises are about: the requests that are on the wire. */
  const withWorkers = (): State => ({
    ...state,
    workers: workers.map((worker) =>
      worker.sent.map((delivery): Held => {
        const { attemptCount, retryBase } = delivery;
        const lease = leaseOf(delivery);
        return { id: idOf(delivery), lease, attemptCount, retryBase, stage: 'sent', isOver: over.has(lease) };
      }),
    ),
  });

  function claim(worker: Worker, most: number): void {
    const rows = state.entries.flatMap(({ row }, id) => (row === undefined ? [] : [{ ...row, id }]));
    const ids = setup.rules.claimableOfLine(rows, 0, most).map((row) => row.id);
    const lease = `L${leases++}`;
    const run = ids.map((id) => deliveryOf(id, lease, state));
    for (const id of ids) state = withEntry(state, id, { row: claimed(state.entries[id]!.row!, lease, 1) });
    worker.unheard.push(run);
  }

  function record(worker: Worker, { delivery, ending }: Result): void {
    const isWritten = isUnder(state.entries[idOf(delivery)]!.row, leaseOf(delivery));
    if (isWritten) {
      const after = written(state, idOf(delivery), ending);
      state = after.state;
      broken ??= after.broken;
    }
    worker.answers.push({ delivery, ending, isWritten });
  }

  function send(worker: Worker, delivery: ClaimedDelivery): void {
    broken ??= brokenBySending(setup, withWorkers(), idOf(delivery));
    state = withEntry(state, idOf(delivery), { wasSent: true, isOwing: true });
    worker.sent.push(delivery);
  }

  function answer(worker: Worker, delivery: ClaimedDelivery, status: number): void {
    const id = idOf(delivery);
    const { attemptCount, retryBase } = delivery;
    const ending = endingOf(setup, { id, attemptCount, retryBase }, status);
    const isLost = over.has(leaseOf(delivery)) || !isUnder(state.entries[id]!.row, leaseOf(delivery));
    if (status === 200) state = withEntry(state, id, { taken: isLost ? 'excused' : 'yes' });
    // A retry at once, as full jitter may have it.
    worker.results.push({ delivery, ending: ending.kind === 'retry' ? { ...ending, delayMs: 0 } : ending });
  }

  function newWorker(): Worker {
    const worker: Worker = {
      lines: createLines({
        holdBehind: () => void worker.places++,
        leaveBehind: () => void worker.places--,
        offer: (delivery) => void worker.ready.push(delivery),
        giveBack: (delivery) =>
          void worker.results.push({ delivery, ending: { kind: 'release', delayMs: 0 } }),
      }),
      unheard: [],
      ready: [],
      sent: [],
      results: [],
      answers: [],
      places: 0,
    };
    return worker;
  }

  type Step = { readonly label: string; readonly run: () => void; readonly isFault?: boolean };

  /** One step for each of a list, which takes it out. */
  const each = <T>(list: T[], label: (item: T) => string, run: (item: T) => void, isFault = false): Step[] =>
    list.map((item) => ({
      label: label(item),
      isFault,
      run: () => {
        list.splice(list.indexOf(item), 1);
        run(item);
      },
    }));

  function stepsOf(worker: Worker, w: number): Step[] {
    const rows = state.entries.flatMap(({ row }) => (row === undefined ? [] : [row]));
    const claims = setup.perLine.flatMap((most) =>
      setup.rules.claimableOfLine(rows, 0, most).length === 0
        ? []
        : [{ label: `worker ${w} claims up to ${most}`, run: () => claim(worker, most) }],
    );
    const isLive = (delivery: ClaimedDelivery) => !over.has(leaseOf(delivery));
    const ready = worker.ready.filter(isLive);
    const late = worker.ready.filter((delivery) => !isLive(delivery));
    const take = (delivery: ClaimedDelivery) => worker.ready.splice(worker.ready.indexOf(delivery), 1);
    return [
      ...claims,
      ...each(
        worker.unheard,
        (run) => `worker ${w} hears of its claim of ${run.map(idOf)}`,
        worker.lines.accept,
      ),
      ...ready.map((delivery) => ({
        label: `worker ${w} sends ${idOf(delivery)}`,
        run: () => {
          take(delivery);
          send(worker, delivery);
        },
      })),
      ...late.map((delivery) => ({
        label: `worker ${w} drops ${idOf(delivery)}`,
        run: () => {
          take(delivery);
          worker.lines.dropped(delivery);
        },
      })),
      ...[200, 500].flatMap((status) =>
        each(
          worker.sent,
          (delivery) => `worker ${w}: ${idOf(delivery)} is answered ${status}`,
          (delivery) => answer(worker, delivery, status),
        ),
      ),
      ...each(
        worker.results,
        ({ delivery, ending }) => `worker ${w} records ${ending.kind} of ${idOf(delivery)}`,
        (result) => record(worker, result),
      ),
      ...each(
        worker.answers,
        ({ delivery }) => `worker ${w} hears that ${idOf(delivery)} is recorded`,
        ({ delivery, ending, isWritten }) =>
          void worker.lines.done(delivery, isWritten && letsLineGoOn(ending)),
      ),
    ];
  }

  function timePasses(): Step[] {
    const leased = state.entries.flatMap(({ row }) =>
      row?.lease !== undefined && row.runAtMs === 1 ? [row.lease] : [],
    );
    return [...new Set(leased)].map((lease) => ({
      label: `time passes: the lease ${lease} is over`,
      isFault: true,
      run: () => {
        over.add(lease);
        state = leaseOver(state, lease);
      },
    }));
  }

  return {
    step(choice, isFair) {
      const all = [...workers.flatMap(stepsOf), ...timePasses()];
      const own = all.filter((step) => step.isFault !== true);
      // A fair run has no faults while there is something else to do: leases that nobody holds still end.
      const possible = isFair && own.length > 0 ? own : all;
      const next = possible[choice % possible.length];
      if (next === undefined) return false;
      path.push(next.label);
      next.run();
      return true;
    },
    isDone: () => state.entries.every(({ row }) => row === undefined),
    places: () => workers.reduce((sum, worker) => sum + worker.places, 0),
    broken: () => broken,
    path,
  };
}

function deliveryOf(id: number, lease: string, state: State): ClaimedDelivery {
  const { attemptCount, retryBase } = state.entries[id]!.row!;
  return {
    tenantId: 'a' as TenantId,
    deliveryId: String(id) as DeliveryId,
    idBytes: Buffer.alloc(16),
    subscriptionId: 's' as SubscriptionId,
    attemptCount,
    retryBase,
    roundAtMs: undefined,
    lease: Buffer.from(lease, 'latin1'),
    leaseUntilMs: 0,
    dueAtMs: 0,
    isOrdered: true,
    place: undefined,
    event: EVENT,
  };
}
