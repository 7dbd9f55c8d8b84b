// Judges an attempt: pure, from what came back to what happens next.
import { parseRetryAfter, type RetryPolicy, retryDelayMs } from './backoff.ts';
import type { ErrorClass, SendResult, Verdict } from './delivery.ts';

/** What a verdict depends on. */
export type Judged = {
  readonly result: SendResult;
  readonly policy: RetryPolicy;
  /** The attempt's place in the retry schedule: 1 for the first attempt since publish or replay. */
  readonly attemptOfRound: number;
  /** Ms since the event was accepted, or since the delivery was replayed. */
  readonly ageMs: number;
  readonly nowMs: number;
  /** In [0, 1). */
  readonly random: number;
};

/**
 * 2xx succeeds. Everything else fails, redirects included, and is tried again by the policy; 410 also disables
 * the subscription. Retry-After counts on 429 and 503 only. `webhook-delivery: disable` disables the subscription whatever
 * the status; `abort` gives up a delivery that failed.
 */
export function judge(judged: Judged): Verdict {
  const { result } = judged;
  if (result.kind === 'failure') return failed(judged, result.errorClass, result.message, undefined, false);
  const { status } = result;
  const control = result.control?.trim().toLowerCase();
  const disable = control === 'disable' || status === 410;
  if (status >= 200 && status < 300) return { kind: 'succeeded', disable };
  if (control === 'abort') {
    const message = `the endpoint answered ${status} and asked to give the delivery up`;
    return { kind: 'dead', reason: 'aborted', errorClass: 'http_status', message, disable };
  }
  if (status >= 300 && status < 400) {
    return failed(
      judged,
      'redirect',
      `the endpoint answered ${status}; redirects are not followed`,
      undefined,
      disable,
    );
  }
  const hint =
    status === 429 || status === 503 ? parseRetryAfter(result.retryAfter, judged.nowMs) : undefined;
  return failed(judged, 'http_status', `the endpoint answered ${status}`, hint, disable);
}

function failed(
  judged: Judged,
  errorClass: ErrorClass,
  message: string,
  retryAfterMs: number | undefined,
  disable: boolean,
): Verdict {
  const { policy, attemptOfRound, ageMs, random } = judged;
  const delayMs = retryDelayMs(policy, attemptOfRound, retryAfterMs, random);
  if (delayMs === undefined) {
    return { kind: 'dead', reason: 'attempts_exhausted', errorClass, message, disable };
  }
  if (policy.maxAgeMs !== undefined && ageMs + delayMs > policy.maxAgeMs) {
    return { kind: 'dead', reason: 'max_age_exceeded', errorClass, message, disable };
  }
  return { kind: 'retry', delayMs, errorClass, message, disable };
}
