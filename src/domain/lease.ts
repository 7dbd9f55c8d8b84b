// Leases and lines: who may send a delivery, and what a result means for it. Pure state and transitions. The SQL of
// storage/claims.ts, storage/records.ts and storage/dead-letters.ts does the same: test/storage/lease-model.test.ts
// holds the two together, and test/model/ looks at everything that can come of it. Times in ms on the database's clock.
//
//   due ── claim ──▶ held (a new token; run_at is the end of the lease) ── time passes ──▶ due again
//   held ── a result under the token that is there ──▶ gone | due later | due never (its line stops)
//   a result under any other token writes nothing

/** No lease is shorter (DISPATCH_LEASE_SECONDS): one that begins now ends after this, whoever takes it. */
export const SHORTEST_LEASE_MS = 10_000;

/** A delivery in the queue, as far as leases and lines go. */
export type Queued = {
  /** When it is due; while it is held, the end of the lease; Infinity: not by itself, it stops its line. */
  readonly runAtMs: number;
  /** The token of the claim that may write; undefined when nobody holds it. */
  readonly lease: string | undefined;
  /** Attempts that were made, over the life of the delivery. */
  readonly attemptCount: number;
  /** Where that count stood when its retry schedule started: more than 0 once it was replayed. */
  readonly retryBase: number;
};

/** What is written about a delivery under its lease. */
export type Ending =
  | { readonly kind: 'succeeded' }
  | { readonly kind: 'retry'; readonly attempt: { readonly attempt: number }; readonly delayMs: number }
  | { readonly kind: 'dead'; readonly attemptCount: number; readonly stopsLine: boolean }
  | { readonly kind: 'release'; readonly delayMs: number }
  | { readonly kind: 'cancelled' };

/** Whether it may be claimed, if nothing has to go before it. */
export const isDue = (delivery: Queued, nowMs: number): boolean => delivery.runAtMs <= nowMs;

/** Whether a worker holds it: what is held and due was lost by its holder. */
export const isHeld = (delivery: Queued, nowMs: number): boolean =>
  delivery.lease !== undefined && delivery.runAtMs > nowMs;

/** A claim's write. */
export const claimed = (delivery: Queued, lease: string, untilMs: number): Queued => ({
  ...delivery,
  lease,
  runAtMs: untilMs,
});

/**
 * What a claim takes of a line (its deliveries in the queue, in order): the first, if it is due, and up to `most` in all
 * with those that follow it and are due. One that was replayed comes back in front of what went on without it: it waits
 * until nothing of that is held.
 */
export function claimableOfLine<Row extends Queued>(
  line: readonly Row[],
  nowMs: number,
  most: number,
): readonly Row[] {
  const [head] = line;
  if (head === undefined || (head.retryBase > 0 && line.some((row) => isHeld(row, nowMs)))) return [];
  const notDue = line.findIndex((row) => !isDue(row, nowMs));
  return line.slice(0, Math.min(most, notDue < 0 ? line.length : notDue));
}

/** The fence: whether a result under this token may be written. */
export const isUnder = (delivery: Queued | undefined, lease: string): boolean => delivery?.lease === lease;

/** What a result leaves of a delivery in the queue; undefined: it is gone. */
export function ended(delivery: Queued, ending: Ending, nowMs: number): Queued | undefined {
  switch (ending.kind) {
    case 'retry':
      return {
        ...delivery,
        runAtMs: nowMs + ending.delayMs,
        lease: undefined,
        attemptCount: ending.attempt.attempt,
      };
    case 'release':
      return { ...delivery, runAtMs: nowMs + ending.delayMs, lease: undefined };
    case 'dead': {
      const { attemptCount, stopsLine } = ending;
      const stopped = { ...delivery, runAtMs: Number.POSITIVE_INFINITY, lease: undefined, attemptCount };
      return stopsLine ? stopped : undefined;
    }
    case 'succeeded':
    case 'cancelled':
      return undefined;
  }
}

/** Whether what is behind a delivery in its line may go, once its result is written. */
export const letsLineGoOn = (ending: Ending): boolean =>
  ending.kind === 'succeeded' || (ending.kind === 'dead' && !ending.stopsLine);

/** A dead letter that is made a delivery again. */
export const replayed = (attemptCount: number, nowMs: number): Queued => ({
  runAtMs: nowMs,
  lease: undefined,
  attemptCount,
  retryBase: attemptCount,
});

/** The place of a delivery's next attempt in its retry schedule: 1 for the first since publish or replay. */
export const attemptOfRound = (delivery: Pick<Queued, 'attemptCount' | 'retryBase'>): number =>
  delivery.attemptCount + 1 - delivery.retryBase;
