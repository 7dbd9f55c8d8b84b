// Records results in batches. A batch that the database did not take is tried again until its leases have run out;
// then the deliveries are due again anyway, and the results are dropped (promise P2 holds, P3 lets receivers cope).
import { setTimeout as wait } from 'node:timers/promises';
import type { Commit, DeliveryRecord, Written } from '../storage/records.ts';

export type RecorderDeps = {
  /** Writes a batch. */
  readonly write: (records: readonly DeliveryRecord[], commit: Commit) => Promise<Written>;
  readonly uuidOf: (idBytes: Buffer) => string;
  readonly leaseMs: number;
  /** Monotonic, in ms. */
  readonly now: () => number;
  /** Whether an error is the database's state, which passes, and not something in the batch. */
  readonly isPassing: (error: unknown) => boolean;
  /** Called after each batch: there is room again. */
  readonly onWritten: () => void;
  readonly onLeaseLost: (count: number) => void;
  readonly onError: (error: unknown) => void;
};

/** Takes results. */
export type Recorder = {
  /**
   * `onWritten` hears whether the result was written under its lease: what waits for that (the next of a line) is not
   * kept waiting for a full batch.
   */
  readonly add: (record: DeliveryRecord, onWritten?: (isWritten: boolean) => void) => void;
  /** Results that are not written yet. */
  readonly backlog: () => number;
  /** Writes everything that was added so far; resolves when it is written or dropped. */
  readonly flush: () => Promise<void>;
};

/** Twice as large as 100: 5 % more deliveries a second. */
const MAX_BATCH = 200;
/**
 * While nothing is written so many are enough: what is not written yet is sent again if this process dies. Under load a
 * batch fills while the one before it is written.
 */
const ENOUGH = 100;
/** A smaller batch waits this long for company, and begins this long after the one before it at the earliest (ADR 0036). */
const GATHER_MS = 10;
/** One that need not wait, or that something waits for, gathers what ends in one turn of the event loop, about. */
const TURN_MS = 1;
const MAX_WRITES = 2;
/**
 * A batch that nothing waits for goes without waiting for the disk if another that did began less than this before it:
 * publishes that are committed meanwhile do not stand in line for the disk behind results (ADR 0025).
 */
const DURABLE_EVERY_MS = 50;

type Entry = {
  readonly record: DeliveryRecord;
  readonly onWritten: ((isWritten: boolean) => void) | undefined;
};
type Lane = {
  readonly add: (entry: Entry) => void;
  readonly backlog: () => number;
  flush: () => Promise<void>;
};

export function createRecorder(deps: RecorderDeps): Recorder {
  const plain = createLane(deps, false);
  const confirmed = createLane(deps, true);
  return {
    add(record, onWritten) {
      (onWritten === undefined ? plain : confirmed).add({ record, onWritten });
    },
    backlog: () => plain.backlog() + confirmed.backlog(),
    async flush() {
      // What is confirmed may add more: it goes first.
      await confirmed.flush();
      await plain.flush();
    },
  };
}

function createLane(deps: RecorderDeps, isConfirmed: boolean): Lane {
  let pending: Entry[] = [];
  let writing = 0;
  let unwritten = 0;
  let timer: NodeJS.Timeout | undefined;
  let timerMs = 0;
  let waiters: (() => void)[] = [];
  let writtenAtMs = Number.NEGATIVE_INFINITY;
  let durableAtMs = Number.NEGATIVE_INFINITY;

  const isEnough = () => pending.length >= (writing === 0 ? ENOUGH : MAX_BATCH);

  function pump(evenSmall: boolean): void {
    while (pending.length > 0 && writing < MAX_WRITES && (evenSmall || isEnough())) {
      const batch = pending.length <= MAX_BATCH ? pending : pending.slice(0, MAX_BATCH);
      pending = pending.length <= MAX_BATCH ? [] : pending.slice(MAX_BATCH);
      writing++;
      writtenAtMs = deps.now();
      clearTimeout(timer);
      timer = undefined;
      void write(batch, commitOf(writtenAtMs)).finally(() => {
        writing--;
        unwritten -= batch.length;
        deps.onWritten();
        // What something waits for goes at once, with what gathered while this was written.
        pump(isConfirmed);
        if (unwritten === 0) {
          for (const wake of waiters) wake();
          waiters = [];
        }
      });
    }
    if (pending.length === 0 || writing === MAX_WRITES) return;
    if (isConfirmed || deps.now() - writtenAtMs >= GATHER_MS) writeWithin(TURN_MS);
    else writeWithin(GATHER_MS);
  }

  /** Whatever there is by then; what is to be written sooner stays so. */
  function writeWithin(ms: number): void {
    if (timer !== undefined && ms >= timerMs) return;
    clearTimeout(timer);
    timerMs = ms;
    timer = setTimeout(() => {
      timer = undefined;
      pump(true);
    }, ms);
  }

  function commitOf(nowMs: number): Commit {
    if (isConfirmed) return 'confirmed';
    if (nowMs - durableAtMs < DURABLE_EVERY_MS) return 'soon';
    durableAtMs = nowMs;
    return 'durable';
  }

  async function write(batch: readonly Entry[], commit: Commit): Promise<void> {
    const giveUpAt = deps.now() + deps.leaseMs;
    const records = batch.map((entry) => entry.record);
    for (let delayMs = 50; ; delayMs = Math.min(delayMs * 2, 2_000)) {
      try {
        const written = await deps.write(records, commit);
        if (written.count < batch.length) deps.onLeaseLost(batch.length - written.count);
        for (const { record, onWritten } of batch) onWritten?.(written.ids.has(deps.uuidOf(record.idBytes)));
        return;
      } catch (error) {
        if (!deps.isPassing(error) && batch.length > 1) {
          const middle = Math.ceil(batch.length / 2); // one row spoils it: find out which
          await write(batch.slice(0, middle), commit);
          await write(batch.slice(middle), commit);
          return;
        }
        deps.onError(error);
        if (!deps.isPassing(error) || deps.now() + delayMs > giveUpAt) {
          deps.onLeaseLost(batch.length);
          for (const { onWritten } of batch) onWritten?.(false);
          return;
        }
        await wait(delayMs);
      }
    }
  }

  return {
    add(entry) {
      pending.push(entry);
      unwritten++;
      pump(false);
    },
    backlog: () => unwritten,
    flush() {
      pump(true);
      return unwritten === 0 ? Promise.resolve() : new Promise((done) => waiters.push(done));
    },
  };
}
