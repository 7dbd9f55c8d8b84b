// From an answer to what is written of it: verdicts and records are the product's.
import { recordOf } from '../../src/delivery/results.ts';
import type { RetryPolicy } from '../../src/domain/backoff.ts';
import { NO_TIMING, type SendResult } from '../../src/domain/delivery.ts';
import type { EventId, TenantId } from '../../src/domain/ids.ts';
import { attemptOfRound, type Ending, ended, replayed } from '../../src/domain/lease.ts';
import { judge } from '../../src/domain/verdict.ts';
import { brokenIn } from './promises.ts';
import { type Entry, type Held, LATER, NOW, type Setup, type State, withEntry } from './state.ts';

export const EVENT = {
  eventId: '' as EventId,
  type: 'a',
  contentType: '',
  payload: Buffer.alloc(0),
  source: '',
  subject: '',
};
const TIMES = { startedAtMs: 0, durationMs: 0, lagMs: 0 };
const NOBODY = Buffer.alloc(16);

const ANSWER = {
  kind: 'response',
  retryAfter: undefined,
  control: undefined,
  body: NOBODY,
  headers: {},
  timing: NO_TIMING,
} as const;

/** What the worker makes of an answer: the verdict and the record of the product. */
export function endingOf(
  setup: Setup,
  held: Pick<Held, 'id' | 'attemptCount' | 'retryBase'>,
  status: number,
): Ending {
  const { attemptCount, retryBase } = held;
  const result: SendResult = { ...ANSWER, status };
  const delaysMs = Array.from({ length: setup.attempts - 1 }, () => LATER);
  const policy: RetryPolicy = { schedule: { kind: 'list', delaysMs }, jitter: 'none' };
  const attempt = attemptOfRound({ attemptCount, retryBase });
  const verdict = judge({ result, policy, attemptOfRound: attempt, ageMs: 0, nowMs: NOW, random: 0 });
  const isOrdered = setup.lines[held.id] !== undefined;
  const delivery = { tenantId: 'a' as TenantId, idBytes: NOBODY, lease: NOBODY, event: EVENT };
  const target = { ordering: 'key', onDeadLetter: setup.onDeadLetter } as const;
  const record = recordOf({ ...delivery, attemptCount, isOrdered }, target, result, verdict, TIMES, 0);
  switch (record.kind) {
    case 'succeeded':
    case 'cancelled':
      return { kind: record.kind };
    case 'release':
      return { kind: record.kind, delayMs: record.delayMs };
    case 'retry':
      return { kind: record.kind, attempt: { attempt: record.attempt.attempt }, delayMs: record.delayMs };
    case 'dead':
      return { kind: record.kind, attemptCount: record.attemptCount, stopsLine: record.stopsLine };
  }
}

/** The database after a result was written. */
export function written(
  state: State,
  id: number,
  ending: Ending,
): { readonly state: State; readonly broken: string | undefined } {
  const entry = state.entries[id]!;
  // Without a fence there may be no row any more: the write makes one up.
  const before = entry.row ?? replayed(entry.attemptCount, NOW);
  const row = ended(before, ending, NOW);
  const isCharged = ending.kind !== 'release' && ending.kind !== 'cancelled';
  const end = row === undefined || ending.kind === 'dead' ? endOf(ending) : undefined;
  const attemptCount = ending.kind === 'dead' ? ending.attemptCount : 0;
  const next = withEntry(state, id, { row, end, attemptCount, ...(isCharged ? { isOwing: false } : {}) });
  const isUnpaid = isCharged && !entry.isOwing;
  const isTwice = entry.end !== undefined;
  const broken = isTwice
    ? `${id} had ended and was written again`
    : isUnpaid
      ? `${id} was charged an attempt that was not made`
      : brokenIn(next);
  return { state: next, broken };
}

function endOf(ending: Ending): Entry['end'] {
  switch (ending.kind) {
    case 'succeeded':
    case 'cancelled':
      return ending.kind;
    case 'dead':
      return 'dead';
    case 'retry':
    case 'release':
      return undefined;
  }
}
