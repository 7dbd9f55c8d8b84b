// Things that are due at a known time, by name: one timer for all of them, and one call for those that are due together.

/** Things that are due within this time of each other are told together, and added times that differ less are the same. */
const GRAIN_MS = 20;
/** More than this is not remembered: what was forgotten is found by the next walk. */
const MAX_ENTRIES = 50_000;
const MAX_TIMER_MS = 60_000;

type Entry<T> = { readonly atMs: number; readonly key: string; readonly value: T };

export type Timetable<T> = {
  /** Due after a time, unless it is known to be due sooner. */
  readonly add: (value: T, dueInMs: number) => void;
  readonly stop: () => void;
};

export function createTimetable<T>(
  keyOf: (value: T) => string,
  onDue: (values: readonly T[]) => void,
): Timetable<T> {
  const known = new Map<string, number>();
  const heap: Entry<T>[] = [];
  let timer: NodeJS.Timeout | undefined;
  let timerAtMs = Number.POSITIVE_INFINITY;

  function arm(): void {
    const first = heap[0];
    if (first === undefined || first.atMs >= timerAtMs) return;
    clearTimeout(timer);
    timerAtMs = first.atMs;
    timer = setTimeout(fire, Math.min(Math.max(1, first.atMs - performance.now()), MAX_TIMER_MS));
  }

  function fire(): void {
    timerAtMs = Number.POSITIVE_INFINITY;
    const until = performance.now() + GRAIN_MS / 2;
    const due: T[] = [];
    while (heap.length > 0 && heap[0]!.atMs <= until) {
      const { key, atMs, value } = popFirst(heap);
      if (known.get(key) !== atMs) continue; // it was due sooner, and has been told
      known.delete(key);
      due.push(value);
    }
    arm();
    if (due.length > 0) onDue(due);
  }

  return {
    add(value, dueInMs) {
      const key = keyOf(value);
      const atMs = performance.now() + dueInMs;
      const before = known.get(key);
      if (before !== undefined && before <= atMs + GRAIN_MS) return;
      if (heap.length >= MAX_ENTRIES) return;
      known.set(key, atMs);
      push(heap, { atMs, key, value });
      arm();
    },
    stop: () => clearTimeout(timer),
  };
}

/** A binary heap, the earliest first. */
function push<T>(heap: Entry<T>[], entry: Entry<T>): void {
  let at = heap.length;
  heap.push(entry);
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (heap[parent]!.atMs <= entry.atMs) break;
    heap[at] = heap[parent]!;
    at = parent;
  }
  heap[at] = entry;
}

function popFirst<T>(heap: Entry<T>[]): Entry<T> {
  const first = heap[0]!;
  const last = heap.pop()!;
  if (heap.length === 0) return first;
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && heap[child + 1]!.atMs < heap[child]!.atMs) child++;
    if (heap[child]!.atMs >= last.atMs) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = last;
  return first;
}
