// Event types, the patterns that match them, and an index that finds the matches of a type without
// looking at every subscription.

const SEGMENT = /^[A-Za-z0-9_-]+$/;
/** Segments of a type, of which there may be too many. */
const TYPE = /^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*$/;
/** The first segment of dispatch's own events: no wildcard matches it, so that `**` is every event of the tenant's. */
const OWN = 'dispatch';
const MAX_LENGTH = 255;
const MAX_SEGMENTS = 16;

/** What is wrong with an event type, or undefined. */
export function eventTypeProblem(type: string): string | undefined {
  if (type === '') return 'is required, for example "order.created"';
  if (type.length > MAX_LENGTH) return `is ${type.length} characters long; at most ${MAX_LENGTH}`;
  let segments = 1;
  for (let at = type.indexOf('.'); at >= 0; at = type.indexOf('.', at + 1)) segments++;
  if (segments > MAX_SEGMENTS) return `has ${segments} segments; at most ${MAX_SEGMENTS}`;
  if (!TYPE.test(type)) {
    return 'must be segments of letters, digits, "_" or "-", joined by dots, for example "order.created"';
  }
  if (type === OWN || type.startsWith(`${OWN}.`))
    return 'may not begin with "dispatch.": those types are dispatch’s own';
  return undefined;
}

/** What is wrong with a pattern, or undefined. */
export function patternProblem(pattern: string): string | undefined {
  if (pattern === '')
    return 'is empty; give a pattern such as "order.created", "order.*", "order.**" or "**"';
  if (pattern.length > MAX_LENGTH) return `is ${pattern.length} characters long; at most ${MAX_LENGTH}`;
  const segments = pattern.split('.');
  if (segments.length > MAX_SEGMENTS) return `has ${segments.length} segments; at most ${MAX_SEGMENTS}`;
  for (const [i, segment] of segments.entries()) {
    if (segment === '*') continue;
    if (segment === '**') {
      if (i === segments.length - 1) continue;
      return '"**" may only be the last segment, as in "order.**"';
    }
    if (!SEGMENT.test(segment)) {
      return 'must be segments of letters, digits, "_" or "-", or "*", joined by dots; the last may be "**"';
    }
  }
  return undefined;
}

/** Whether a valid pattern matches a valid type. `*` is one segment, `**` one or more. */
export function matchesPattern(pattern: string, type: string): boolean {
  if (pattern.startsWith('*') && type.startsWith(`${OWN}.`)) return false;
  const p = pattern.split('.');
  const t = type.split('.');
  for (let i = 0; i < p.length; i++) {
    if (p[i] === '**') return t.length > i;
    if (i >= t.length || (p[i] !== '*' && p[i] !== t[i])) return false;
  }
  return p.length === t.length;
}

/** What a node does not have, it has no memory for: most are the ends of patterns of their own. */
type Node<T> = {
  children: Map<string, Node<T>> | undefined;
  ends: T[] | undefined;
  rests: T[] | undefined;
};

/** A value and the patterns that it is found by. */
export type PatternEntry<T> = { readonly patterns: readonly string[]; readonly value: T };

/** Values found by the type that their patterns match. It never changes. */
export type PatternIndex<T> = {
  /** Each value once, in the index's order, however many of its patterns match. */
  readonly match: (type: string) => readonly T[];
  /** Another index, without some of this one's entries and with others: the work is that of what changes. */
  readonly with: (removed: readonly PatternEntry<T>[], added: readonly PatternEntry<T>[]) => PatternIndex<T>;
};

const MAX_REMEMBERED_TYPES = 1_000;

/**
 * Builds a tree of the patterns' segments. A look-up walks at most two branches a segment; the answers for
 * up to 1,000 types are remembered. They are in this order.
 */
export function createPatternIndex<T>(
  entries: readonly PatternEntry<T>[],
  order: (a: T, b: T) => number,
): PatternIndex<T> {
  return indexOf(withEntries(undefined, entries, ALL), order);
}

function indexOf<T>(root: Node<T> | undefined, order: (a: T, b: T) => number): PatternIndex<T> {
  const remembered = new Map<string, readonly T[]>();
  return {
    match(type) {
      const known = remembered.get(type);
      if (known !== undefined) return known;
      const found = new Set<T>();
      const segments = type.split('.');
      const own = segments[0] === OWN && segments.length > 1;
      if (own) collect(root?.children?.get(OWN), segments, 1, found);
      else collect(root, segments, 0, found);
      const values = [...found].sort(order);
      if (remembered.size >= MAX_REMEMBERED_TYPES) remembered.clear();
      remembered.set(type, values);
      return values;
    },
    with(removed, added) {
      const made: Made = new Set();
      const gone = new Set(removed.map(({ value }) => value));
      let left = root;
      for (const { patterns } of removed) {
        for (const pattern of patterns) {
          left = edited(left, pattern.split('.'), 0, (values) => without(values, gone, made), made);
        }
      }
      return indexOf(withEntries(left, added, made), order);
    },
  };
}

function withEntries<T>(
  root: Node<T> | undefined,
  entries: readonly PatternEntry<T>[],
  made: Made,
): Node<T> | undefined {
  let grown = root;
  for (const { patterns, value } of entries) {
    for (const pattern of patterns) {
      grown = edited(grown, pattern.split('.'), 0, (values) => withValue(values, value, made), made);
    }
  }
  return grown;
}

/** Nodes and arrays that no other index has: those may be changed. */
type Made = { readonly has: (made: object) => boolean; readonly add: (made: object) => void };

/** While there is no other index. */
const ALL: Made = { has: () => true, add: () => {} };

type Edit<T> = (values: T[] | undefined) => T[] | undefined;

/** The node after an edit of what lies at the end of a pattern; undefined: nothing is left in it. */
function edited<T>(
  node: Node<T> | undefined,
  segments: readonly string[],
  at: number,
  edit: Edit<T>,
  made: Made,
): Node<T> | undefined {
  const own = node !== undefined && made.has(node) ? node : copyOf(node);
  made.add(own);
  const segment = segments[at];
  if (segment === undefined) own.ends = edit(own.ends);
  else if (segment === '**') own.rests = edit(own.rests);
  else {
    const child = edited(own.children?.get(segment), segments, at + 1, edit, made);
    if (child === undefined) own.children?.delete(segment);
    else {
      own.children ??= new Map();
      own.children.set(segment, child);
    }
  }
  const hasChildren = own.children !== undefined && own.children.size > 0;
  return hasChildren || own.ends !== undefined || own.rests !== undefined ? own : undefined;
}

function copyOf<T>(node: Node<T> | undefined): Node<T> {
  const children = node?.children === undefined ? undefined : new Map(node.children);
  return { children, ends: node?.ends, rests: node?.rests };
}

function withValue<T>(values: T[] | undefined, value: T, made: Made): T[] {
  const own = values !== undefined && made.has(values) ? values : [...(values ?? [])];
  made.add(own);
  own.push(value);
  return own;
}

/** Looks through the values of a node once, however many of them go. */
function without<T>(values: T[] | undefined, gone: ReadonlySet<T>, made: Made): T[] | undefined {
  if (values === undefined || made.has(values)) return values;
  const left = values.filter((value) => !gone.has(value));
  if (left.length === 0) return undefined;
  made.add(left);
  return left;
}

function collect<T>(node: Node<T> | undefined, segments: readonly string[], at: number, found: Set<T>): void {
  if (node === undefined) return;
  if (at === segments.length) {
    for (const value of node.ends ?? []) found.add(value);
    return;
  }
  for (const value of node.rests ?? []) found.add(value);
  for (const key of [segments[at]!, '*']) collect(node.children?.get(key), segments, at + 1, found);
}
