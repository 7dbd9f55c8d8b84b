// The protocol of leases and lines as a model: a database that holds deliveries, workers that claim, send and record
// them, and everything that may happen between any two steps of theirs. What it decides comes from src/domain/ and
// src/delivery/results.ts; here is only who does what when.
//
// Time is what may have passed: the model's clock stands at 0, what is due has run_at 0, what is not has 1, and "time passes"
// makes any one of those due. So whatever holds here holds for every timing, and there are finitely many states.
import { recordOf } from '../../src/delivery/results.ts';
import type { RetryPolicy } from '../../src/domain/backoff.ts';
import { NO_TIMING, type SendResult } from '../../src/domain/delivery.ts';
import type { EventId, TenantId } from '../../src/domain/ids.ts';
import {
  attemptOfRound,
  claimableOfLine,
  claimed,
  type Ending,
  ended,
  isDue,
  isHeld,
  isUnder,
  letsLineGoOn,
  type Queued,
  replayed,
} from '../../src/domain/lease.ts';
import type { OnDeadLetter } from '../../src/domain/subscription.ts';
import { judge } from '../../src/domain/verdict.ts';

/** The rules that a run can break on purpose, to show that it would be seen. */
export const RULES = { claimableOfLine, isUnder, letsLineGoOn };
export type Rules = typeof RULES;

export const CALLS = ['cancel', 'retry', 'replay', 'discard'] as const;
export type Call = (typeof CALLS)[number];

export type Setup = {
  /** The line of each delivery, in the order of their places; undefined: it is in none. */
  readonly lines: readonly (string | undefined)[];
  readonly workers: number;
  /** How many of a line a claim may take. */
  readonly perLine: readonly number[];
  readonly onDeadLetter: OnDeadLetter;
  /** Attempts of a delivery until it is a dead letter. */
  readonly attempts: number;
  /** What tenants do; each delivery is replayed once at most. */
  readonly calls: readonly Call[];
  /** Requests and results that may be under way at once without their lease: what makes the states finitely many. */
  readonly zombies: number;
  readonly rules: Rules;
};

export const SETUP: Omit<Setup, 'lines'> = {
  workers: 2,
  perLine: [1, 99],
  onDeadLetter: 'skip',
  attempts: 2,
  calls: CALLS,
  zombies: 1,
  rules: RULES,
};

/** A delivery: its row, where it ended, and what its endpoint saw of it. */
export type Entry = {
  readonly row: Queued | undefined;
  readonly end: 'succeeded' | 'dead' | 'cancelled' | 'discarded' | undefined;
  /** Of the dead letter. */
  readonly attemptCount: number;
  readonly wasReplayed: boolean;
  readonly wasSent: boolean;
  /** A request went out that is not charged yet. */
  readonly isOwing: boolean;
  /** Whether the endpoint took it; `excused`: and a crash or a lost lease may have kept that from being recorded. */
  readonly taken: 'no' | 'yes' | 'excused';
};

/** A delivery in a worker: behind another in its line, ready to go, on the wire, or with a result to be written. */
export type Held = {
  readonly id: number;
  readonly lease: string;
  /** As they were when it was claimed. */
  readonly attemptCount: number;
  readonly retryBase: number;
  readonly stage: 'behind' | 'ready' | 'sent' | Ending;
  /** The lease has run out on the worker's own clock. */
  readonly isOver: boolean;
};

export type State = { readonly entries: readonly Entry[]; readonly workers: readonly (readonly Held[])[] };

/** One thing that may happen. */
export type Move = {
  readonly label: string;
  /** A crash, a lost connection or a worker that stood still: never needed for anything to end. */
  readonly isFault: boolean;
  readonly next: State;
  /** The promise that it breaks. */
  readonly broken: string | undefined;
};

const NEW: Entry = {
  row: { runAtMs: 0, lease: undefined, attemptCount: 0, retryBase: 0 },
  end: undefined,
  attemptCount: 0,
  wasReplayed: false,
  wasSent: false,
  isOwing: false,
  taken: 'no',
};

/** All published, nobody at work. */
export const initial = ({ lines, workers }: Setup): State => ({
  entries: lines.map(() => NEW),
  workers: Array.from({ length: workers }, () => []),
});

/** Whether every delivery has ended. */
export const isDone = (state: State): boolean => state.entries.every((entry) => entry.row === undefined);

const NOW = 0;
const LATER = 1;

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

export const EVENT = {
  eventId: '' as EventId,
  type: 'a',
  contentType: '',
  payload: Buffer.alloc(0),
  source: '',
  subject: '',
};
const TIMES = { startedAtMs: 0, durationMs: 0, lagMs: 0 };
const NOBODY = Buffer.alloc(16);

const ANSWER = {
  kind: 'response',
  retryAfter: undefined,
  control: undefined,
  body: NOBODY,
  headers: {},
  timing: NO_TIMING,
} as const;

/** What the worker makes of an answer: the verdict and the record of the product. */
export function endingOf(
  setup: Setup,
  held: Pick<Held, 'id' | 'attemptCount' | 'retryBase'>,
  status: number,
): Ending {
  const { attemptCount, retryBase } = held;
  const result: SendResult = { ...ANSWER, status };
  const delaysMs = Array.from({ length: setup.attempts - 1 }, () => LATER);
  const policy: RetryPolicy = { schedule: { kind: 'list', delaysMs }, jitter: 'none' };
  const attempt = attemptOfRound({ attemptCount, retryBase });
  const verdict = judge({ result, policy, attemptOfRound: attempt, ageMs: 0, nowMs: NOW, random: 0 });
  const isOrdered = setup.lines[held.id] !== undefined;
  const delivery = { tenantId: 'a' as TenantId, idBytes: NOBODY, lease: NOBODY, event: EVENT };
  const target = { ordering: 'key', onDeadLetter: setup.onDeadLetter } as const;
  const record = recordOf({ ...delivery, attemptCount, isOrdered }, target, result, verdict, TIMES, 0);
  switch (record.kind) {
    case 'succeeded':
    case 'cancelled':
      return { kind: record.kind };
    case 'release':
      return { kind: record.kind, delayMs: record.delayMs };
    case 'retry':
      return { kind: record.kind, attempt: { attempt: record.attempt.attempt }, delayMs: record.delayMs };
    case 'dead':
      return { kind: record.kind, attemptCount: record.attemptCount, stopsLine: record.stopsLine };
  }
}

/** The database after a result was written. */
export function written(
  state: State,
  id: number,
  ending: Ending,
): { readonly state: State; readonly broken: string | undefined } {
  const entry = state.entries[id]!;
  // Without a fence there may be no row any more: the write makes one up.
  const before = entry.row ?? replayed(entry.attemptCount, NOW);
  const row = ended(before, ending, NOW);
  const isCharged = ending.kind !== 'release' && ending.kind !== 'cancelled';
  const end = row === undefined || ending.kind === 'dead' ? endOf(ending) : undefined;
  const attemptCount = ending.kind === 'dead' ? ending.attemptCount : 0;
  const next = withEntry(state, id, { row, end, attemptCount, ...(isCharged ? { isOwing: false } : {}) });
  const isUnpaid = isCharged && !entry.isOwing;
  const isTwice = entry.end !== undefined;
  const broken = isTwice
    ? `${id} had ended and was written again`
    : isUnpaid
      ? `${id} was charged an attempt that was not made`
      : brokenIn(next);
  return { state: next, broken };
}

function endOf(ending: Ending): Entry['end'] {
  switch (ending.kind) {
    case 'succeeded':
    case 'cancelled':
      return ending.kind;
    case 'dead':
      return 'dead';
    case 'retry':
    case 'release':
      return undefined;
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

/** What must hold in every state. */
function brokenIn(state: State): string | undefined {
  for (const [id, { row, end }] of state.entries.entries()) {
    const isStopped = end === 'dead' && row?.runAtMs === Number.POSITIVE_INFINITY && row.lease === undefined;
    if (row === undefined && end === undefined) return `${id} is lost`;
    if (row !== undefined && end !== undefined && !isStopped) return `${id} is finished and in the queue`;
    if (end === 'cancelled') continue; // what is on its way to be sent is not recalled
    let live = 0;
    for (const worker of state.workers)
      for (const held of worker) if (held.id === id && !held.isOver && typeof held.stage === 'string') live++;
    if (live > 1) return `${id} has two live leases`;
    if (live === 1 && (row === undefined || !isHeld(row, NOW))) return `${id} may be sent without a lease`;
  }
  return undefined;
}

/** What must hold when a delivery is sent. */
export function brokenBySending(setup: Setup, state: State, id: number): string | undefined {
  const { lines, onDeadLetter } = setup;
  const entry = state.entries[id]!;
  if (entry.end === 'cancelled') return undefined;
  if (entry.taken === 'yes') return `${id} is sent again without a crash or a lost lease`;
  const line = lines[id];
  for (const worker of state.workers) {
    for (const { id: other, stage, isOver } of worker) {
      if (stage !== 'sent' || isOver || state.entries[other]!.end === 'cancelled') continue;
      if (other === id) return `${id} is on the wire twice`;
      if (line !== undefined && lines[other] === line) return `${id} is sent while ${other} is on the wire`;
    }
  }
  if (line === undefined) return undefined;
  for (const [other, { row, wasReplayed, wasSent }] of state.entries.entries()) {
    if (lines[other] !== line) continue;
    // A dead letter that the line skipped and that was replayed goes when it can: its place is gone.
    const isExempt = onDeadLetter === 'skip';
    if (other < id && row !== undefined && !(isExempt && wasReplayed))
      return `${id} is sent before ${other} is done`;
    if (other > id && wasSent && !(isExempt && entry.wasReplayed)) return `${id} is sent after ${other}`;
  }
  return undefined;
}

export function withEntry(state: State, id: number, change: Partial<Entry>): State {
  return { ...state, entries: state.entries.map((entry, i) => (i === id ? { ...entry, ...change } : entry)) };
}

function withWorker(state: State, w: number, worker: readonly Held[]): State {
  return { ...state, workers: state.workers.map((before, i) => (i === w ? worker : before)) };
}

function withHeld(state: State, w: number, at: number, held: Held): State {
  return withWorker(
    state,
    w,
    state.workers[w]!.map((before, i) => (i === at ? held : before)),
  );
}
