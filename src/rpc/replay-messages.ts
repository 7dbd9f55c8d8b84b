// Replay jobs in messages: of dead letters and of events, which start and look the same.
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  ReplaySchema,
  ReplayState,
  type EventReplayFilter as WireEventFilter,
  type Replay as WireReplay,
} from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { invalidField } from '../domain/errors.ts';
import { type IdSource, parseEventId, type ReplayId, type TenantId } from '../domain/ids.ts';
import type { Database } from '../storage/database.ts';
import {
  countReplay,
  createReplay,
  type EventReplayFilter,
  type Replay,
  type ReplayWhat,
} from '../storage/replays.ts';
import { type CallContext, tenantOf } from './call-path.ts';
import { filterToWire } from './dead-letter-messages.ts';
import { optionalPattern, optionalRange } from './pages.ts';

type ReplayDeps = {
  readonly db: Database;
  readonly ids: IdSource;
  /** Tells maintenance, wherever it runs, that there is a job. */
  readonly changed: (tenantId: TenantId) => void;
};

const MAX_RATE = 10_000;

/** Starts a job, or counts what it would replay. */
export async function startReplay(
  deps: ReplayDeps,
  context: CallContext,
  action: string,
  what: ReplayWhat,
  request: { readonly maxPerSecond: number; readonly dryRun: boolean },
): Promise<WireReplay> {
  const tenantId = tenantOf(context);
  const { maxPerSecond: rate, dryRun } = request;
  if (rate !== 0 && !(rate >= 0.001 && rate <= MAX_RATE)) {
    throw invalidField(
      'max_per_second',
      `must be between 0.001 and ${MAX_RATE}, or 0 for as fast as it goes`,
    );
  }
  const maxPerSecond = rate === 0 ? undefined : rate;
  if (dryRun) {
    const total = BigInt(await countReplay(deps.db, tenantId, what));
    return create(ReplaySchema, { tenantId, totalCount: total, maxPerSecond: rate, ...whatToWire(what) });
  }
  const replayId = deps.ids.next<ReplayId>('rpl');
  const audited = deps.db.audited(context.change(action, replayId));
  const replay = await createReplay(audited, tenantId, replayId, what, maxPerSecond);
  deps.changed(tenantId);
  return replayToWire(replay);
}

const MAX_EVENT_IDS = 1_000;

/** Which events, checked. */
export function toEventFilter(wire: WireEventFilter | undefined): EventReplayFilter {
  if (wire === undefined) throw invalidField('filter', 'is required: with a start_time, or event_ids');
  const { startMs, endMs } = optionalRange(wire, 'filter.');
  const eventType = optionalPattern(wire.eventType, 'filter.event_type');
  const { eventIds, missing } = wire;
  if (eventIds.length > MAX_EVENT_IDS) {
    throw invalidField('filter.event_ids', `has ${eventIds.length} ids; at most ${MAX_EVENT_IDS}`);
  }
  if (eventIds.length === 0 && startMs === undefined) {
    throw invalidField('filter.start_time', 'is required without event_ids');
  }
  const ids = eventIds.map((id, i) => parseEventId(id, `filter.event_ids[${i}]`));
  return {
    ...(startMs === undefined ? {} : { startMs }),
    ...(endMs === undefined ? {} : { endMs }),
    ...(eventType === undefined ? {} : { eventType }),
    ...(ids.length === 0 ? {} : { eventIds: ids }),
    ...(missing ? { missing } : {}),
  };
}

const STATES: Readonly<Record<Replay['state'], ReplayState>> = {
  running: ReplayState.RUNNING,
  finished: ReplayState.FINISHED,
  cancelled: ReplayState.CANCELLED,
};

/** A job as it is shown. */
export function replayToWire(replay: Replay): WireReplay {
  return create(ReplaySchema, {
    replayId: replay.replayId,
    tenantId: replay.tenantId,
    state: STATES[replay.state],
    replayedCount: BigInt(replay.replayedCount),
    totalCount: BigInt(replay.totalCount),
    maxPerSecond: replay.maxPerSecond ?? 0,
    createTime: timestampFromMs(replay.createdAtMs),
    ...(replay.finishedAtMs === undefined ? {} : { finishTime: timestampFromMs(replay.finishedAtMs) }),
    ...whatToWire(replay.what),
  });
}

function whatToWire(what: ReplayWhat): MessageInitShape<typeof ReplaySchema> {
  if (what.kind === 'dead_letters') return { filter: filterToWire(what.filter) };
  const { startMs, endMs, eventType, eventIds, missing } = what.filter;
  return {
    subscriptionId: what.subscriptionId,
    eventFilter: {
      ...(startMs === undefined ? {} : { startTime: timestampFromMs(startMs) }),
      ...(endMs === undefined ? {} : { endTime: timestampFromMs(endMs) }),
      eventType: eventType ?? '',
      eventIds: eventIds ?? [],
      missing: missing ?? false,
    },
  };
}
