// Feeds the scheduler from the database: queues that are known to hold due deliveries are claimed from while there
// is room, a tenant at a time and its queues in turn; a walk over all queues finds the others, whatever hints were lost.
import type { ClaimedDelivery } from '../domain/delivery.ts';
import type { SubscriptionId, TenantId } from '../domain/ids.ts';
import {
  type Claimed,
  type ClaimedLines,
  type ClaimPosition,
  compareClaims,
  MAX_CLAIM,
  type QueueKey,
  type Wanted,
} from '../storage/claims.ts';
import type { QueueHead, Walk, WalkPosition } from '../storage/walk.ts';
import { createDueQueues } from './due-queues.ts';
import { placesFor } from './scheduler.ts';
import { createTimetable } from './timetable.ts';

/** How a queue may be claimed from now. */
export type ClaimPlan = {
  /**
   * How many of its deliveries may wait here: 0 while it is paused, suspended or its breaker is open; 1 for a probe; a
   * few for one that is limited; Infinity for one without limits.
   */
  readonly cap: number;
  /** Of a queue with an order: how many of a line are taken at once; 0: it has none. */
  readonly perLine: number;
  /** How many a request takes: more than one in batches. */
  readonly perRequest: number;
};

export type ClaimerDeps = {
  readonly walk: Walk;
  /** `mayWait`: nothing else waits for this claim. */
  readonly claim: (queues: readonly Wanted[], mayWait: boolean) => Promise<Claimed>;
  readonly claimLines: (
    queue: QueueKey,
    which: { readonly after: string; readonly room: number; readonly perLine: number },
  ) => Promise<ClaimedLines>;
  readonly claimLeftovers: (queue: QueueKey, room: number) => Promise<Claimed>;
  readonly room: (tenantId: TenantId, subscriptionId: SubscriptionId, perRequest: number) => number;
  /** Deliveries of a queue that wait in this process. */
  readonly waiting: (tenantId: TenantId, subscriptionId: SubscriptionId) => number;
  readonly totalRoom: () => number;
  /** Places that a tenant may still take of its share. */
  readonly tenantRoom: (tenantId: TenantId) => number;
  /** Room for fewer than this is not worth a claim. */
  readonly worthwhile: number;
  /** `later`: what it depends on takes long to read; the queue is poked once it is there. */
  readonly planOf: (queue: QueueKey) => Promise<ClaimPlan | 'later'>;
  /** A claim brought nothing of a queue. */
  readonly foundNothing: (queue: QueueKey) => void;
  readonly accept: (deliveries: readonly ClaimedDelivery[]) => void;
  readonly acceptLines: (lines: readonly (readonly ClaimedDelivery[])[]) => void;
  readonly withoutEvent: (claims: Claimed['withoutEvent']) => void;
  /** Whether this worker leaves the cores to others for now: see seat.ts. */
  readonly stepsBack: () => boolean;
  /** Whether results can still be recorded: no claims while the database does not take them. */
  readonly mayClaim: () => boolean;
  readonly onError: (error: unknown) => void;
};

/** Runs until stopped. */
export type Claimer = {
  /** These queues have something due; undefined: some queue may have. */
  readonly poke: (queues: readonly QueueKey[] | undefined) => void;
  /** The same, of something that nobody but this worker was told of. */
  readonly knows: (queues: readonly QueueKey[]) => void;
  /** The same, of queues with what is due in them. */
  readonly found: (heads: readonly QueueHead[]) => void;
  /** A queue will have something due after a time. */
  readonly later: (queue: QueueKey, dueInMs: number) => void;
  /** A delivery of a queue waits here no more, or a place that was held for one is given back. */
  readonly freed: (tenantId: TenantId, subscriptionId: SubscriptionId) => void;
  /** Room has come free: goes on with the queues that had more. */
  readonly resume: () => void;
  /** No more claims; resolves when the last one is in. */
  readonly stop: () => Promise<void>;
};

const WALK_EVERY_MS = 1_000;
const MAX_WALK_EVERY_MS = 10_000;
/** A walk may take this part of the time: with very many queues it comes less often, and hints carry on meanwhile. */
const WALK_SHARE = 0.05;
const PAGE = 500;
const MAX_PAGES = 20;
/** Queues of one claim, and those that are looked at for it: each costs a descent of an index. */
const MAX_QUEUES = 32;
const MAX_LOOKS = 256;
/** Queues that are left to others in one go. */
const MAX_LEFT = 1_000;
/** What is expected of a queue that had more than was claimed, and of another: few long queues fill a claim. */
const MANY = 25;
const FEW = 3;
/** How long claims of a queue go on from where the last one ended. Then one looks back. */
const LOOK_BACK_MS = 1_000;
/**
 * How far. What becomes due does so behind where claims are, but for a transaction that took its time: it is visible later
 * than what began after it. One that took longer than this is found by the walk.
 */
const LATE_MS = 5_000;
/** Queues whose claims are remembered. */
const MAX_REACHED = 10_000;
const RESUME_MS = 5;
/** How often it is asked whether results can be recorded again. */
const WAIT_MS = 100;
/** How often an ordered queue is looked through for what is in no line. */
const LEFTOVERS_MS = 1_000;
/** A worker that has stepped back looks this often whether it is needed, */
const LOOK_MS = 1_000;
/** and takes what it finds in a walk each time that this has passed, so that nothing rests on the others alone. */
const STEPPED_BACK_MS = 5_000;

/** How far the claims of a queue have come, and until when the next goes on right there instead of looking back. */
type Reached = { readonly position: ClaimPosition; readonly untilMs: number };
/** Where a claim begins (undefined: at the front), and until when the ones after it go on where it ends. */
type Begin = {
  readonly after: ClaimPosition | undefined;
  readonly looksBack: boolean;
  readonly untilMs: number;
};
type Planned = QueueKey & { readonly plan: ClaimPlan; readonly room: number };
/** Where the claims of an ordered queue stand. */
type LineState = { after: string; leftoversAtMs: number };

export function createClaimer(deps: ClaimerDeps): Claimer {
  const due = createDueQueues();
  const later = createTimetable<QueueKey>(keyOf, (queues) => {
    for (const queue of queues) addPoked(queue);
    start();
  });
  /** Of which only this worker knows that something is due, or will be: those it does not leave to others. */
  const own = new Set<string>();
  /** Queues that somebody said are due since the last claim began. */
  const poked = new Set<string>();
  /** Of what was put back, since the last claim began. */
  const back: QueueHead[] = [];
  /** What was claimed stays in front of a queue's index until it is vacuumed, which a long transaction can put off. */
  const reached = new Map<string, Reached>();
  const lineStates = new Map<string, LineState>();
  let position: WalkPosition | undefined;
  let walkAt = 0;
  let walkedAt = 0;
  let stopped = false;
  let running: Promise<void> | undefined;
  let again = false;
  let emptyAt = 0;
  let resumeTimer: NodeJS.Timeout | undefined;
  let timer: NodeJS.Timeout | undefined;
  let hasSteppedBack = false;
  /** Whether the next claim, right after a walk, leaves nothing, and when it may again. */
  let takesAll = false;
  let takesAllAt = 0;

  function start(): void {
    if (stopped) return;
    if (running !== undefined) {
      again = true;
      return;
    }
    clearTimeout(timer);
    look();
    running = round()
      .catch(deps.onError)
      .finally(() => {
        running = undefined;
        if (stopped) return;
        if (again) {
          again = false;
          start();
        } else {
          const inMs = Math.max(deps.mayClaim() ? 1 : WAIT_MS, walkAt - performance.now());
          timer = setTimeout(start, hasSteppedBack ? Math.min(inMs, LOOK_MS) : inMs);
        }
      });
  }

  function look(): void {
    const was = hasSteppedBack;
    hasSteppedBack = deps.stepsBack();
    if (was && !hasSteppedBack) walkAt = 0; // what was left may be nobody's now
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
      // Not sooner: a claim that was under way may have said since how far it came.
      for (const head of back.splice(0)) addDue(head);
      const wanted = await nextQueues();
      poked.clear();
      if (wanted.length === 0) {
        emptyAt = performance.now();
        return;
      }
      const plain = wanted.filter((queue) => queue.plan.perLine === 0);
      const ordered = wanted.filter((queue) => queue.plan.perLine > 0);
      await Promise.all([claimPlain(plain, ordered.length === 0), ...ordered.map(claimOrdered)]);
    }
  }

  async function claimPlain(wanted: readonly Planned[], mayWait: boolean): Promise<void> {
    if (wanted.length === 0) return;
    const nowMs = performance.now();
    const begins = wanted.map((queue) => beginOf(queue, nowMs));
    const claims = wanted.map((queue, i) => ({ ...queue, after: begins[i]!.after }));
    const claimed = await deps.claim(claims, mayWait);
    for (const queue of wanted) leaveAgain(queue);
    const found = new Map<string, { count: number; last: ClaimPosition }>();
    for (const c of [...claimed.deliveries, ...claimed.withoutEvent]) {
      const of = found.get(keyOf(c));
      if (of === undefined) {
        found.set(keyOf(c), { count: 1, last: c });
      } else {
        of.count++;
        if (compareClaims(c, of.last) > 0) of.last = c;
      }
    }
    for (const [i, queue] of wanted.entries()) settlePlain(queue, begins[i]!, found.get(keyOf(queue)));
    deps.accept(claimed.deliveries);
    if (claimed.withoutEvent.length > 0) deps.withoutEvent(claimed.withoutEvent);
  }

  function beginOf(queue: QueueKey, nowMs: number): Begin {
    const at = reached.get(keyOf(queue));
    const untilMs = nowMs + LOOK_BACK_MS;
    if (at === undefined) return { after: undefined, looksBack: true, untilMs };
    if (at.untilMs > nowMs) return { after: at.position, looksBack: false, untilMs: at.untilMs };
    const after = { dueAtMs: at.position.dueAtMs - LATE_MS, idBytes: LOWEST_ID };
    return { after, looksBack: true, untilMs };
  }

  function settlePlain(
    queue: Planned,
    { looksBack, untilMs }: Begin,
    found: { readonly count: number; readonly last: ClaimPosition } | undefined,
  ): void {
    const key = keyOf(queue);
    const before = reached.get(key);
    const hasMore = found !== undefined && found.count >= queue.room;
    if (found !== undefined) {
      const { dueAtMs, idBytes } = found.last;
      const isFurther = before === undefined || compareClaims(found.last, before.position) > 0;
      // A look back that was cut short is where the next claim goes on, wherever others have come to.
      const position = hasMore || isFurther ? { dueAtMs, idBytes } : before.position;
      setReached(key, { position, untilMs: hasMore ? untilMs : 0 });
    } else if (before !== undefined) {
      setReached(key, { ...before, untilMs: 0 });
    }
    // There may be something in front of where this claim began: the next looks back.
    if (!hasMore && looksBack) settle(queue, found?.count ?? 0);
  }

  function setReached(key: string, at: Reached): void {
    reached.delete(key);
    reached.set(key, at);
    // Of the one that was claimed from longest ago a claim begins at the front.
    if (reached.size > MAX_REACHED) reached.delete(reached.keys().next().value!);
  }

  async function claimOrdered(queue: Planned): Promise<void> {
    const key = keyOf(queue);
    let state = lineStates.get(key);
    if (state === undefined) {
      if (lineStates.size >= 10_000) lineStates.clear();
      state = { after: '', leftoversAtMs: 0 };
      lineStates.set(key, state);
    }
    const { room, plan } = queue;
    const claimed = await deps.claimLines(queue, { after: state.after, room, perLine: plan.perLine });
    leaveAgain(queue);
    state.after = claimed.reached;
    let count = claimed.deliveries.length + claimed.withoutEvent.length;
    deps.acceptLines(claimed.lines);
    if (claimed.withoutEvent.length > 0) deps.withoutEvent(claimed.withoutEvent);
    if (count < room && performance.now() >= state.leftoversAtMs) {
      state.leftoversAtMs = performance.now() + LEFTOVERS_MS;
      const leftovers = await deps.claimLeftovers(queue, room - count);
      count += leftovers.deliveries.length;
      deps.accept(leftovers.deliveries);
      if (leftovers.withoutEvent.length > 0) deps.withoutEvent(leftovers.withoutEvent);
    }
    if (claimed.dueInMs !== undefined) later.add(queue, claimed.dueInMs);
    // There are lines that were not looked at yet, or that have more behind what was taken.
    if (claimed.reached !== '' || (count > 0 && claimed.lines.some((line) => line.length >= plan.perLine)))
      return;
    settle(queue, count);
  }

  /** A claim saw what was known of a queue, but not what it was told of meanwhile. */
  function leaveAgain(queue: QueueKey): void {
    if (!poked.has(keyOf(queue))) own.delete(keyOf(queue));
  }

  /** What a claim brought of a queue: less than there was room for means that there is no more. */
  function settle(queue: Planned, count: number): void {
    const key = keyOf(queue);
    if (count === 0) deps.foundNothing(queue);
    // A queue that was said to be due while it was claimed from may hold what the claim did not see.
    if (count < queue.room && !poked.has(key)) due.delete(queue);
  }

  /** Looks at every queue's head once, in pages; more pages than MAX_PAGES go on in the next walk. */
  async function walkAll(): Promise<void> {
    const startedAt = performance.now();
    walkedAt = startedAt;
    const found: QueueHead[] = [];
    for (let page = 0; page < MAX_PAGES && !stopped; page++) {
      const { heads, next } = await deps.walk(position, PAGE);
      for (const head of heads) {
        if (head.dueInMs > 0) later.add(head, head.dueInMs);
        else if (hasSteppedBack) found.push(head);
        else addDue(head);
      }
      position = next;
      if (next === undefined) break;
      deps.stepsBack(); // looks that lie far apart say nothing
    }
    // One that takes little of what it finds takes it of others each time.
    for (const head of shuffled(found)) addDue(head);
    const tookMs = performance.now() - startedAt;
    const leastMs = hasSteppedBack ? STEPPED_BACK_MS : WALK_EVERY_MS;
    walkAt = startedAt + Math.min(Math.max(leastMs, tookMs / WALK_SHARE), MAX_WALK_EVERY_MS);
    if (startedAt < takesAllAt) return;
    takesAll = true;
    takesAllAt = startedAt + STEPPED_BACK_MS;
  }

  /** Due, and perhaps since a claim of it that is under way. */
  function addPoked(queue: QueueKey): void {
    due.add(queue);
    poked.add(keyOf(queue));
  }

  function addDue(head: QueueHead): void {
    const at = reached.get(keyOf(head));
    // It lies where no claim would look.
    if (at !== undefined && head.dueAtMs < at.position.dueAtMs - LATE_MS) reached.delete(keyOf(head));
    due.add(head);
  }

  /**
   * Due queues with room, of each tenant one after the other. Those that are closed are forgotten until they are due again, and
   * so are those that are left to others; of a queue with limits each worker has its part, which no other takes.
   */
  async function nextQueues(): Promise<Planned[]> {
    look();
    const total = Math.min(MAX_CLAIM, deps.totalRoom());
    if (total <= 0) return [];
    const leavesUnlimited = hasSteppedBack && !takesAll;
    takesAll = false;
    const found: Planned[] = [];
    const seen = new Set<string>();
    due.wake(total, deps.tenantRoom);
    let looks = Math.min(MAX_LOOKS, due.readyCount());
    let expected = 0;
    let leftCount = 0;
    for (; looks > 0 && found.length < MAX_QUEUES && expected < total; looks--) {
      const queue = due.next();
      if (queue === undefined) break;
      // The turn of a tenant with few queues comes round before that of another's last: a claim takes each queue once.
      if (seen.has(keyOf(queue))) continue;
      seen.add(keyOf(queue));
      const plan = await deps.planOf(queue);
      if (plan === 'later') {
        due.delete(queue); // until it is said to be due again
        continue;
      }
      if (plan.cap === 0) {
        due.delete(queue);
        own.delete(keyOf(queue));
        reached.delete(keyOf(queue));
        continue;
      }
      if (leavesUnlimited && !own.has(keyOf(queue)) && plan.cap === Number.POSITIVE_INFINITY) {
        due.delete(queue);
        // It is no look at the rest, but for a pause now and then.
        if (++leftCount < MAX_LEFT) looks++;
        else if (leftCount === MAX_LEFT) startSoon();
        continue;
      }
      const { tenantId, subscriptionId } = queue;
      const waiting = deps.waiting(tenantId, subscriptionId);
      const free = plan.cap - waiting;
      const room = Math.min(deps.room(tenantId, subscriptionId, plan.perRequest), free, MAX_CLAIM);
      const least = Math.min(deps.worthwhile, Math.ceil(plan.cap / 4));
      if (room < least) {
        const needs = { ofTenant: placesFor(least, waiting), ofAll: least };
        // Asked anew: planOf() took its time.
        const hasPlaces = deps.tenantRoom(tenantId) >= needs.ofTenant && deps.totalRoom() >= least;
        due.rest(queue, free < least || hasPlaces ? undefined : needs);
        continue;
      }
      found.push({ tenantId, subscriptionId, plan, room });
      const hadMore = (reached.get(keyOf(queue))?.untilMs ?? 0) > 0;
      expected += hadMore ? Math.min(room, MANY) : FEW;
    }
    return shareOut(found, total);
  }

  start();
  return {
    poke(queues) {
      // One that has stepped back walks for its part of queues with limits: for them once a second is often enough.
      if (queues === undefined) walkAt = hasSteppedBack ? Math.min(walkAt, walkedAt + WALK_EVERY_MS) : 0;
      for (const queue of queues ?? []) addPoked(queue);
      start();
    },
    knows(queues) {
      for (const queue of queues) {
        own.add(keyOf(queue));
        addPoked(queue);
      }
      start();
    },
    found(heads) {
      for (const head of heads) {
        own.add(keyOf(head));
        addPoked(head);
        back.push(head);
      }
      start();
    },
    later(queue, dueInMs) {
      own.add(keyOf(queue));
      later.add(queue, dueInMs);
    },
    freed: due.freed,
    resume() {
      if (due.readyCount() === 0 && due.shortCount() === 0) return;
      // Right after a round that found nothing to claim, there is nothing to look at again for every delivery that
      // ends: a few milliseconds later is soon enough.
      if (performance.now() - emptyAt >= RESUME_MS) start();
      else if (running === undefined) startSoon();
    },
    async stop() {
      stopped = true;
      clearTimeout(timer);
      clearTimeout(resumeTimer);
      later.stop();
      await running;
    },
  };
}

const LOWEST_ID = Buffer.alloc(16);

const keyOf = (queue: QueueKey) => `${queue.tenantId}/${queue.subscriptionId}`;

function shuffled<T>(items: readonly T[]): T[] {
  const mixed = [...items];
  for (let i = mixed.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [mixed[i], mixed[j]] = [mixed[j]!, mixed[i]!];
  }
  return mixed;
}

/** Shares `total` out over queues, as evenly as their rooms allow. */
function shareOut(queues: readonly Planned[], total: number): Planned[] {
  const byRoom = [...queues].sort((a, b) => a.room - b.room);
  let left = total;
  const shared: Planned[] = [];
  for (const [i, queue] of byRoom.entries()) {
    const room = Math.min(queue.room, Math.ceil(left / (byRoom.length - i)));
    if (room <= 0) continue;
    left -= room;
    shared.push({ ...queue, room });
  }
  return shared;
}
