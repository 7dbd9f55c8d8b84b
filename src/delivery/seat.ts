// Workers that share the cores of one host. More of them than cores do the same work at a higher price each (caches that
// somebody else has filled meanwhile), so while the cores are full as many work as there are cores: those with a seat. The
// others step back, which says nothing to those whose endpoints are what is slow: they need no seat, and cores that are not full
// need none either. ADR 0026 has the measurements.

/** What a host's cores did since any time before, in ticks of any length; `free` of them nobody used. */
export type CoreTicks = { readonly all: number; readonly free: number };

export type SeatDeps = {
  /** Undefined where the host does not say: nobody steps back there. */
  readonly coreTicks: () => CoreTicks | undefined;
  /** The event loop's utilisation since it was asked last, in [0, 1]. */
  readonly utilization: () => number;
  readonly holds: () => boolean;
  /** False: all seats of the host are taken. Undefined: nobody could be asked. */
  readonly take: () => Promise<boolean | undefined>;
  readonly giveBack: () => Promise<void>;
  /** Monotonic, in ms. */
  readonly now: () => number;
};

/** How often one looks. */
const LOOK_MS = 1_000;
/** Timers of that time may be early. */
const EARLY_MS = 50;
/** What happened between looks that lie further apart says nothing of now. */
const MAX_SPAN_MS = 3 * LOOK_MS;
/** Cores of which less than this part is free are full, and for those with a seat and those without they stay so until more than that is. */
const FULL = 0.05;
const FREE_AGAIN = 0.1;
/** A disk that stands still for a moment is no reason to come back. */
const FREE_LOOKS = 2;
/** One that was needed because cores were free stays for this long: those with a seat do not fill them alone. */
const STAY_MS = 10_000;
/** An event loop with more to do than this needs a core of its own. */
const BUSY = 0.5;

export type Seat = {
  /** Whether this worker leaves the cores to others for now. Looks once a second at most, when it is asked. */
  readonly stepsBack: () => boolean;
  /** The same, as it was found last. */
  readonly isBack: () => boolean;
};

export function createSeat(deps: SeatDeps): Seat {
  let isBack = false;
  let lookedAtMs = Number.NEGATIVE_INFINITY;
  let last: CoreTicks | undefined;
  let asking = false;
  let staysUntilMs = 0;
  let freeLooks = 0;

  function look(nowMs: number): void {
    const spanMs = nowMs - lookedAtMs;
    if (spanMs < LOOK_MS - EARLY_MS) return;
    lookedAtMs = nowMs;
    const before = last;
    last = deps.coreTicks();
    const utilization = deps.utilization();
    if (last === undefined || before === undefined || last.all <= before.all || spanMs > MAX_SPAN_MS) {
      isBack = false;
      return;
    }
    const free = (last.free - before.free) / (last.all - before.all);
    freeLooks = free > FREE_AGAIN ? freeLooks + 1 : 0;
    if (isBack && freeLooks >= FREE_LOOKS) {
      isBack = false;
      staysUntilMs = nowMs + STAY_MS;
    }
    const isFull = free < (deps.holds() ? FREE_AGAIN : FULL) && nowMs >= staysUntilMs;
    const needsSeat = isBack || (isFull && utilization > BUSY);
    if (needsSeat === deps.holds() || asking) return;
    asking = true;
    const answer = needsSeat ? take() : deps.giveBack();
    void answer.finally(() => {
      asking = false;
    });
  }

  async function take(): Promise<void> {
    const wasBack = isBack;
    const isTaken = await deps.take();
    if (deps.now() < staysUntilMs) return; // cores came free meanwhile
    isBack = isTaken === false;
    if (wasBack && !isBack) last = undefined; // how little it had to do until now says nothing of what it has from now on
  }

  return {
    stepsBack() {
      look(deps.now());
      return isBack;
    },
    isBack: () => isBack,
  };
}
