// Looks at every state that a setup can come to, breadth first, so that what breaks a promise is shown in as few moves as
// there can be; and at whether every one of them can still come to an end without any fault.
import type { Ending } from '../../src/domain/lease.ts';
import { moves } from './protocol.ts';
import { type Entry, type Held, initial, isDone, type Move, type Setup, type State } from './state.ts';

export type Exploration = {
  readonly states: number;
  readonly moves: number;
  /** Undefined: every promise holds everywhere. */
  readonly broken: { readonly promise: string; readonly path: readonly string[] } | undefined;
  /** States from which not everything can end; 0 if something is broken and the search stopped. */
  readonly stuck: number;
  /** The way to the first of those. */
  readonly stuckPath: readonly string[];
};

type Known = { readonly state: State; readonly key: string; readonly from: number };

export function explore(setup: Setup, mostStates = 2_000_000): Exploration {
  const known: Known[] = [{ ...canonical(initial(setup)), from: -1 }];
  const numbers = new Map<string, number>([[known[0]!.key, 0]]);
  /** Moves that are no fault, as pairs: from, to. */
  const edges: number[] = [];
  let moveCount = 0;
  const found = { stuck: 0, stuckPath: [] };
  for (let at = 0; at < known.length; at++) {
    for (const move of moves(setup, known[at]!.state)) {
      moveCount++;
      if (move.broken !== undefined) {
        const path = pathTo(setup, known, at, move.broken);
        const broken = { promise: move.broken, path };
        return { ...found, states: known.length, moves: moveCount, broken };
      }
      const { state, key } = canonical(move.next);
      let to = numbers.get(key);
      if (to === undefined) {
        if (known.length >= mostStates) throw new Error(`there are more than ${mostStates} states`);
        to = known.push({ state, key, from: at }) - 1;
        numbers.set(key, to);
      }
      if (!move.isFault && to !== at) edges.push(at, to);
    }
  }
  const stuck = stuckStates(known, edges);
  const stuckPath = stuck[0] === undefined ? [] : pathTo(setup, known, stuck[0]);
  return { states: known.length, moves: moveCount, broken: undefined, stuck: stuck.length, stuckPath };
}

/** The moves that lead to a state, and to a broken promise after it; made again, so that each worker keeps its name. */
function pathTo(setup: Setup, known: readonly Known[], at: number, broken?: string): string[] {
  const keys: string[] = [];
  for (let i = at; i > 0; i = known[i]!.from) keys.unshift(known[i]!.key);
  const path: string[] = [];
  let state = initial(setup);
  for (const key of keys) {
    const move = moves(setup, state).find(({ next }) => canonical(next).key === key)!;
    path.push(move.label);
    state = move.next;
  }
  const last =
    broken === undefined ? undefined : moves(setup, state).find((move) => move.broken !== undefined);
  return last === undefined ? path : [...path, last.label];
}

/**
 * States from which no row of moves without faults leads to the end. If there are none, everything ends in every run in
 * which what may happen again and again does happen at some time, however many faults come between.
 */
function stuckStates(known: readonly Known[], edges: readonly number[]): number[] {
  const before: number[][] = known.map(() => []);
  for (let i = 0; i < edges.length; i += 2) before[edges[i + 1]!]!.push(edges[i]!);
  const ends = new Uint8Array(known.length);
  const todo: number[] = [];
  const mark = (at: number) => {
    if (ends[at] === 1) return;
    ends[at] = 1;
    todo.push(at);
  };
  known.forEach(({ state }, at) => void (isDone(state) && mark(at)));
  for (let at = todo.pop(); at !== undefined; at = todo.pop()) before[at]!.forEach(mark);
  return known.flatMap((_, at) => (ends[at] === 1 ? [] : [at]));
}

/** Leases are named in the order in which they are met, and workers have no names: states that differ in that only are one. */
export function canonical(state: State): { readonly state: State; readonly key: string } {
  const names = new Map<string, string>();
  const nameOf = (lease: string): string => {
    const known = names.get(lease);
    if (known !== undefined) return known;
    const name = `L${names.size}`;
    names.set(lease, name);
    return name;
  };
  let key = '';
  const entries = state.entries.map((entry) => {
    const { row } = entry;
    const lease = row?.lease === undefined ? undefined : nameOf(row.lease);
    key += `${entryKey(entry)}${lease ?? ''};`;
    return row === undefined || lease === undefined ? entry : { ...entry, row: { ...row, lease } };
  });
  // Leases of rows have their names now: what workers hold is told apart by those first, and then by what it is.
  const shaped = state.workers.map((worker) => {
    const helds = worker.map((held) => ({ held, shape: `${heldKey(held)}${names.get(held.lease) ?? ''}` }));
    helds.sort((a, b) => compare(a.shape, b.shape));
    return { helds, shape: helds.map(({ shape }) => shape).join() };
  });
  shaped.sort((a, b) => compare(a.shape, b.shape));
  const workers = shaped.map(({ helds }) =>
    helds.map(({ held }) => {
      const lease = nameOf(held.lease);
      key += `${heldKey(held)}${lease},`;
      return { ...held, lease };
    }),
  );
  return { state: { entries, workers }, key: `${key}/${workers.map((worker) => worker.length)}` };
}

const compare = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);

function entryKey({ row, end, attemptCount, wasReplayed, wasSent, isOwing, taken }: Entry): string {
  const of = row === undefined ? '' : `${row.runAtMs}.${row.attemptCount}.${row.retryBase}`;
  const is = (wasReplayed ? 1 : 0) + (wasSent ? 2 : 0) + (isOwing ? 4 : 0);
  return `${of} ${end ?? ''}${attemptCount}.${is}${taken}`;
}

function heldKey({ id, attemptCount, retryBase, stage, isOver }: Held): string {
  const of = typeof stage === 'string' ? stage : endingKey(stage);
  return `${id}.${attemptCount}.${retryBase}${of}${isOver ? '!' : ''}`;
}

function endingKey(ending: Ending): string {
  switch (ending.kind) {
    case 'succeeded':
    case 'cancelled':
      return ending.kind;
    case 'retry':
      return `${ending.kind}${ending.attempt.attempt}.${ending.delayMs}`;
    case 'dead':
      return `${ending.kind}${ending.attemptCount}${ending.stopsLine}`;
    case 'release':
      return `${ending.kind}${ending.delayMs}`;
  }
}

/** A walk: of the moves that are possible, each time the `choice`-th, counted round. Ends at a broken promise. */
export function walk(
  setup: Setup,
  choices: readonly number[],
): { readonly last: State; readonly broken: string | undefined; readonly path: readonly string[] } {
  let state = initial(setup);
  const path: string[] = [];
  for (const choice of choices) {
    const possible: Move[] = moves(setup, state);
    const move = possible[choice % possible.length];
    if (move === undefined) break;
    path.push(move.label);
    if (move.broken !== undefined) return { last: state, broken: move.broken, path };
    state = move.next;
  }
  return { last: state, broken: undefined, path };
}
