// DeadLetterService: deliveries that were given up, and their second chance.
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  DeadLetterFilterSchema,
  DeadLetterSchema,
  DeadLetterService,
  ReplaySchema,
  ReplayState,
  type DeadLetter as WireDeadLetter,
  type DeadLetterFilter as WireFilter,
  DeadLetterReason as WireReason,
  type Replay as WireReplay,
} from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import type { DeadLetterReason } from '../domain/delivery.ts';
import { invalidField } from '../domain/errors.ts';
import {
  type IdSource,
  parseDeliveryId,
  parseReplayId,
  parseSubscriptionId,
  type ReplayId,
  type SubscriptionId,
  type TenantId,
} from '../domain/ids.ts';
import { isUuid, pageToken, parsePage } from '../domain/page.ts';
import type { Database } from '../storage/database.ts';
import {
  createReplay,
  type DeadLetter,
  type DeadLetterFilter,
  discardDeadLetters,
  getDeadLetter,
  getReplay,
  listDeadLetters,
  MAX_DISCARD,
  type Replay,
  replayDeadLetter,
} from '../storage/dead-letters.ts';
import { bindService, tenantOf } from './call-path.ts';
import { optionalMs, optionalPattern } from './pages.ts';

export type DeadLetterServiceDeps = {
  readonly db: Database;
  readonly ids: IdSource;
  /** Says that a queue has something due. */
  readonly ready: (tenantId: TenantId, subscriptionId: SubscriptionId) => void;
  /** Tells maintenance, wherever it runs, that there is a job. */
  readonly changed: (tenantId: TenantId) => void;
};

export function createDeadLetterService(deps: DeadLetterServiceDeps) {
  const { db } = deps;
  return bindService(DeadLetterService, {
    async listDeadLetters(request, context) {
      const tenantId = tenantOf(context);
      const filter = toFilter(request.filter);
      const scope = `dead-letters/${tenantId}/${JSON.stringify(filter)}`;
      const page = parsePage(request, scope, 500, isUuid);
      const { rows, next } = await listDeadLetters(db, tenantId, page, filter);
      return {
        deadLetters: rows.map(toWire),
        nextPageToken: next === undefined ? '' : pageToken(scope, next),
      };
    },

    async getDeadLetter(request, context) {
      const id = parseDeliveryId(request.deliveryId);
      return { deadLetter: toWire(await getDeadLetter(db, tenantOf(context), id)) };
    },

    async replayDeadLetter(request, context) {
      const tenantId = tenantOf(context);
      const id = parseDeliveryId(request.deliveryId);
      const audited = db.audited(context.change('dead_letter.replay', id));
      const subscriptionId = await replayDeadLetter(audited, tenantId, id);
      deps.ready(tenantId, subscriptionId);
      return {};
    },

    async replayDeadLetters(request, context) {
      const tenantId = tenantOf(context);
      const replayId = deps.ids.next<ReplayId>('rpl');
      const audited = db.audited(context.change('dead_letters.replay', replayId));
      const replay = await createReplay(audited, tenantId, replayId, toFilter(request.filter));
      deps.changed(tenantId);
      return { replay: replayToWire(replay) };
    },

    async getReplay(request, context) {
      return {
        replay: replayToWire(await getReplay(db, tenantOf(context), parseReplayId(request.replayId))),
      };
    },

    async discardDeadLetters(request, context) {
      const { deliveryIds } = request;
      if (deliveryIds.length > 0 === (request.filter !== undefined)) {
        throw invalidField('filter', 'give either delivery_ids or filter (an empty filter matches all)');
      }
      if (deliveryIds.length > MAX_DISCARD) {
        throw invalidField('delivery_ids', `has ${deliveryIds.length} ids; at most ${MAX_DISCARD}`);
      }
      const which =
        request.filter === undefined
          ? { deliveryIds: deliveryIds.map((id, i) => parseDeliveryId(id, `delivery_ids[${i}]`)) }
          : { filter: toFilter(request.filter) };
      const detail = 'filter' in which ? { byFilter: true } : { count: which.deliveryIds.length };
      const resource = 'filter' in which ? '' : (which.deliveryIds[0] ?? '');
      const audited = db.audited(context.change('dead_letters.discard', resource, detail));
      return { discardedCount: await discardDeadLetters(audited, tenantOf(context), which) };
    },
  });
}

const WIRE_REASONS: Readonly<Record<DeadLetterReason, WireReason>> = {
  attempts_exhausted: WireReason.ATTEMPTS_EXHAUSTED,
  max_age_exceeded: WireReason.MAX_AGE_EXCEEDED,
  event_expired: WireReason.EVENT_EXPIRED,
};

function reasonOf(wire: WireReason): DeadLetterReason {
  for (const [reason, value] of Object.entries(WIRE_REASONS))
    if (value === wire) return reason as DeadLetterReason;
  throw invalidField(
    'filter.reason',
    `must be one of ${Object.keys(WIRE_REASONS).join(', ').toUpperCase()}, or left out`,
  );
}

function toFilter(wire: WireFilter | undefined): DeadLetterFilter {
  if (wire === undefined) return {};
  const eventType = optionalPattern(wire.eventType, 'filter.event_type');
  const startMs = optionalMs(wire.startTime, 'filter.start_time');
  const endMs = optionalMs(wire.endTime, 'filter.end_time');
  return {
    ...(wire.subscriptionId === ''
      ? {}
      : { subscriptionId: parseSubscriptionId(wire.subscriptionId, 'filter.subscription_id') }),
    ...(eventType === undefined ? {} : { eventType }),
    ...(wire.reason === WireReason.UNSPECIFIED ? {} : { reason: reasonOf(wire.reason) }),
    ...(startMs === undefined ? {} : { startMs }),
    ...(endMs === undefined ? {} : { endMs }),
  };
}

function filterToWire(filter: DeadLetterFilter): WireFilter {
  return create(DeadLetterFilterSchema, {
    subscriptionId: filter.subscriptionId ?? '',
    eventType: filter.eventType ?? '',
    reason: filter.reason === undefined ? WireReason.UNSPECIFIED : WIRE_REASONS[filter.reason],
    ...(filter.startMs === undefined ? {} : { startTime: timestampFromMs(filter.startMs) }),
    ...(filter.endMs === undefined ? {} : { endTime: timestampFromMs(filter.endMs) }),
  });
}

function toWire(letter: DeadLetter): WireDeadLetter {
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
  });
}

function replayToWire(replay: Replay): WireReplay {
  return create(ReplaySchema, {
    replayId: replay.replayId,
    tenantId: replay.tenantId,
    filter: filterToWire(replay.filter),
    state: replay.state === 'running' ? ReplayState.RUNNING : ReplayState.FINISHED,
    replayedCount: BigInt(replay.replayedCount),
    createTime: timestampFromMs(replay.createdAtMs),
    ...(replay.finishedAtMs === undefined ? {} : { finishTime: timestampFromMs(replay.finishedAtMs) }),
  });
}
