// PublishService: from the wire to the group commit and back.
import { create } from '@bufbuild/protobuf';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import type { EventInput } from '../../gen/dispatch/v1/event_pb.ts';
import {
  type PublishResponse,
  type PublishResult,
  PublishResultSchema,
  PublishService,
} from '../../gen/dispatch/v1/publish_service_pb.ts';
import { DispatchError, invalidField } from '../domain/errors.ts';
import { type EventDraft, parseEvent } from '../domain/event.ts';
import { parseTenantId, type TenantId } from '../domain/ids.ts';
import type { GroupCommit } from '../publishing/group-commit.ts';
import type { Published, PublishOutcome } from '../publishing/item.ts';
import { bindService, type CallContext, ownTenant, tenantOf } from './call-path.ts';
import { CODE_NUMBER } from './errors.ts';
import { timeMs } from './times.ts';

/** Most events of one PublishBatch. */
export const MAX_BATCH = 1_000;

// Answers are written as the messages that they are: finding out how to make one of a part costs a microsecond each.

function toResponse({ eventId, duplicate, deliveryCount }: Published): PublishResponse {
  return { $typeName: 'dispatch.v1.PublishResponse', eventId, duplicate, deliveryCount };
}

export type PublishServiceDeps = {
  readonly groupCommit: Pick<GroupCommit, 'add'>;
  /** Ms since 1970. */
  readonly now: () => number;
  readonly onOutcome: (outcome: 'stored' | 'duplicate' | 'refused' | 'failed') => void;
};

export function createPublishService(deps: PublishServiceDeps) {
  /** Validates and stores one event; a bad one is refused by calling `done` with its error. */
  function publishOne(
    input: EventInput | undefined,
    tenantOfEvent: () => TenantId,
    path: string,
    isLive: () => boolean,
    done: (outcome: PublishOutcome) => void,
  ): void {
    const count = (outcome: PublishOutcome) => {
      deps.onOutcome(outcomeName(outcome));
      done(outcome);
    };
    try {
      if (input === undefined) throw invalidField(path, 'is required');
      const event = parseEvent(tenantOfEvent(), toDraft(input), deps.now(), path);
      deps.groupCommit.add(event, isLive, count);
    } catch (error) {
      if (!(error instanceof DispatchError)) throw error;
      count({ ok: false, error });
    }
  }

  return bindService(PublishService, {
    publish: (request, context) =>
      new Promise((resolve, reject) => {
        const tenant = () => eventTenant(context, tenantOf(context), request.event?.tenantId ?? '', 'event');
        publishOne(request.event, tenant, 'event', context.isLive, (outcome) => {
          if (outcome.ok) resolve(toResponse(outcome.published));
          else reject(outcome.error);
        });
      }),

    publishBatch: (request, context) => {
      const { events } = request;
      if (events.length === 0 || events.length > MAX_BATCH) {
        throw invalidField('events', `has ${events.length} events; 1–${MAX_BATCH}`);
      }
      return new Promise((resolve) => {
        const results = new Array<PublishResult>(events.length);
        let open = events.length;
        events.forEach((event, i) => {
          const path = `events[${i}]`;
          const tenant = () => eventTenant(context, context.tenantId, event.tenantId, path);
          publishOne(event, tenant, path, context.isLive, (outcome) => {
            results[i] = toResult(outcome);
            if (--open === 0) resolve({ $typeName: 'dispatch.v1.PublishBatchResponse', results });
          });
        });
      });
    },

    publishStream: (context, write) => {
      let open = 0;
      let onIdle: (() => void) | undefined;
      return {
        message: (request) => {
          open++;
          const tenant = () =>
            eventTenant(
              context,
              streamTenant(context, request.tenantId),
              request.event?.tenantId ?? '',
              'event',
            );
          publishOne(request.event, tenant, 'event', context.isLive, (outcome) => {
            open--;
            const result = toResult(outcome);
            write({ $typeName: 'dispatch.v1.PublishStreamResponse', sequence: request.sequence, result });
            if (open === 0) onIdle?.();
          });
        },
        outstanding: () => open,
        end: () =>
          new Promise((resolve) => {
            if (open === 0) resolve();
            else onIdle = resolve;
          }),
      };
    },
  });
}

/**
 * The tenant of an event that may name its own, which only platform keys may choose. Those of a batch may be of any; one that
 * is alone is its request's, and a request that says two things is nobody's.
 */
function eventTenant(
  context: CallContext,
  ofRequest: TenantId | undefined,
  ofEvent: string,
  path: string,
): TenantId {
  const own = context.principal.tenantId;
  if (own !== undefined) return ownTenant(own, ofEvent);
  const isAlone = path === 'event';
  if (ofEvent !== '' && isAlone && ofRequest !== undefined && ofEvent !== ofRequest) {
    const named = ofEvent.slice(0, 64);
    const problem = `is "${named}", and tenant_id "${ofRequest}"; leave it out, only events of a batch have their own`;
    throw invalidField(`${path}.tenant_id`, problem);
  }
  if (ofEvent !== '') return parseTenantId(ofEvent, `${path}.tenant_id`);
  return ofRequest ?? parseTenantId('', 'tenant_id');
}

function streamTenant(context: CallContext, requested: string): TenantId | undefined {
  const own = context.principal.tenantId;
  if (own !== undefined) return ownTenant(own, requested);
  return requested === '' ? undefined : parseTenantId(requested);
}

/** An event as a message states it, unchecked. */
export function toDraft(input: EventInput): EventDraft {
  const { body } = input;
  return {
    type: input.type,
    body:
      body.case === 'payload'
        ? { kind: 'payload', payload: body.value }
        : body.case === 'data'
          ? { kind: 'data', data: body.value }
          : { kind: 'missing' },
    contentType: input.contentType,
    source: input.source,
    subject: input.subject,
    idempotencyKey: input.idempotencyKey,
    orderingKey: input.orderingKey,
    deliverAfterMs: input.deliverAfter === undefined ? undefined : timeMs(input.deliverAfter),
    metadata: input.metadata,
  };
}

function toResult(outcome: PublishOutcome): PublishResult {
  if (outcome.ok) {
    const value = toResponse(outcome.published);
    return { $typeName: 'dispatch.v1.PublishResult', result: { case: 'ok', value } };
  }
  const { error } = outcome;
  const field = error.violations[0]?.field ?? '';
  const { message, reason, quota, retryAfterMs } = error;
  const value = {
    code: CODE_NUMBER[error.code],
    message,
    field,
    reason: reason ?? '',
    quota: quota?.quota ?? '',
    ...(retryAfterMs === undefined ? {} : { retryDelay: durationFromMs(retryAfterMs) }),
  };
  return create(PublishResultSchema, { result: { case: 'error', value } });
}

function outcomeName(outcome: PublishOutcome): 'stored' | 'duplicate' | 'refused' | 'failed' {
  if (outcome.ok) return outcome.published.duplicate ? 'duplicate' : 'stored';
  return outcome.error.code === 'INTERNAL' || outcome.error.code === 'UNAVAILABLE' ? 'failed' : 'refused';
}
