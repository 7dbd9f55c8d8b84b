// EventService: what became of events.
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  type Attempt,
  AttemptOutcome,
  AttemptSchema,
  type Delivery,
  DeliverySchema,
  type Event,
  EventSchema,
  DeliveryState as WireState,
} from '../../gen/dispatch/v1/event_pb.ts';
import { EventService } from '../../gen/dispatch/v1/event_service_pb.ts';
import { invalidField } from '../domain/errors.ts';
import {
  type DeliveryId,
  type IdSource,
  parseDeliveryId,
  parseEventId,
  parseSubscriptionId,
  type SubscriptionId,
  type TenantId,
} from '../domain/ids.ts';
import { isUuid, pageToken, parsePage } from '../domain/page.ts';
import type { Database } from '../storage/database.ts';
import {
  cancelDeliveries,
  cancelDelivery,
  type DeliveryState,
  getDelivery,
  listAttempts,
  listDeliveries,
  retryDelivery,
  type StoredAttempt,
  type StoredDelivery,
} from '../storage/deliveries.ts';
import { getEvent, listEvents, type StoredEvent } from '../storage/events.ts';
import { bindService, tenantOf } from './call-path.ts';
import { optionalPattern, optionalRange } from './pages.ts';
import { startReplay, toEventFilter } from './replay-messages.ts';

export type EventServiceDeps = {
  readonly db: Database;
  readonly ids: IdSource;
  /** Tells maintenance, wherever it runs, that there is a job. */
  readonly changed: (tenantId: TenantId) => void;
  /** Says that a queue has something due. */
  readonly ready: (tenantId: TenantId, subscriptionId: SubscriptionId) => void;
};

export function createEventService(deps: EventServiceDeps) {
  const { db } = deps;
  return bindService(EventService, {
    async getEvent(request, context) {
      return { event: eventToWire(await getEvent(db, tenantOf(context), parseEventId(request.eventId))) };
    },

    async listEvents(request, context) {
      const tenantId = tenantOf(context);
      const filter = {
        typePattern: optionalPattern(request.type, 'type'),
        ...optionalRange(request),
      };
      const scope = `events/${tenantId}/${JSON.stringify(filter)}`;
      const page = parsePage(request, scope, 500, isUuid);
      const { rows, next } = await listEvents(db, tenantId, page, filter);
      return {
        events: rows.map(eventToWire),
        nextPageToken: next === undefined ? '' : pageToken(scope, next),
      };
    },

    async listDeliveries(request, context) {
      const tenantId = tenantOf(context);
      const filter = {
        eventId: request.eventId === '' ? undefined : parseEventId(request.eventId),
        subscriptionId:
          request.subscriptionId === '' ? undefined : parseSubscriptionId(request.subscriptionId),
        state: stateOf(request.state),
      };
      const scope = `deliveries/${tenantId}/${JSON.stringify(filter)}`;
      const page = parsePage(request, scope, 500, isUuid);
      const { rows, next } = await listDeliveries(db, tenantId, page, filter);
      return {
        deliveries: rows.map(deliveryToWire),
        nextPageToken: next === undefined ? '' : pageToken(scope, next),
      };
    },

    async getDelivery(request, context) {
      const delivery = await getDelivery(db, tenantOf(context), parseDeliveryId(request.deliveryId));
      return { delivery: deliveryToWire(delivery) };
    },

    async listAttempts(request, context) {
      const tenantId = tenantOf(context);
      const deliveryId = parseDeliveryId(request.deliveryId);
      const scope = `attempts/${tenantId}/${deliveryId}`;
      const page = parsePage(request, scope, 100, (key) => /^\d{1,5}$/.test(key));
      const rows = await listAttempts(db, tenantId, deliveryId, Number(page.after ?? 0), page.size);
      const shown = rows.slice(0, page.size);
      const more = rows.length > page.size;
      return {
        attempts: shown.map((attempt) => attemptToWire(deliveryId, attempt)),
        nextPageToken: more ? pageToken(scope, String(shown[shown.length - 1]?.attempt ?? 0)) : '',
      };
    },

    async retryDelivery(request, context) {
      const tenantId = tenantOf(context);
      const id = parseDeliveryId(request.deliveryId);
      const audited = db.audited(context.change('delivery.retry', id));
      const delivery = await retryDelivery(audited, tenantId, id);
      deps.ready(tenantId, delivery.subscriptionId);
      return { delivery: deliveryToWire(delivery) };
    },

    async cancelDelivery(request, context) {
      const id = parseDeliveryId(request.deliveryId);
      const audited = db.audited(context.change('delivery.cancel', id));
      const delivery = await cancelDelivery(audited, tenantOf(context), id);
      return { delivery: deliveryToWire(delivery) };
    },

    async cancelDeliveries(request, context) {
      const id = parseSubscriptionId(request.subscriptionId);
      const audited = db.audited(context.change('deliveries.cancel', id));
      return { cancelledCount: await cancelDeliveries(audited, tenantOf(context), id) };
    },

    async replayEvents(request, context) {
      const subscriptionId = parseSubscriptionId(request.subscriptionId);
      const what = { kind: 'events', subscriptionId, filter: toEventFilter(request.filter) } as const;
      return { replay: await startReplay(deps, context, 'events.replay', what, request) };
    },
  });
}

const WIRE_STATES: Readonly<Record<DeliveryState, WireState>> = {
  pending: WireState.PENDING,
  in_flight: WireState.IN_FLIGHT,
  succeeded: WireState.SUCCEEDED,
  dead_lettered: WireState.DEAD_LETTERED,
  cancelled: WireState.CANCELLED,
  discarded: WireState.DISCARDED,
};

function stateOf(wire: WireState): DeliveryState | undefined {
  if (wire === WireState.UNSPECIFIED) return undefined;
  for (const [state, value] of Object.entries(WIRE_STATES)) if (value === wire) return state as DeliveryState;
  throw invalidField(
    'state',
    `must be one of ${Object.keys(WIRE_STATES).join(', ').toUpperCase()}, or left out`,
  );
}

function eventToWire(e: StoredEvent): Event {
  return create(EventSchema, {
    eventId: e.eventId,
    tenantId: e.tenantId,
    type: e.type,
    payload: e.payload ?? new Uint8Array(),
    contentType: e.contentType,
    source: e.source,
    subject: e.subject,
    idempotencyKey: e.idempotencyKey,
    orderingKey: e.orderingKey,
    metadata: { ...e.metadata },
    payloadBytes: e.payloadBytes,
    createTime: timestampFromMs(e.createdAtMs),
    ...(e.deliverAfterMs === undefined ? {} : { deliverAfter: timestampFromMs(e.deliverAfterMs) }),
  });
}

function deliveryToWire(d: StoredDelivery): Delivery {
  return create(DeliverySchema, {
    deliveryId: d.deliveryId,
    tenantId: d.tenantId,
    eventId: d.eventId,
    subscriptionId: d.subscriptionId,
    state: WIRE_STATES[d.state],
    attemptCount: d.attemptCount,
    ...(d.nextAttemptAtMs === undefined ? {} : { nextAttemptTime: timestampFromMs(d.nextAttemptAtMs) }),
    createTime: timestampFromMs(d.createdAtMs),
    ...(d.finishedAtMs === undefined ? {} : { finishTime: timestampFromMs(d.finishedAtMs) }),
  });
}

const OUTCOMES: Readonly<Record<StoredAttempt['outcome'], AttemptOutcome>> = {
  succeeded: AttemptOutcome.SUCCEEDED,
  retry_scheduled: AttemptOutcome.RETRY_SCHEDULED,
  dead_lettered: AttemptOutcome.DEAD_LETTERED,
};

function attemptToWire(deliveryId: DeliveryId, a: StoredAttempt): Attempt {
  return create(AttemptSchema, {
    deliveryId,
    attempt: a.attempt,
    outcome: OUTCOMES[a.outcome],
    status: a.status,
    errorClass: a.errorClass,
    errorMessage: a.errorMessage,
    startTime: timestampFromMs(a.startedAtMs),
    duration: durationOf(a.durationUs),
    responseBody: a.responseBody,
    ...(a.nextAttemptAtMs === undefined ? {} : { nextAttemptTime: timestampFromMs(a.nextAttemptAtMs) }),
    timing: timingToWire(a.timing),
    responseHeaders: { ...a.responseHeaders },
    batchSize: a.batchSize,
  });
}

const durationOf = (us: number) => ({ seconds: BigInt(Math.floor(us / 1e6)), nanos: (us % 1e6) * 1000 });

function timingToWire({ dnsUs, connectUs, tlsUs, firstByteUs }: StoredAttempt['timing']) {
  return {
    ...(dnsUs === undefined ? {} : { dns: durationOf(dnsUs) }),
    ...(connectUs === undefined ? {} : { connect: durationOf(connectUs) }),
    ...(tlsUs === undefined ? {} : { tls: durationOf(tlsUs) }),
    ...(firstByteUs === undefined ? {} : { firstByte: durationOf(firstByteUs) }),
  };
}
