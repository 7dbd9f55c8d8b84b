// The model's state: what the database and the workers hold, and what endpoints have seen.
import { claimableOfLine, type Ending, isUnder, letsLineGoOn, type Queued } from '../../src/domain/lease.ts';
import type { OnDeadLetter } from '../../src/domain/subscription.ts';

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

/** The model's clock, and a time that is not yet: see protocol.ts. */
export const NOW = 0;
export const LATER = 1;

export function withEntry(state: State, id: number, change: Partial<Entry>): State {
  return { ...state, entries: state.entries.map((entry, i) => (i === id ? { ...entry, ...change } : entry)) };
}

export function withWorker(state: State, w: number, worker: readonly Held[]): State {
  return { ...state, workers: state.workers.map((before, i) => (i === w ? worker : before)) };
}

export function withHeld(state: State, w: number, at: number, held: Held): State {
  return withWorker(
    state,
    w,
    state.workers[w]!.map((before, i) => (i === at ? held : before)),
  );
}
