// The protocol of leases and lines as a model: a database that holds deliveries, workers that claim, send and record
// them, and everything that may happen between any two steps of theirs. What it decides comes from src/domain/ and
// src/delivery/results.ts; here is only who does what when.
//
// Time is what may have passed: the model's clock stands at 0, what is due has run_at 0, what is not has 1, and "time passes"
// makes any one of those due. So whatever holds here holds for every timing, and there are finitely many states.
import { claimed, type Ending, isDue, isUnder, replayed } from '../../src/domain/lease.ts';
import { brokenBySending, brokenIn } from './promises.ts';
import { endingOf, written } from './results.ts';
import {
  type Call,
  type Entry,
  type Held,
  LATER,
  type Move,
  NOW,
  type Setup,
  type State,
  withEntry,
  withHeld,
  withWorker,
} from './state.ts';

/** Everything that may happen next. */
export function moves(setup: Setup, state: State): Move[] {
  const found: Move[] = [];
  const add: Add = (label, next, { isFault = false, broken } = {}) => {
    if (zombiesIn(next) > setup.zombies) return;
    found.push({ label, isFault, next, broken: broken ?? brokenIn(next) });
  };
  timePasses(state, add);
  calls(setup, state, add);
  state.workers.forEach((worker, w) => {
    claims(setup, state, w, add);
    worker.forEach((held, at) => void steps(setup, state, w, held, at, add));
    if (worker.length > 0) add(`worker ${w} crashes`, crashed(state, w), { isFault: true });
  });
  return found;
}

type Add = (
  label: string,
  next: State,
  more?: { readonly isFault?: boolean; readonly broken?: string | undefined },
) => void;

function timePasses(state: State, add: Add): void {
  const seen = new Set<string>();
  state.entries.forEach(({ row }, id) => {
    if (row === undefined || row.runAtMs !== LATER) return;
    const { lease } = row;
    if (lease === undefined) {
      add(`time passes: ${id} is due`, withEntry(state, id, { row: { ...row, runAtMs: NOW } }));
    } else if (!seen.has(lease)) {
      seen.add(lease);
      const isLate = state.workers.some((w) => w.some((h) => h.lease === lease && isUnderWay(h)));
      add(`time passes: the lease ${lease} is over`, leaseOver(state, lease), { isFault: isLate });
    }
  });
}

/** A worker that keeps time has ended its attempts, and written what came of them, well before a lease is over. */
const isUnderWay = ({ stage }: Held) => stage !== 'behind' && stage !== 'ready';

const zombiesIn = (state: State): number =>
  state.workers
    .flat()
    .filter((held) => isUnderWay(held) && (held.isOver || state.entries[held.id]!.row?.lease !== held.lease))
    .length;

/** What waits under a lease that is over is dropped. */
export function leaseOver(state: State, lease: string): State {
  const entries = state.entries.map((entry) =>
    entry.row?.lease === lease
      ? { ...entry, row: { ...entry.row, runAtMs: NOW }, taken: excused(entry.taken) }
      : entry,
  );
  const workers = state.workers.map((worker) =>
    worker.flatMap((held) => {
      if (held.lease !== lease) return [held];
      return isUnderWay(held) ? [{ ...held, isOver: true }] : [];
    }),
  );
  return { entries, workers };
}

const excused = (taken: Entry['taken']): Entry['taken'] => (taken === 'yes' ? 'excused' : taken);

/** What tenants may ask for. */
function calls(setup: Setup, state: State, add: Add): void {
  const may = (call: Call) => setup.calls.includes(call);
  state.entries.forEach((entry, id) => {
    const { row, end, wasReplayed } = entry;
    if (may('cancel') && row !== undefined && row.runAtMs !== Number.POSITIVE_INFINITY)
      add(`cancel ${id}`, withEntry(state, id, { row: undefined, end: 'cancelled' }));
    if (may('retry') && row?.lease === undefined && row?.runAtMs === LATER)
      add(`retry ${id} now`, withEntry(state, id, { row: { ...row, runAtMs: NOW } }));
    if (may('discard') && end === 'dead')
      add(`discard ${id}`, withEntry(state, id, { row: undefined, end: 'discarded' }));
    if (may('replay') && end === 'dead' && !wasReplayed) {
      const again = replayed(entry.attemptCount, NOW);
      add(`replay ${id}`, withEntry(state, id, { row: again, end: undefined, wasReplayed: true }));
    }
  });
}

/** A worker holds at most two of a delivery: one whose lease it lost, and one that it claimed again. */
const MAX_HELD = 2;

function claims(setup: Setup, state: State, w: number, add: Add): void {
  const { lines, perLine, rules } = setup;
  const lease = freshLease(state);
  const numbered = state.entries.flatMap(({ row }, id) => (row === undefined ? [] : [{ ...row, id }]));
  const take = (ids: readonly number[]) => {
    const worker = state.workers[w]!;
    if (ids.some((id) => worker.filter((held) => held.id === id).length >= MAX_HELD)) return;
    const entries = state.entries.map((entry, id) =>
      ids.includes(id) && entry.row !== undefined
        ? { ...entry, row: claimed(entry.row, lease, LATER) }
        : entry,
    );
    add(`a claim of ${ids} is not heard of by worker ${w}`, { ...state, entries }, { isFault: true });
    const news = ids.map((id, i): Held => {
      const { attemptCount, retryBase } = state.entries[id]!.row!;
      const stage = i === 0 ? 'ready' : 'behind';
      return { id, lease, attemptCount, retryBase, stage, isOver: false };
    });
    add(`worker ${w} claims ${ids}`, withWorker({ ...state, entries }, w, [...worker, ...news]));
  };
  for (const line of new Set(lines)) {
    const rows = numbered.filter((row) => lines[row.id] === line);
    if (line === undefined) {
      for (const row of rows) if (isDue(row, NOW)) take([row.id]);
      continue;
    }
    const seen = new Set<number>();
    for (const most of perLine) {
      const ids = rules.claimableOfLine(rows, NOW, most).map((row) => row.id);
      if (ids.length === 0 || seen.has(ids.length)) continue;
      seen.add(ids.length);
      take(ids);
    }
  }
}

function freshLease(state: State): string {
  const used = new Set([
    ...state.entries.map(({ row }) => row?.lease),
    ...state.workers.flatMap((worker) => worker.map((held) => held.lease)),
  ]);
  let n = 0;
  while (used.has(`L${n}`)) n++;
  return `L${n}`;
}

/** What a worker may do with one of what it holds. */
function steps(setup: Setup, state: State, w: number, held: Held, at: number, add: Add): void {
  const { id, stage, isOver } = held;
  const become = (next: Held['stage'], entry: Partial<Entry> = {}) =>
    withEntry(withHeld(state, w, at, { ...held, stage: next }), id, entry);
  const release: Ending = { kind: 'release', delayMs: 0 };
  switch (stage) {
    case 'behind':
      return;
    case 'ready':
      add(`worker ${w} gives ${id} back`, become(release));
      add(`worker ${w} sends ${id}`, become('sent', { wasSent: true, isOwing: true }), {
        broken: brokenBySending(setup, state, id),
      });
      return;
    case 'sent': {
      const isFenced = isOver || !isUnder(state.entries[id]!.row, held.lease);
      for (const status of [200, 500]) {
        const ending = endingOf(setup, held, status);
        const entry: Partial<Entry> = status === 200 ? { taken: isFenced ? 'excused' : 'yes' } : {};
        add(`worker ${w}: ${id} is answered ${status}, ${ending.kind}`, become(ending, entry));
      }
      return;
    }
    default: {
      const mayWrite = setup.rules.isUnder(state.entries[id]!.row, held.lease);
      const after = mayWrite ? written(state, id, stage) : { state, broken: undefined };
      const { broken } = after;
      add(`worker ${w} records ${stage.kind} of ${id}`, settled(setup, after.state, w, at, mayWrite), {
        broken,
      });
      add(`worker ${w} does not hear that ${stage.kind} of ${id} is recorded`, after.state, {
        isFault: true,
        broken,
      });
      const gaveUp = settled(setup, excuse(state, held), w, at, false);
      add(`worker ${w} gives up recording ${stage.kind} of ${id}`, gaveUp, { isFault: true });
    }
  }
}

const isBehind = (setup: Setup, held: Held, first: Held) =>
  held.stage === 'behind' && held.lease === first.lease && setup.lines[held.id] === setup.lines[first.id];

/** The worker after a result of its was written, or was not: the next of the line goes, or what is behind is given back. */
function settled(setup: Setup, state: State, w: number, at: number, isWritten: boolean): State {
  const worker = state.workers[w]!;
  const first = worker[at]!;
  const goesOn = isWritten && setup.rules.letsLineGoOn(first.stage as Ending);
  let isNext = goesOn;
  const rest: Held[] = [];
  for (const [i, held] of worker.entries()) {
    if (i === at) continue;
    if (!isBehind(setup, held, first)) rest.push(held);
    else if (!goesOn) rest.push({ ...held, stage: { kind: 'release', delayMs: 0 } });
    else rest.push(isNext ? { ...held, stage: 'ready' } : held);
    if (isBehind(setup, held, first)) isNext = false;
  }
  return withWorker(state, w, rest);
}

function crashed(state: State, w: number): State {
  const without = state.workers[w]!.reduce(excuse, state);
  return withWorker(without, w, []);
}

/** What came of it will not be recorded by who holds it. */
function excuse(state: State, held: Held): State {
  const { row, taken } = state.entries[held.id]!;
  return row?.lease === held.lease ? withEntry(state, held.id, { taken: excused(taken) }) : state;
}
