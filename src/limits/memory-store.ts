// The store in this process's memory: the domain's model and nothing else. With several instances and no Redis each
// has a part of every rate (`share`), and breakers of its own.
import { askProbe, type BreakerState, endProbe, PRISTINE, reportAttempts } from '../domain/breaker.ts';
import { shareOf, takeSlots } from '../domain/bucket.ts';
import { type BreakerKey, type BreakerView, breakerName, bucketName, type LimitStore } from './store.ts';

const MAX_ENTRIES = 50_000;
/** When one that has no part of a rate is to ask again. */
const WAIT_US = 1_000_000;
/** A breaker that nobody touched for this long is forgotten, as it is in Redis. */
const FORGET_MS = 3_600_000;

/** `now` in ms, any clock; `share` is this instance's part of a rate of that kind, in [0, 1]. */
export function createMemoryStore(
  now: () => number,
  share: (kind: 'publish' | 'deliver') => number,
): LimitStore {
  const buckets = new Map<string, { readonly nextUs: number; readonly staleAtUs: number }>();
  const breakers = new Map<string, { readonly state: BreakerState; readonly staleAtMs: number }>();

  function change(key: BreakerKey, next: (state: BreakerState, nowMs: number) => BreakerState): BreakerView {
    const nowMs = Math.floor(now());
    const name = breakerName(key);
    const known = breakers.get(name);
    const before = known === undefined || known.staleAtMs <= nowMs ? PRISTINE : known.state;
    const state = next(before, nowMs);
    breakers.delete(name);
    breakers.set(name, {
      state,
      staleAtMs: Math.max(state.openUntilMs, state.probeUntilMs, nowMs) + FORGET_MS,
    });
    if (breakers.size > MAX_ENTRIES) breakers.delete(breakers.keys().next().value ?? '');
    return {
      phase: state.phase,
      changed:
        (state.phase !== before.phase || state.openCount !== before.openCount) && state.phase !== 'half_open',
      openForMs: state.phase === 'open' ? Math.max(0, state.openUntilMs - nowMs) : 0,
      openCount: state.openCount,
      closedAgoMs: state.closedAtMs > 0 ? nowMs - state.closedAtMs : -1,
      reason: state.reason,
    };
  }

  function forgetStale(nowUs: number): void {
    for (const [name, bucket] of buckets) if (bucket.staleAtUs <= nowUs) buckets.delete(name);
    // All in use: the one that was used longest ago starts afresh.
    if (buckets.size > MAX_ENTRIES) buckets.delete(buckets.keys().next().value ?? '');
  }

  return {
    take(key, spec, want) {
      const part = share(key.kind);
      if (part === 0) return Promise.resolve({ granted: 0, startInUs: 0, waitUs: WAIT_US, intervalUs: 0 });
      const nowUs = Math.floor(now() * 1000);
      const name = bucketName(key);
      const own = shareOf(spec, part);
      const { nextUs, taken } = takeSlots(buckets.get(name)?.nextUs ?? 0, own, nowUs, want);
      if (taken.granted > 0) {
        buckets.delete(name);
        buckets.set(name, { nextUs, staleAtUs: nextUs + own.toleranceUs });
        if (buckets.size > MAX_ENTRIES) forgetStale(nowUs);
      }
      return Promise.resolve(taken);
    },
    report: (key, report) =>
      Promise.resolve(change(key, (state, nowMs) => reportAttempts(state, report, nowMs))),
    askProbe(key, holder, leaseMs, knownOpenCount) {
      let answer = { granted: false, waitMs: 0 };
      const view = change(key, (before, nowMs) => {
        const asked = askProbe(before, holder, leaseMs, knownOpenCount, nowMs);
        answer = { granted: asked.granted, waitMs: asked.waitMs };
        return asked.state;
      });
      return Promise.resolve({ ...view, ...answer });
    },
    endProbe: (key, holder, outcome) =>
      Promise.resolve(change(key, (state, nowMs) => endProbe(state, holder, outcome, nowMs))),
  };
}
