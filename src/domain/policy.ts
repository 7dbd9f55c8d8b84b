// A tenant's policy: how its endpoints and dead letters are looked after. A field that a tenant does not have of its own
// follows the configured default.
import type { Violations } from './errors.ts';

/** Durations in ms; 0 means never, unless said otherwise. */
export type TenantPolicy = {
  /** New URLs hold deliveries back until their endpoint has proved itself. */
  readonly requireVerification: boolean;
  /** A subscription without a success for this long is disabled … */
  readonly autoDisableAfterMs: number;
  /** … if at least this many attempts failed since. */
  readonly autoDisableFailures: number;
  /** How often a subscription that was disabled because of its endpoint is probed. */
  readonly probeIntervalMs: number;
  /** Days after which dead letters expire; 0: with the history. */
  readonly deadLetterDays: number;
  readonly deadLetterExpiry: 'none' | 'archive' | 'discard';
};

export type PolicyField = keyof TenantPolicy;

const DAY_MS = 24 * 3600 * 1000;

/** What a new installation gives a tenant. */
export const DEFAULT_POLICY: TenantPolicy = {
  requireVerification: false,
  autoDisableAfterMs: 5 * DAY_MS,
  autoDisableFailures: 20,
  probeIntervalMs: 0,
  deadLetterDays: 0,
  deadLetterExpiry: 'none',
};

export const POLICY_FIELDS = Object.keys(DEFAULT_POLICY) as readonly PolicyField[];

/** What is wrong with one value, or undefined. */
export function policyProblem(field: PolicyField, value: unknown): string | undefined {
  const within = (min: number, max: number) => typeof value === 'number' && value >= min && value <= max;
  const isZero = value === 0;
  switch (field) {
    case 'requireVerification':
      return typeof value === 'boolean' ? undefined : 'must be true or false';
    case 'autoDisableAfterMs':
      return isZero || within(1_000, 30 * DAY_MS) ? undefined : 'must be 1 s to 30 days, or 0 for never';
    case 'autoDisableFailures':
      return within(1, 1_000_000) && Number.isInteger(value)
        ? undefined
        : 'must be a whole number from 1 to 1000000';
    case 'probeIntervalMs':
      return isZero || within(1_000, 7 * DAY_MS) ? undefined : 'must be 1 s to 7 days, or 0 for never';
    case 'deadLetterDays':
      return within(0, 365) && Number.isInteger(value) ? undefined : 'must be a whole number from 0 to 365';
    case 'deadLetterExpiry':
      return value === 'none' || value === 'archive' || value === 'discard'
        ? undefined
        : 'must be none, archive or discard';
  }
}

const WIRE_NAMES: Readonly<Record<PolicyField, string>> = {
  requireVerification: 'require_verification',
  autoDisableAfterMs: 'auto_disable_after',
  autoDisableFailures: 'auto_disable_failures',
  probeIntervalMs: 'probe_interval',
  deadLetterDays: 'dead_letter_days',
  deadLetterExpiry: 'dead_letter_expiry',
};

/** Checks the fields that are given. */
export function checkPolicy(policy: Partial<TenantPolicy>, path: string, wrong: Violations): void {
  for (const field of POLICY_FIELDS) {
    const value = policy[field];
    if (value === undefined) continue;
    const problem = policyProblem(field, value);
    if (problem !== undefined) wrong.add(`${path}.${WIRE_NAMES[field]}`, problem);
  }
}
