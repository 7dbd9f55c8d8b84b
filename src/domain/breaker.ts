// The circuit breaker of a subscription: pure state and transitions. The Lua of limits/ does the same, and a test
// holds the two together. Times in ms on the clock of whoever keeps the state.
//
//   closed ── 5 failures in a row, or ≥ 50 % of ≥ 20 attempts in 60 s ──▶ open
//   open ── its time is over and somebody asks for a probe ──▶ half_open (one probe out, in all instances together)
//   half_open ── the probe failed ──▶ open, for twice as long (30 s … 10 min)
//   half_open ── 3 probes succeeded, one after the other ──▶ closed, on a ramp: rampPerSecond
//
// A probe whose holder vanished is given to another once its lease has run out: no state lasts by itself.

export const CONSECUTIVE_FAILURES = 5;
export const WINDOW_ATTEMPTS = 20;
const BUCKET_MS = 10_000;
const BUCKETS = 6;
const OPEN_MS = 30_000;
const MAX_OPEN_MS = 600_000;
export const PROBE_SUCCESSES = 3;
/** A breaker that opens again within this time of closing goes on doubling. */
const FORGIVEN_MS = 600_000;

/** The reasons for opening, as they are stored and shown. */
export type BreakerReason = 'consecutive_failures' | 'failure_rate' | 'probe_failed' | '';

export type BreakerState = {
  readonly phase: 'closed' | 'open' | 'half_open';
  readonly consecutive: number;
  /** Attempts and failures by the 10 s they fell in; at most six. */
  readonly window: readonly { readonly at: number; readonly attempts: number; readonly failures: number }[];
  readonly openUntilMs: number;
  /** How often it opened without a rest of 10 min. */
  readonly openCount: number;
  /** End of the lease of the probe that is out; 0 for none. */
  readonly probeUntilMs: number;
  readonly probeHolder: string;
  readonly successes: number;
  /** When it closed last; 0 for never. */
  readonly closedAtMs: number;
  readonly reason: BreakerReason;
};

export const PRISTINE: BreakerState = {
  phase: 'closed',
  consecutive: 0,
  window: [],
  openUntilMs: 0,
  openCount: 0,
  probeUntilMs: 0,
  probeHolder: '',
  successes: 0,
  closedAtMs: 0,
  reason: '',
};

/** Attempts since the last report, failures among them, and how many failures came last without a success. */
export type BreakerReport = {
  readonly attempts: number;
  readonly failures: number;
  readonly trailing: number;
};

/** Counts attempts that were not probes. Only a closed breaker listens: what was in flight when it opened is old news. */
export function reportAttempts(state: BreakerState, report: BreakerReport, nowMs: number): BreakerState {
  if (state.phase !== 'closed') return state;
  const at = Math.floor(nowMs / BUCKET_MS);
  const window = state.window.filter((b) => b.at > at - BUCKETS && b.at <= at);
  const last = window[window.length - 1];
  const bucket = last?.at === at ? last : { at, attempts: 0, failures: 0 };
  const grown = {
    at,
    attempts: bucket.attempts + report.attempts,
    failures: bucket.failures + report.failures,
  };
  const counted = [...(last?.at === at ? window.slice(0, -1) : window), grown];
  const attempts = counted.reduce((sum, b) => sum + b.attempts, 0);
  const failures = counted.reduce((sum, b) => sum + b.failures, 0);
  const consecutive =
    report.failures < report.attempts ? report.trailing : state.consecutive + report.failures;
  const next = { ...state, consecutive, window: counted };
  if (consecutive >= CONSECUTIVE_FAILURES) return opened(next, 'consecutive_failures', nowMs);
  if (attempts >= WINDOW_ATTEMPTS && failures * 2 >= attempts) return opened(next, 'failure_rate', nowMs);
  return next;
}

function opened(state: BreakerState, reason: BreakerReason, nowMs: number): BreakerState {
  const rested = state.closedAtMs > 0 && nowMs - state.closedAtMs >= FORGIVEN_MS;
  const openCount = (rested ? 0 : state.openCount) + 1;
  return {
    ...PRISTINE,
    phase: 'open',
    openCount,
    openUntilMs: nowMs + openMs(openCount),
    closedAtMs: state.closedAtMs,
    reason,
  };
}

const openMs = (openCount: number) => Math.min(MAX_OPEN_MS, OPEN_MS * 2 ** Math.min(openCount - 1, 10));

/**
 * Asks for the one probe. `knownOpenCount` > 0 tells a state that was lost (Redis was flushed) that the breaker is
 * open as far as the caller knows: it is taken up where it was.
 */
export function askProbe(
  before: BreakerState,
  holder: string,
  leaseMs: number,
  knownOpenCount: number,
  nowMs: number,
): { readonly state: BreakerState; readonly granted: boolean; readonly waitMs: number } {
  const lost = before.phase === 'closed' && before.closedAtMs === 0 && knownOpenCount > 0;
  const state: BreakerState = lost
    ? { ...PRISTINE, phase: 'open', openCount: knownOpenCount, openUntilMs: nowMs }
    : before;
  if (state.phase === 'closed') return { state, granted: false, waitMs: 0 };
  if (state.phase === 'open' && nowMs < state.openUntilMs) {
    return { state, granted: false, waitMs: state.openUntilMs - nowMs };
  }
  if (nowMs < state.probeUntilMs) return { state, granted: false, waitMs: state.probeUntilMs - nowMs };
  const next = { ...state, phase: 'half_open', probeUntilMs: nowMs + leaseMs, probeHolder: holder } as const;
  return { state: next, granted: true, waitMs: 0 };
}

/** What became of a probe: `none` gives it back unused. Anybody's but the holder's word is ignored. */
export function endProbe(
  state: BreakerState,
  holder: string,
  outcome: 'succeeded' | 'failed' | 'none',
  nowMs: number,
): BreakerState {
  if (state.phase !== 'half_open' || state.probeHolder !== holder) return state;
  const free = { ...state, probeUntilMs: 0, probeHolder: '' };
  switch (outcome) {
    case 'none':
      return free;
    case 'failed':
      return opened({ ...free, closedAtMs: 0 }, 'probe_failed', nowMs);
    case 'succeeded':
      if (state.successes + 1 < PROBE_SUCCESSES) return { ...free, successes: state.successes + 1 };
      return { ...PRISTINE, openCount: state.openCount, closedAtMs: nowMs };
  }
}

/** How long after closing a breaker lets through less than there is. */
export const RAMP_MS = 60_000;
const RAMP_START = 10;
const RAMP_DOUBLES_MS = 5_000;

/** How many deliveries a second a breaker lets through `ageMs` after it closed; undefined: as many as there are. */
export function rampPerSecond(ageMs: number): number | undefined {
  return ageMs >= RAMP_MS ? undefined : RAMP_START * 2 ** Math.floor(Math.max(0, ageMs) / RAMP_DOUBLES_MS);
}
