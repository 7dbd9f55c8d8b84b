// DeadLetterService: deliveries that were given up, and their second chance.
import { DeadLetterService } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { invalidField } from '../domain/errors.ts';
import {
  type IdSource,
  parseDeliveryId,
  parseReplayId,
  type SubscriptionId,
  type TenantId,
  uuidOf,
} from '../domain/ids.ts';
import { isUuid, pageToken, parsePage } from '../domain/page.ts';
import type { Database } from '../storage/database.ts';
import {
  discardDeadLetters,
  getDeadLetter,
  listDeadLetters,
  MAX_DISCARD,
  replayDeadLetter,
} from '../storage/dead-letters.ts';
import { cancelReplay, getReplay, listReplays } from '../storage/replays.ts';
import { bindService, tenantOf } from './call-path.ts';
import { toFilter, toWire } from './dead-letter-messages.ts';
import { replayToWire, startReplay } from './replay-messages.ts';

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
      const what = { kind: 'dead_letters', filter: toFilter(request.filter) } as const;
      return { replay: await startReplay(deps, context, 'dead_letters.replay', what, request) };
    },

    async getReplay(request, context) {
      return {
        replay: replayToWire(await getReplay(db, tenantOf(context), parseReplayId(request.replayId))),
      };
    },

    async listReplays(request, context) {
      const tenantId = tenantOf(context);
      const scope = `replays/${tenantId}`;
      const page = parsePage(request, scope, 500, isUuid);
      const rows = await listReplays(db, tenantId, page);
      const onPage = rows.slice(0, page.size);
      const last = onPage[onPage.length - 1];
      const more = rows.length > page.size && last !== undefined;
      return {
        replays: onPage.map(replayToWire),
        nextPageToken: more ? pageToken(scope, uuidOf(last.replayId)) : '',
      };
    },

    async cancelReplay(request, context) {
      const id = parseReplayId(request.replayId);
      const audited = db.audited(context.change('replay.cancel', id));
      return { replay: replayToWire(await cancelReplay(audited, tenantOf(context), id)) };
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
      const detail: Record<string, boolean> = 'filter' in which ? { byFilter: true } : {};
      const resource = 'filter' in which || which.deliveryIds.length > 1 ? '' : which.deliveryIds[0]!;
      const outcome = (count: unknown) => (count === 0 ? undefined : { count: Number(count) });
      const audited = db.audited({ ...context.change('dead_letters.discard', resource, detail), outcome });
      return { discardedCount: await discardDeadLetters(audited, tenantOf(context), which) };
    },
  });
}
