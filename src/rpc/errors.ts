// The one place where errors become wire codes and google.rpc details.
import { create, type DescMessage, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import { anyPack, durationFromMs } from '@bufbuild/protobuf/wkt';
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RetryInfoSchema,
} from '../../gen/google/rpc/error_details_pb.ts';
import { StatusSchema } from '../../gen/google/rpc/status_pb.ts';
import { DispatchError, type ErrorCode } from '../domain/errors.ts';

/** google.rpc.Code numbers. */
export const CODE_NUMBER: Readonly<Record<ErrorCode, number>> = {
  CANCELLED: 1,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  UNAUTHENTICATED: 16,
};

/** A detail message and its value. */
export type Detail = { readonly desc: DescMessage; readonly value: MessageInitShape<DescMessage> };

/** What a caller may see of any error: its own DispatchError, or a sentence that gives nothing away. */
export function shownError(
  error: unknown,
  unavailable: (error: unknown) => DispatchError | undefined,
): DispatchError {
  if (error instanceof DispatchError) return error;
  return (
    unavailable(error) ??
    new DispatchError('INTERNAL', 'something went wrong inside dispatch', { cause: error })
  );
}

/** The google.rpc details of an error. */
export function detailsOf(error: DispatchError): Detail[] {
  const details: Detail[] = [];
  if (error.violations.length > 0) {
    const value: MessageInitShape<typeof BadRequestSchema> = {
      fieldViolations: error.violations.map((v) => ({ ...v })),
    };
    details.push({ desc: BadRequestSchema, value });
  }
  if (error.retryAfterMs !== undefined) {
    const value: MessageInitShape<typeof RetryInfoSchema> = {
      retryDelay: durationFromMs(error.retryAfterMs),
    };
    details.push({ desc: RetryInfoSchema, value });
  }
  if (error.quota !== undefined) {
    const { tenantId, quota, limit, used } = error.quota;
    const violation = {
      subject: `tenant:${tenantId}`,
      description: error.message,
      apiService: 'dispatch',
      quotaId: quota,
      quotaValue: BigInt(Math.floor(limit)),
      quotaDimensions: { limit: String(limit), used: String(used) },
    };
    const value: MessageInitShape<typeof QuotaFailureSchema> = { violations: [violation] };
    details.push({ desc: QuotaFailureSchema, value });
  }
  if (error.reason !== undefined) {
    const metadata: Record<string, string> =
      error.quota === undefined
        ? {}
        : { quota: error.quota.quota, limit: String(error.quota.limit), used: String(error.quota.used) };
    const value: MessageInitShape<typeof ErrorInfoSchema> = {
      reason: error.reason,
      domain: 'dispatch',
      metadata,
    };
    details.push({ desc: ErrorInfoSchema, value });
  }
  return details;
}

/** A text as gRPC carries it in `grpc-message`: printable ASCII stands for itself, but for `%`. */
export const grpcMessage = (text: string): string =>
  text.replace(/[^ -$&-~]+/gu, (piece) =>
    [...Buffer.from(piece)].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join(''),
  );

/** A serialised google.rpc.Status: what gRPC carries in `grpc-status-details-bin`. */
export function statusBytes(error: DispatchError): Uint8Array {
  const details = detailsOf(error).map((d) => anyPack(d.desc, create(d.desc, d.value)));
  return toBinary(
    StatusSchema,
    create(StatusSchema, { code: CODE_NUMBER[error.code], message: error.message, details }),
  );
}
