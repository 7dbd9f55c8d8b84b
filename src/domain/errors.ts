// Expected refusals, as values that every layer may throw and only rpc/ turns into wire codes.

/** The canonical gRPC codes that dispatch answers with. */
export type ErrorCode =
  | 'CANCELLED'
  | 'INVALID_ARGUMENT'
  | 'DEADLINE_EXCEEDED'
  | 'NOT_FOUND'
  | 'ALREADY_EXISTS'
  | 'PERMISSION_DENIED'
  | 'RESOURCE_EXHAUSTED'
  | 'FAILED_PRECONDITION'
  | 'ABORTED'
  | 'UNIMPLEMENTED'
  | 'INTERNAL'
  | 'UNAVAILABLE'
  | 'UNAUTHENTICATED';

/** One wrong field: its path in the request (`event.type`), and what would be right. */
export type FieldViolation = { readonly field: string; readonly description: string };

/** What a DispatchError may carry beside its message. */
export type ErrorDetails = {
  /** Fields that were wrong; become google.rpc.BadRequest. */
  readonly violations?: readonly FieldViolation[];
  /** UPPER_SNAKE_CASE, stable; becomes google.rpc.ErrorInfo.reason. */
  readonly reason?: string;
  /** When trying again makes sense; becomes google.rpc.RetryInfo. Milliseconds. */
  readonly retryAfterMs?: number;
  /** Which quota was exceeded; becomes google.rpc.QuotaFailure. */
  readonly quota?: QuotaRefusal;
  readonly cause?: unknown;
};

/** A quota by its name in the contract (`events_per_day`), its limit, and what is used of it. */
export type QuotaRefusal = {
  readonly tenantId: string;
  readonly quota: string;
  readonly limit: number;
  readonly used: number;
};

/** A refusal that a caller may see: says what was wrong and what would be right. */
export class DispatchError extends Error {
  override readonly name = 'DispatchError';
  readonly code: ErrorCode;
  readonly violations: readonly FieldViolation[];
  readonly reason: string | undefined;
  readonly retryAfterMs: number | undefined;
  readonly quota: QuotaRefusal | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.violations = details.violations ?? [];
    this.reason = details.reason;
    this.retryAfterMs = details.retryAfterMs;
    this.quota = details.quota;
  }
}

/** INVALID_ARGUMENT about one field. */
export function invalidField(field: string, description: string): DispatchError {
  return invalidFields([{ field, description }]);
}

/** INVALID_ARGUMENT about several fields; the message is the first of them. */
export function invalidFields(violations: readonly FieldViolation[]): DispatchError {
  const first = violations[0];
  const more = violations.length > 1 ? ` (and ${violations.length - 1} more)` : '';
  const message =
    first === undefined
      ? 'the request is not valid'
      : `${first.field === '' ? '' : `${first.field}: `}${first.description}${more}`;
  return new DispatchError('INVALID_ARGUMENT', message, { violations, reason: 'INVALID_FIELD' });
}

/** NOT_FOUND for a resource that does not exist or belongs to another tenant: the two look the same. */
export function notFound(what: string, id: string): DispatchError {
  return new DispatchError('NOT_FOUND', `no ${what} ${id}`, { reason: 'NOT_FOUND' });
}

const MAX_VIOLATIONS = 20;

/** Collects violations so that a caller sees every wrong field at once. */
export class Violations {
  readonly list: FieldViolation[] = [];

  /** Adds one; beyond MAX_VIOLATIONS they are not worth the size of the answer. */
  add(field: string, description: string): void {
    if (this.list.length < MAX_VIOLATIONS) this.list.push({ field: field.slice(0, 200), description });
  }

  /** Adds a violation unless `ok`. */
  check(ok: boolean, field: string, description: string): void {
    if (!ok) this.add(field, description);
  }

  /** Throws INVALID_ARGUMENT if anything was added. */
  throwIfAny(): void {
    if (this.list.length > 0) throw invalidFields(this.list);
  }
}

/** FAILED_PRECONDITION: nothing but a challenge goes to an endpoint that has not proved that it wants deliveries. */
export function mustBeVerified(subscriptionId: string): DispatchError {
  const message = `the endpoint of subscription ${subscriptionId} has to be verified first: VerifySubscription`;
  return new DispatchError('FAILED_PRECONDITION', message, { reason: 'PENDING_VERIFICATION' });
}
