// Dead letters in messages, to and from the domain.
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  DeadLetterFilterSchema,
  DeadLetterSchema,
  type DeadLetter as WireDeadLetter,
  type DeadLetterFilter as WireFilter,
  DeadLetterReason as WireReason,
} from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import type { DeadLetterReason } from '../domain/delivery.ts';
import { invalidField } from '../domain/errors.ts';
import { parseSubscriptionId } from '../domain/ids.ts';
import type { DeadLetter, DeadLetterFilter } from '../storage/dead-letters.ts';
import { optionalPattern, optionalRange, shortText } from './pages.ts';

const WIRE_REASONS: Readonly<Record<DeadLetterReason, WireReason>> = {
  attempts_exhausted: WireReason.ATTEMPTS_EXHAUSTED,
  max_age_exceeded: WireReason.MAX_AGE_EXCEEDED,
  event_expired: WireReason.EVENT_EXPIRED,
  aborted: WireReason.ABORTED,
};

function reasonOf(wire: WireReason): DeadLetterReason {
  for (const [reason, value] of Object.entries(WIRE_REASONS))
    if (value === wire) return reason as DeadLetterReason;
  throw invalidField(
    'filter.reason',
    `must be one of ${Object.keys(WIRE_REASONS).join(', ').toUpperCase()}, or left out`,
  );
}

/** Which dead letters, checked. */
export function toFilter(wire: WireFilter | undefined): DeadLetterFilter {
  if (wire === undefined) return {};
  const eventType = optionalPattern(wire.eventType, 'filter.event_type');
  const { startMs, endMs } = optionalRange(wire, 'filter.');
  return {
    ...(wire.subscriptionId === ''
      ? {}
      : { subscriptionId: parseSubscriptionId(wire.subscriptionId, 'filter.subscription_id') }),
    ...(eventType === undefined ? {} : { eventType }),
    ...(wire.reason === WireReason.UNSPECIFIED ? {} : { reason: reasonOf(wire.reason) }),
    ...(startMs === undefined ? {} : { startMs }),
    ...(endMs === undefined ? {} : { endMs }),
    ...(wire.lastStatus === 0 ? {} : { lastStatus: parseStatus(wire.lastStatus) }),
    ...(wire.lastErrorClass === ''
      ? {}
      : { lastErrorClass: shortText(wire.lastErrorClass, 'filter.last_error_class') }),
    ...(wire.archived ? { archived: true } : {}),
  };
}

function parseStatus(status: number): number {
  if (status === -1 || (status >= 100 && status <= 999)) return status;
  throw invalidField('filter.last_status', 'must be an HTTP status, or -1 for no response');
}

/** A filter as it is shown. */
export function filterToWire(filter: DeadLetterFilter): WireFilter {
  return create(DeadLetterFilterSchema, {
    subscriptionId: filter.subscriptionId ?? '',
    eventType: filter.eventType ?? '',
    reason: filter.reason === undefined ? WireReason.UNSPECIFIED : WIRE_REASONS[filter.reason],
    ...(filter.startMs === undefined ? {} : { startTime: timestampFromMs(filter.startMs) }),
    ...(filter.endMs === undefined ? {} : { endTime: timestampFromMs(filter.endMs) }),
    lastStatus: filter.lastStatus ?? 0,
    lastErrorClass: filter.lastErrorClass ?? '',
    archived: filter.archived === true,
  });
}

/** A dead letter as it is shown. */
export function toWire(letter: DeadLetter): WireDeadLetter {
  return create(DeadLetterSchema, {
    deliveryId: letter.deliveryId,
    tenantId: letter.tenantId,
    eventId: letter.eventId,
    subscriptionId: letter.subscriptionId,
    eventType: letter.eventType,
    reason: WIRE_REASONS[letter.reason],
    lastStatus: letter.lastStatus,
    lastErrorClass: letter.lastErrorClass,
    lastErrorMessage: letter.lastErrorMessage,
    lastResponseBody: letter.lastResponseBody ?? new Uint8Array(),
    attemptCount: letter.attemptCount,
    deadTime: timestampFromMs(letter.deadAtMs),
    ...(letter.archivedAtMs === undefined ? {} : { archiveTime: timestampFromMs(letter.archivedAtMs) }),
  });
}
