// Judges order: what a receiver got, by key. Each body says its key and its place, from 0.
import type { Received } from './receiver.ts';

export type Placed = { readonly key: string; readonly n: number };

export type SequenceVerdict = {
  /** Requests that came before one that had to come before them, or long after. */
  readonly outOfOrder: readonly string[];
  /** Times that two requests of a key were under way at once. */
  readonly overlapping: number;
  /** Requests for what had arrived already: only the last of a key may come again. */
  readonly repeated: number;
};

/** Watches a receiver: call `begins` when a request came and `ends` with whether it was answered with 2xx. */
export function createSequenceJudge() {
  const last = new Map<string, number>();
  const underWay = new Map<string, number>();
  const outOfOrder: string[] = [];
  let overlapping = 0;
  let repeated = 0;
  return {
    begins({ key, n }: Placed): void {
      const open = underWay.get(key) ?? 0;
      if (open > 0) overlapping++;
      underWay.set(key, open + 1);
      const before = last.get(key) ?? -1;
      if (n === before) repeated++;
      else if (n !== before + 1) outOfOrder.push(`${key}: ${n} after ${before}`);
    },
    ends({ key, n }: Placed, succeeded: boolean): void {
      underWay.set(key, (underWay.get(key) ?? 1) - 1);
      if (succeeded) last.set(key, Math.max(n, last.get(key) ?? -1));
    },
    /** The last place of each key that arrived. */
    last: (key: string): number => last.get(key) ?? -1,
    verdict: (): SequenceVerdict => ({ outOfOrder, overlapping, repeated }),
  };
}

export const placeOf = (request: Pick<Received, 'body'>): Placed =>
  JSON.parse(request.body.toString('utf8')) as Placed;
