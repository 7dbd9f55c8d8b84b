// A rate, as slots in time: the generic cell rate algorithm. Pure; the Lua of limits/ does the same arithmetic, and a
// test holds the two together. Times in µs on the clock of whoever keeps the state.
//
// The state is one number: when the next slot is (the "theoretical arrival time"). Slots that nobody took within
// `toleranceUs` are gone, so a burst is at most tolerance ÷ interval + 1.

/** A rate. */
export type BucketSpec = {
  /** Between two slots. */
  readonly intervalUs: number;
  /** How far back unused slots can still be taken. */
  readonly toleranceUs: number;
  /** How far ahead slots may be taken, to be used when their time has come. */
  readonly horizonUs: number;
};

/** What was taken. */
export type Taken = {
  readonly granted: number;
  /** From now to the first slot taken; ≤ 0 when its time has come. The others follow at the interval. */
  readonly startInUs: number;
  /** When fewer were granted than wanted: from now until another can be. */
  readonly waitUs: number;
  /** Between the slots that were taken. */
  readonly intervalUs: number;
};

/** Takes up to `want` slots. `nextUs` is the state: 0 for one that is not known. Returns the new state too. */
export function takeSlots(
  nextUs: number,
  spec: BucketSpec,
  nowUs: number,
  want: number,
): { readonly nextUs: number; readonly taken: Taken } {
  const base = Math.max(nextUs, nowUs - spec.toleranceUs);
  const limit = nowUs + spec.horizonUs;
  const possible = base > limit ? 0 : Math.floor((limit - base) / spec.intervalUs) + 1;
  const granted = Math.min(want, possible);
  const next = base + granted * spec.intervalUs;
  const waitUs = granted < want ? Math.max(0, next - limit) : 0;
  return { nextUs: next, taken: { granted, startInUs: base - nowUs, waitUs, intervalUs: spec.intervalUs } };
}

/** A token bucket: `perSecond` on average, up to `burst` at once, nothing ahead of time. */
export function tokenBucket(perSecond: number, burst: number): BucketSpec {
  const intervalUs = 1_000_000 / perSecond;
  return { intervalUs, toleranceUs: (Math.max(1, burst) - 1) * intervalUs, horizonUs: 0 };
}

/** Evenly paced: what is left over of the last 100 ms can be caught up, and 200 ms can be taken ahead. */
export function pace(perSecond: number): BucketSpec {
  const intervalUs = 1_000_000 / perSecond;
  return { intervalUs, toleranceUs: 100_000, horizonUs: 200_000 };
}

/** The same for one of several that share nothing: its part of the rate. `share` in (0, 1]. */
export function shareOf(spec: BucketSpec, share: number): BucketSpec {
  return share === 1 ? spec : { ...spec, intervalUs: spec.intervalUs / share };
}
