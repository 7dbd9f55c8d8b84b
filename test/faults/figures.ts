// Arithmetic of what scenarios measure.

/** The smallest value that at least `part` (in (0, 1]) of the values do not exceed; NaN of none. */
export function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * part) - 1)] ?? Number.NaN;
}

/** A span on one clock, in ms. */
export type Span = { readonly fromMs: number; readonly toMs: number };

/**
 * How full windows were of requests that a rate should keep apart: the largest share of its bound over all windows of
 * `windowMs` that end with a request. `boundOf` gives the bound of one.
 */
export function fullest(
  atMs: readonly number[],
  windowMs: number,
  boundOf: (window: Span) => number,
): { readonly share: number; readonly count: number } {
  const times = [...atMs].sort((a, b) => a - b);
  let share = 0;
  let count = 0;
  for (let from = 0, i = 0; i < times.length; i++) {
    const toMs = times[i]!;
    while (times[from]! <= toMs - windowMs) from++;
    const here = i - from + 1;
    count = Math.max(count, here);
    share = Math.max(share, here / boundOf({ fromMs: toMs - windowMs, toMs }));
  }
  return { share, count };
}
