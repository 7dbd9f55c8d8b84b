// Feeds the scheduler from the database: queues that are known to hold due deliveries are claimed from while there
// is room; a walk over all queues finds the others at least once a second, whatever hints were lost.
import type { ClaimedDelivery } from '../domain/delivery.ts';
import type { SubscriptionId, TenantId } from '../domain/ids.ts';
import {
  type Claimed,
  MAX_CLAIM as MAX_CLAIM_OF_ALL,
  type QueueHead,
  type QueueKey,
  type WalkPosition,
} from '../storage/claims.ts';

export type ClaimerDeps = {
  readonly walk: (from: WalkPosition, limit: number) => Promise<readonly QueueHead[]>;
  readonly claim: (queues: readonly (QueueKey & { readonly room: number })[]) => Promise<Claimed>;
  readonly positionAfter: (queue: QueueKey) => WalkPosition;
  readonly walkStart: WalkPosition;
  readonly room: (tenantId: TenantId, subscriptionId: SubscriptionId) => number;
  /** Deliveries of a queue that wait in this process. */
  readonly waiting: (tenantId: TenantId, subscriptionId: SubscriptionId) => number;
  readonly totalRoom: () => number;
  /** Room for fewer than this is not worth a claim. */
  readonly worthwhile: number;
  /**
   * How many deliveries of this queue may wait here: 0 while it is paused, suspended or its breaker is open; 1 for a
   * probe; a few for one that is limited.
   */
  readonly waitingCap: (queue: QueueKey) => Promise<number>;
  /** A claim brought nothing of a queue. */
  readonly foundNothing: (queue: QueueKey) => void;
  readonly accept: (deliveries: readonly ClaimedDelivery[]) => void;
  readonly withoutEvent: (claims: Claimed['withoutEvent']) => void;
  /** Whether results can still be recorded: no claims while the database does not take them. */
  readonly mayClaim: () => boolean;
  readonly onError: (error: unknown) => void;
};

/** Runs until stopped. */
export type Claimer = {
  /** These queues have something due; undefined: some queue may have. */
  readonly poke: (queues: readonly QueueKey[] | undefined) => void;
  /** Room has come free: goes on with the queues that had more. */
  readonly resume: () => void;
  /** No more claims; resolves when the last one is in. */
  readonly stop: () => Promise<void>;
};

const WALK_EVERY_MS = 1_000;
const PAGE = 500;
const MAX_PAGES = 20;
/** Of one queue; a claim reads all the bodies it brings. */
const MAX_CLAIM = 200;
const RESUME_MS = 5;

export function createClaimer(deps: ClaimerDeps): Claimer {
  /** Queues that held more than was claimed, or that somebody said are due. */
  const due = new Map<string, QueueKey>();
  /** Queues that somebody said are due since the last claim began. */
  const poked = new Set<string>();
  let position = deps.walkStart;
  let walkAt = 0;
  let stopped = false;
  let running: Promise<void> | undefined;
  let again = false;
  let emptyAt = 0;
  let resumeTimer: NodeJS.Timeout | undefined;
  let timer: NodeJS.Timeout | undefined;

  function start(): void {
    if (stopped) return;
    if (running !== undefined) {
      again = true;
      return;
    }
    clearTimeout(timer);
    running = round()
      .catch(deps.onError)
      .finally(() => {
        running = undefined;
        if (stopped) return;
        if (again) {
          again = false;
          start();
        } else {
          timer = setTimeout(start, Math.max(1, walkAt - performance.now()));
        }
      });
  }

  /** Starts a round in RESUME_MS, if none is due sooner. */
  function startSoon(): void {
    if (resumeTimer !== undefined || stopped) return;
    resumeTimer = setTimeout(() => {
      resumeTimer = undefined;
      start();
    }, RESUME_MS);
  }

  async function round(): Promise<void> {
    while (!stopped && deps.mayClaim()) {
      if (performance.now() >= walkAt) {
        walkAt = performance.now() + WALK_EVERY_MS; // also when the walk fails: the next try is a second away
        await walkAll();
      }
      const wanted = await nextQueues();
      if (wanted.length === 0) {
        emptyAt = performance.now();
        return;
      }
      poked.clear();
      const claimed = await deps.claim(wanted);
      const counts = new Map<string, number>();
      for (const c of [...claimed.deliveries, ...claimed.withoutEvent]) {
        const key = keyOf(c);
        counts.set(key, (counts.get(key) ?? 0) + 1);
      }
      for (const queue of wanted) {
        const key = keyOf(queue);
        if (!counts.has(key)) deps.foundNothing(queue);
        // A queue that was said to be due while it was claimed from may hold what the claim did not see.
        if ((counts.get(key) ?? 0) < queue.room && !poked.has(key)) due.delete(key);
      }
      deps.accept(claimed.deliveries);
      if (claimed.withoutEvent.length > 0) deps.withoutEvent(claimed.withoutEvent);
    }
  }

  /** Looks at every queue's head once, in pages; more pages than MAX_PAGES go on in the next walk. */
  async function walkAll(): Promise<void> {
    for (let page = 0; page < MAX_PAGES && !stopped; page++) {
      const heads = await deps.walk(position, PAGE);
      for (const head of heads) {
        if (head.dueInMs <= 0) due.set(keyOf(head), head);
        else walkAt = Math.min(walkAt, performance.now() + head.dueInMs + 1);
      }
      const last = heads[heads.length - 1];
      if (heads.length < PAGE || last === undefined) {
        position = deps.walkStart;
        return;
      }
      position = deps.positionAfter(last);
    }
  }

  /** Due queues with room, the longest known first; those that are closed are forgotten until they are due again. */
  async function nextQueues(): Promise<(QueueKey & { readonly room: number })[]> {
    const wanted: (QueueKey & { readonly room: number })[] = [];
    let left = Math.min(MAX_CLAIM_OF_ALL, deps.totalRoom());
    for (const [key, queue] of due) {
      if (left <= 0) break;
      const cap = await deps.waitingCap(queue);
      if (cap === 0) {
        due.delete(key);
        continue;
      }
      const { tenantId, subscriptionId } = queue;
      const free = cap - deps.waiting(tenantId, subscriptionId);
      const room = Math.min(deps.room(tenantId, subscriptionId), free);
      if (room < Math.min(deps.worthwhile, Math.ceil(cap / 4))) continue;
      const share = Math.min(MAX_CLAIM, room, left);
      wanted.push({ tenantId, subscriptionId, room: share });
      left -= share;
    }
    // The first become the last: with more queues than fit in a claim, each has its turn.
    for (const queue of wanted) {
      due.delete(keyOf(queue));
      due.set(keyOf(queue), queue);
    }
    return wanted;
  }

  start();
  return {
    poke(queues) {
      if (queues === undefined) walkAt = 0;
      for (const queue of queues ?? []) {
        due.set(keyOf(queue), queue);
        poked.add(keyOf(queue));
      }
      start();
    },
    resume() {
      // Right after a round that found nothing to claim, there is nothing to look at again for every delivery that
      // ends: a few milliseconds later is soon enough.
      if (due.size > 0 && performance.now() - emptyAt >= RESUME_MS) start();
      else if (due.size > 0 && running === undefined) startSoon();
    },
    async stop() {
      stopped = true;
      clearTimeout(timer);
      clearTimeout(resumeTimer);
      await running;
    },
  };
}

const keyOf = (queue: QueueKey) => `${queue.tenantId}/${queue.subscriptionId}`;
