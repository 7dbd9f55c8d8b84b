// How large the runs are whose figures the documentation states: a tenth of it in CI, all of it with
// DISPATCH_TEST_SCALE=1.

/** In (0, 1]. */
export const SCALE = Math.min(1, Number(process.env['DISPATCH_TEST_SCALE'] ?? '0.1')) || 0.1;

/** A size at this scale. */
export const scaled = (full: number): number => Math.max(1, Math.round(full * SCALE));
