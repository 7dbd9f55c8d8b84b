// When a failed delivery is tried again: pure arithmetic over a subscription's retry policy.

/** How the delay before a retry is spread: `full` is uniform between 0 and the delay. */
export type Jitter = 'full' | 'none';

/** A subscription's retry policy. Delays in ms. */
export type RetryPolicy = {
  readonly schedule:
    | { readonly kind: 'list'; readonly delaysMs: readonly number[] }
    | {
        readonly kind: 'exponential';
        readonly baseMs: number;
        readonly factor: number;
        readonly capMs: number;
        readonly maxAttempts: number;
      };
  readonly jitter: Jitter;
  /** A delivery older than this is not tried again. */
  readonly maxAgeMs?: number | undefined;
};

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** 9 attempts over a good day: 5 s, 30 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h, full jitter. */
export const DEFAULT_RETRY_POLICY: RetryPolicy = {
  schedule: {
    kind: 'list',
    delaysMs: [5 * SECOND, 30 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 10 * HOUR],
  },
  jitter: 'full',
};

/** Longest wait that an endpoint can ask for with Retry-After. */
export const RETRY_AFTER_CAP_MS = 24 * HOUR;

/** The delay before the retry that follows the `attempt`-th (1-based) attempt, before jitter; undefined when there is none. */
export function scheduledDelayMs(policy: RetryPolicy, attempt: number): number | undefined {
  const { schedule } = policy;
  switch (schedule.kind) {
    case 'list':
      return schedule.delaysMs[attempt - 1];
    case 'exponential':
      if (attempt >= schedule.maxAttempts) return undefined;
      return Math.min(schedule.capMs, schedule.baseMs * schedule.factor ** (attempt - 1));
  }
}

/**
 * The delay before the next attempt, with jitter (`random` in [0, 1)) and the endpoint's Retry-After, which can
 * lengthen a delay (up to RETRY_AFTER_CAP_MS) but not shorten it. Undefined when the schedule is used up.
 */
export function retryDelayMs(
  policy: RetryPolicy,
  attempt: number,
  retryAfterMs: number | undefined,
  random: number,
): number | undefined {
  const scheduled = scheduledDelayMs(policy, attempt);
  if (scheduled === undefined) return undefined;
  const spread = policy.jitter === 'full' ? scheduled * random : scheduled;
  const hint = retryAfterMs === undefined ? 0 : Math.min(retryAfterMs, RETRY_AFTER_CAP_MS);
  return Math.round(Math.max(spread, hint));
}

/** The wait that a Retry-After header asks for, in ms, or undefined for one that makes no sense. */
export function parseRetryAfter(header: string | undefined, nowMs: number): number | undefined {
  if (header === undefined) return undefined;
  const text = header.trim();
  if (/^\d{1,15}$/.test(text)) return Math.min(Number(text) * 1000, RETRY_AFTER_CAP_MS);
  if (!/^[A-Za-z]{3,9},? \d/.test(text)) return undefined;
  const at = Date.parse(text);
  return Number.isNaN(at) || at <= nowMs ? undefined : Math.min(at - nowMs, RETRY_AFTER_CAP_MS);
}
