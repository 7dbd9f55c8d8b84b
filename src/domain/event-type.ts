// Event types, the patterns that match them, and an index that finds the matches of a type without
// looking at every subscription.

const SEGMENT = /^[A-Za-z0-9_-]+$/;
const MAX_LENGTH = 255;
const MAX_SEGMENTS = 16;

/** What is wrong with an event type, or undefined. */
export function eventTypeProblem(type: string): string | undefined {
  if (type === '') return 'is required, for example "order.created"';
  if (type.length > MAX_LENGTH) return `is ${type.length} characters long; at most ${MAX_LENGTH}`;
  const segments = type.split('.');
  if (segments.length > MAX_SEGMENTS) return `has ${segments.length} segments; at most ${MAX_SEGMENTS}`;
  if (!segments.every((s) => SEGMENT.test(s))) {
    return 'must be segments of letters, digits, "_" or "-", joined by dots, for example "order.created"';
  }
  if (segments[0] === 'dispatch') return 'may not begin with "dispatch.": those types are dispatch’s own';
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

/** The first segment of dispatch's own events: no wildcard matches it, so that `**` is every event of the tenant's. */
const OWN = 'dispatch';

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

/** Values found by the type that their patterns match. */
export type PatternIndex<T> = { readonly match: (type: string) => readonly T[] };

const MAX_REMEMBERED_TYPES = 1_000;

/**
 * Builds a tree of the patterns' segments. A look-up walks at most two branches a segment; the answers for
 * up to 1,000 types are remembered. Each value comes back once, in the order given, however many of its
 * patterns match.
 */
export function createPatternIndex<T>(
  entries: readonly { readonly patterns: readonly string[]; readonly value: T }[],
): PatternIndex<T> {
  const root = newNode<number>();
  for (const [i, entry] of entries.entries()) {
    for (const pattern of entry.patterns) insert(root, pattern.split('.'), i);
  }
  const remembered = new Map<string, readonly T[]>();
  return {
    match(type) {
      const known = remembered.get(type);
      if (known !== undefined) return known;
      const found = new Set<number>();
      const segments = type.split('.');
      const own = segments[0] === OWN && segments.length > 1 ? root.children?.get(OWN) : undefined;
      if (segments[0] !== OWN || segments.length === 1) collect(root, segments, 0, found);
      else if (own !== undefined) collect(own, segments, 1, found);
      const values = [...found].sort((a, b) => a - b).map((i) => entries[i]!.value);
      if (remembered.size >= MAX_REMEMBERED_TYPES) remembered.clear();
      remembered.set(type, values);
      return values;
    },
  };
}

function newNode<T>(): Node<T> {
  return { children: undefined, ends: undefined, rests: undefined };
}

function insert(root: Node<number>, segments: readonly string[], value: number): void {
  let node = root;
  for (const segment of segments) {
    if (segment === '**') {
      node.rests = withValue(node.rests, value);
      return;
    }
    node.children ??= new Map();
    let child = node.children.get(segment);
    if (child === undefined) {
      child = newNode();
      node.children.set(segment, child);
    }
    node = child;
  }
  node.ends = withValue(node.ends, value);
}

function withValue(values: number[] | undefined, value: number): number[] {
  if (values === undefined) return [value];
  values.push(value);
  return values;
}

function collect(node: Node<number>, segments: readonly string[], at: number, found: Set<number>): void {
  if (at === segments.length) {
    for (const value of node.ends ?? []) found.add(value);
    return;
  }
  for (const value of node.rests ?? []) found.add(value);
  for (const key of [segments[at]!, '*']) {
    const child = node.children?.get(key);
    if (child !== undefined) collect(child, segments, at + 1, found);
  }
}
