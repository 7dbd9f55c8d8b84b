// Lines: deliveries that were claimed behind one that has to be done before them. The first of a line is in the scheduler
// or in a request; the others are here, and hold places in the scheduler. The next one goes when all that went before it
// is written to the database: were it sent earlier, a crash could send what was before it again after it.
//
// A line ends when it is empty, or breaks when something of it cannot go on: then what is left is given back, uncharged.
import type { ClaimedDelivery } from '../domain/delivery.ts';

export type LinesDeps = {
  readonly holdBehind: (delivery: ClaimedDelivery) => void;
  readonly leaveBehind: (delivery: ClaimedDelivery) => void;
  readonly offer: (delivery: ClaimedDelivery) => void;
  /** Gives a delivery back to the database. */
  readonly giveBack: (delivery: ClaimedDelivery) => void;
};

type Line = { readonly rest: ClaimedDelivery[]; openCount: number; isBroken: boolean };

export type Lines = ReturnType<typeof createLines>;

export function createLines(deps: LinesDeps) {
  /**
   * By the deliveries that are first in their lines, or in a request: by the claim, not by the id. A delivery that is
   * retried at once can be claimed again before its last result is known to be written, and each claim has its own line.
   */
  const lines = new Map<ClaimedDelivery, Line>();

  function endRest(line: Line, giveBack: boolean): void {
    line.isBroken = true;
    for (const delivery of line.rest.splice(0)) {
      deps.leaveBehind(delivery);
      if (giveBack) deps.giveBack(delivery);
    }
  }

  return {
    /** Takes a line over and offers its first. */
    accept(deliveries: readonly ClaimedDelivery[]): void {
      const [first, ...rest] = deliveries;
      if (first === undefined) return;
      for (const delivery of rest) deps.holdBehind(delivery);
      lines.set(first, { rest, openCount: 1, isBroken: false });
      deps.offer(first);
    },

    /** The next of a delivery's line, to go in the same request, if `fits` says so. */
    takeAlong(
      first: ClaimedDelivery,
      fits: (delivery: ClaimedDelivery) => boolean,
    ): ClaimedDelivery | undefined {
      const line = lines.get(first);
      const next = line?.rest[0];
      if (line === undefined || next === undefined || !fits(next)) return undefined;
      line.rest.shift();
      line.openCount++;
      deps.leaveBehind(next);
      lines.set(next, line);
      return next;
    },

    /**
     * A delivery that was first, or in a request, is done. `goesOn`: it is written, and what is behind it may go.
     * Returns whether there may be more of its line in the database.
     */
    done(delivery: ClaimedDelivery, goesOn: boolean): boolean {
      const line = lines.get(delivery);
      if (line === undefined) return false;
      lines.delete(delivery);
      line.openCount--;
      if (!goesOn) endRest(line, true);
      if (line.openCount > 0 || line.isBroken) return !line.isBroken && line.openCount === 0;
      const next = line.rest.shift();
      if (next === undefined) return true;
      line.openCount = 1;
      deps.leaveBehind(next);
      lines.set(next, line);
      deps.offer(next);
      return false;
    },

    /** Its lease and those behind it run out by themselves. */
    dropped(delivery: ClaimedDelivery): void {
      const line = lines.get(delivery);
      if (line === undefined) return;
      lines.delete(delivery);
      endRest(line, false);
    },

    /** Gives back all that waits behind something. */
    drain(): void {
      for (const line of lines.values()) endRest(line, true);
    },
  };
}
