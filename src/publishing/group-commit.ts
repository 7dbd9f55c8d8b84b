// Group commit: concurrent publishes of one instance, of any tenants, become one statement. No timer: while one
// commit runs the next batch fills. May import storage, domain and telemetry.
//
// States of an item: queued → in a commit → done, or back to queued (its tenant's configuration changed; its key's
// owner vanished) at most MAX_ROUNDS times. One whose tenant's configuration is not in memory waits for that apart from the
// others, and is queued again, before what came after it if its tenant has an order.
import { performance } from 'node:perf_hooks';
import type { ClaimedDelivery } from '../domain/delivery.ts';
import { DispatchError } from '../domain/errors.ts';
import { fingerprintOf, type NewEvent } from '../domain/event.ts';
import { type EventId, encodeId, type TenantId } from '../domain/ids.ts';
import { burstOf, type Quota } from '../domain/quota.ts';
import type { QueueKey } from '../storage/claims.ts';
import type { IngestBatch, IngestResult } from '../storage/ingest.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { Target } from '../storage/targets.ts';
import type { TenantConfigs } from '../storage/tenant-configs.ts';
import { type ConfigReadsDeps, createConfigReads } from './config-reads.ts';
import { createEventQuotas } from './event-quotas.ts';
import { handOver, type Lease } from './hand-over.ts';
import { heldUp, tenantsOfLarge } from './held-up.ts';
import { bytesOf, duplicateOutcome, type Item, type Matched, type PublishOutcome, refuse } from './item.ts';
import { createMatching, type MatchingDeps } from './matching.ts';
import { createNearLimits } from './near-limits.ts';

export type GroupCommitDeps = Omit<MatchingDeps, 'quotas'> & {
  readonly ingest: (batch: IngestBatch) => Promise<IngestResult[]>;
  /** For one tenant near the end of a quota: see storage/ingest.ts. */
  readonly ingestNearLimit: (batch: IngestBatch) => Promise<IngestResult[]>;
  /** A number that no other process has: its lanes count usage in slots of their own. */
  readonly usageSlot: number;
  readonly configs: ConfigReadsDeps<unknown>['configs'] & Pick<TenantConfigs, 'confirm'>;
  /** Says that queues have something due that nobody holds. */
  readonly ready: (queues: Iterable<QueueKey>) => void;
  /** Turns an error of the database into what a caller sees; undefined: not the database's state. */
  readonly unavailable: (error: unknown) => DispatchError | undefined;
  readonly onCommit: (eventCount: number, seconds: number) => void;
  readonly onError: (error: unknown) => void;
};

/** Stores events. */
export type GroupCommit = {
  /** Stores one event; `done` is called once it is committed or refused. If `isWanted` is false when
   * its turn comes, it is refused unstored. */
  readonly add: (event: NewEvent, isWanted: () => boolean, done: (outcome: PublishOutcome) => void) => void;
  /** Resolves when nothing is queued or in a commit. */
  readonly idle: () => Promise<void>;
};

const MAX_EVENTS = 500;
const MAX_BYTES = 4 * 1024 * 1024;
/** A second and third commit run beside the first only when this much waits: small batches cost more each. */
const BESIDE = 300;
const MAX_COMMITS = 3;
/** Commits of tenants near the end of a quota of events, beside the others: one at a time for each tenant. */
const MAX_NEAR = 2;
/** Slots of usage a process has: one for each commit that may run. */
export const LANES = MAX_COMMITS + MAX_NEAR;
const MAX_ROUNDS = 10;
/** Events that may wait; beyond it publishing is refused rather than memory filled. */
const MAX_QUEUED = 20_000;
const MAX_QUEUED_BYTES = 256 * 1024 * 1024;

/** Events that one process may have under way at once. */
export const MAX_UNDER_WAY = LANES * MAX_EVENTS;

export function createGroupCommit(deps: GroupCommitDeps): GroupCommit {
  let queue: Item[] = [];
  let itemCount = 0;
  let queuedBytes = 0;
  let waiters: (() => void)[] = [];
  const lanes = Array.from({ length: MAX_COMMITS }, (_, i) => deps.usageSlot * LANES + i);
  const quotas = createEventQuotas();
  const matching = createMatching({ ...deps, quotas });
  const near = createNearLimits({
    lanes: Array.from({ length: MAX_NEAR }, (_, i) => deps.usageSlot * LANES + MAX_COMMITS + i),
    maxEvents: MAX_EVENTS,
    commit,
    onEnd() {
      pump(); // a commit may have put something back
      wakeIfIdle();
    },
  });
  const commitCount = () => MAX_COMMITS - lanes.length;
  let pumpsSoon = false;
  const isIdle = () => commitCount() === 0 && queue.length === 0 && near.isIdle() && reads.count() === 0;

  function pump(): void {
    while (queue.length > 0 && (mainCount() === 0 || (lanes.length > 0 && queue.length >= BESIDE))) {
      const items = take();
      if (items.length === 0) return; // all of it waits for a commit that is under way
      begin(items);
    }
    if (queue.length === 0 || !mayGoBeside()) return;
    const found = heldUp(queue, isInLarge, MAX_BYTES);
    if (found === undefined) return;
    queue = found.rest;
    queuedBytes -= bytesOf(found.items);
    begin(found.items, true);
  }

  /** Tenants of the large commits that are under way. */
  const large = new Set<ReadonlySet<TenantId>>();
  /** Commits that are beside a large one, or were: nobody else waits for them. */
  let besideCount = 0;
  const mainCount = () => commitCount() - besideCount;
  /** One at a time, so that a lane is left for others. */
  const mayGoBeside = () => large.size > 0 && besideCount === 0 && lanes.length > 0;
  function isInLarge(tenantId: TenantId): boolean {
    if (committing.has(tenantId)) return true;
    for (const tenants of large) if (tenants.has(tenantId)) return true;
    return false;
  }

  function begin(items: readonly Item[], isBeside = false): void {
    const lane = lanes.pop()!;
    const marked = markOrdered(items);
    const tenants = tenantsOfLarge(items);
    if (tenants !== undefined) large.add(tenants);
    if (isBeside) besideCount++;
    void commit(items, lane).finally(() => {
      for (const tenantId of marked) committing.delete(tenantId);
      if (tenants !== undefined) large.delete(tenants);
      if (isBeside) besideCount--;
      lanes.push(lane);
      pump();
      wakeIfIdle();
    });
  }

  function wakeIfIdle(): void {
    if (!isIdle()) return;
    for (const wake of waiters) wake();
    waiters = [];
  }

  /** Tenants with ordered subscriptions whose events are in a commit: the next ones wait, so that none overtakes. */
  const committing = new Set<TenantId>();

  /** Whether the order of a tenant's events matters; also for one that is not known yet. */
  const isOrdered = (tenantId: TenantId) => deps.configs.peek(tenantId)?.isOrdered ?? true;

  function take(): Item[] {
    let bytes = 0;
    let count = 0;
    let mayGoCount = 0;
    let isWhole = true;
    while (count < queue.length && mayGoCount < MAX_EVENTS && bytes < MAX_BYTES) {
      const { tenantId, payload } = queue[count++]!.event;
      if (committing.size > 0 && committing.has(tenantId)) {
        isWhole = false;
      } else {
        mayGoCount++;
        bytes += payload.length;
      }
    }
    const seen = count === queue.length ? queue : queue.slice(0, count);
    const rest = count === queue.length ? [] : queue.slice(count);
    queuedBytes -= bytes;
    if (isWhole) {
      queue = rest;
      return seen;
    }
    const mayGo = (item: Item) => !committing.has(item.event.tenantId);
    queue = [...seen.filter((item) => !mayGo(item)), ...rest];
    return seen.filter(mayGo);
  }

  /** Marks the ordered tenants of a batch; returns those that it marked. */
  function markOrdered(items: readonly Item[]): TenantId[] {
    const marked: TenantId[] = [];
    for (const { event } of items) {
      if (committing.has(event.tenantId) || !isOrdered(event.tenantId)) continue;
      committing.add(event.tenantId);
      marked.push(event.tenantId);
    }
    return marked;
  }

  function requeue(items: readonly Item[]): void {
    const again: Item[] = [];
    const nearAgain: Item[] = [];
    for (const item of items) {
      item.config = undefined;
      if (++item.rounds < MAX_ROUNDS) (near.hasWaiting(item.event.tenantId) ? nearAgain : again).push(item);
      else
        refuse(
          item,
          new DispatchError('UNAVAILABLE', 'the tenant changes too fast; try again', { retryAfterMs: 100 }),
        );
    }
    near.send(nearAgain);
    queuedBytes += bytesOf(again);
    // To the back: what has to be done again must not keep others waiting. But what has an order goes before what came
    // after it.
    const ordered = again.filter((item) => isOrdered(item.event.tenantId));
    const others = ordered.length === 0 ? again : again.filter((item) => !ordered.includes(item));
    queue = [...ordered, ...queue, ...others];
  }

  async function commit(items: readonly Item[], lane: number): Promise<void> {
    const startedAt = performance.now();
    let wanted: readonly Item[] = items.filter((item) => {
      const isWanted = item.isWanted();
      if (!isWanted) refuse(item, GONE);
      return isWanted;
    });
    const isNearLane = lane % LANES >= MAX_COMMITS;
    if (!isNearLane && !near.isUnused()) {
      // Also what comes behind others that went that way and are not done.
      const isNear = ({ event }: Item) => near.isNear(event.tenantId, startedAt);
      near.send(wanted.filter(isNear));
      wanted = wanted.filter((item) => !isNear(item));
    }
    const { ready, configs } = withConfigs(wanted);
    wanted = ready;
    let open: readonly Item[] = wanted; // items that nobody has answered or queued again yet
    let matched: readonly Matched[] = [];
    try {
      wanted = await payRates(wanted, configs);
      open = wanted;
      const prepared = matching.prepare(wanted, configs, lane);
      matched = prepared.batch.events;
      open = matched.flatMap((m) => [m.item, ...m.repeats]);
      if (prepared.later.length > 0) requeue(prepared.later);
      if (matched.length === 0) return;
      const results = await (isNearLane ? deps.ingestNearLimit : deps.ingest)(prepared.batch);
      deps.onCommit(matched.length, (performance.now() - startedAt) / 1000);
      confirmConfigs(prepared.batch, results, startedAt);
      settle(matched, results, { token: prepared.batch.lease, untilMs: startedAt + deps.leaseMs });
    } catch (error) {
      for (const m of matched) matching.giveBack(m);
      const known = error instanceof DispatchError ? error : deps.unavailable(error);
      if (known === undefined && open.length > 1) {
        await commitApart(open, lane);
        return;
      }
      if (known === undefined) deps.onError(error);
      const shown = known ?? new DispatchError('INTERNAL', 'the event could not be stored', { cause: error });
      for (const item of open) refuse(item, shown);
    }
  }

  /** The database refuses something in a batch: halves of it, so that a bad event fails alone. */
  async function commitApart(items: readonly Item[], lane: number): Promise<void> {
    const middle = Math.ceil(items.length / 2);
    await commit(items.slice(0, middle), lane);
    await commit(items.slice(middle), lane);
  }

  /** Takes a token of its tenant's publish rate for each item that has none; refuses those that get none. */
  async function payRates(
    items: readonly Item[],
    configs: ReadonlyMap<TenantId, TenantConfig>,
  ): Promise<readonly Item[]> {
    const unpaid = new Map<TenantConfig, Item[]>();
    for (const item of items) {
      const config = configs.get(item.event.tenantId)!;
      if (config.quota.publishPerSecond === 0) item.paidBy = config.quota;
      if (hasPaid(item, config.quota)) continue;
      const ofTenant = unpaid.get(config);
      if (ofTenant === undefined) unpaid.set(config, [item]);
      else ofTenant.push(item);
    }
    if (unpaid.size === 0) return items;
    const refused = new Set<Item>();
    const pay = async ([config, ofTenant]: readonly [TenantConfig, readonly Item[]]) => {
      const { granted, refusal } = await deps.admission.takeRate(config, ofTenant.length);
      ofTenant.forEach((item, i) => {
        item.paidBy = config.quota;
        if (i < granted || refusal === undefined) return;
        refused.add(item);
        refuse(item, refusal);
      });
    };
    await Promise.all([...unpaid].map(pay));
    return refused.size === 0 ? items : items.filter((item) => !refused.has(item));
  }

  /**
   * The items whose tenants' configuration is at hand, with it. The others wait until it is read, with what comes after them of
   * the same tenant: a tenant of ten thousand subscriptions takes half a second, which nobody else's events wait for.
   */
  function withConfigs(items: readonly Item[]): {
    readonly ready: readonly Item[];
    readonly configs: ReadonlyMap<TenantId, TenantConfig>;
  } {
    const configs = new Map<TenantId, TenantConfig>();
    const ready = items.filter((item) => {
      const { tenantId } = item.event;
      if (configs.has(tenantId)) return true;
      const config = reads.has(tenantId) ? undefined : configFor(item);
      if (config === undefined) waitForConfig(item);
      else configs.set(tenantId, config);
      return config !== undefined;
    });
    return { ready, configs };
  }

  const configFor = (item: Item): TenantConfig | undefined => {
    const known = deps.configs.peek(item.event.tenantId);
    return known?.state === 'active' ? known : item.config;
  };

  function waitForConfig(item: Item): void {
    queuedBytes += item.event.payload.length;
    reads.wait(item.event.tenantId, item);
  }

  const reads = createConfigReads<Item>({
    configs: deps.configs,
    unavailable: deps.unavailable,
    onRead(items, config) {
      for (const item of items) item.config = config;
      if (near.has(config.tenantId)) {
        queuedBytes -= bytesOf(items);
        near.send(items);
        return;
      }
      // Before what came after them, if that matters: others have waited for their turns.
      queue = config.isOrdered ? [...items, ...queue] : [...queue, ...items];
      pump();
    },
    onRefused(items, refusal) {
      queuedBytes -= bytesOf(items);
      for (const item of items) refuse(item, refusal);
      wakeIfIdle();
    },
    onError: deps.onError,
  });

  /** What was stored was matched with the version that the statement found: that needs no check for a while. */
  function confirmConfigs(
    { tenants, events }: IngestBatch,
    results: readonly IngestResult[],
    atMs: number,
  ): void {
    const confirmed = new Set<TenantId>();
    for (let i = 0; i < events.length; i++) {
      const { tenantId } = events[i]!.event;
      if (results[i]!.kind !== 'stored' || confirmed.has(tenantId)) continue;
      confirmed.add(tenantId);
      deps.configs.confirm(tenantId, tenants.get(tenantId)!.version, atMs);
    }
  }

  function settle(matched: readonly Matched[], results: readonly IngestResult[], lease: Lease): void {
    const again: Item[] = [];
    const nearAgain: Item[] = [];
    const owned: ClaimedDelivery[] = [];
    const readyQueues = new Map<Target, QueueKey>();
    for (let i = 0; i < matched.length; i++) {
      const m = matched[i]!;
      const result = results[i]!;
      switch (result.kind) {
        case 'stored': {
          const eventId = encodeId('evt', m.eventId) as EventId;
          handOver(m, eventId, lease, owned, readyQueues);
          const deliveryCount = m.deliveries.length;
          m.item.done({ ok: true, published: { eventId, duplicate: false, deliveryCount } });
          answerRepeats(m, eventId, deliveryCount);
          break;
        }
        case 'duplicate':
          matching.giveBack(m);
          m.item.done(duplicateOutcome(m.event, result));
          if (result.same) answerRepeats(m, result.eventId, result.deliveryCount);
          else again.push(...m.repeats);
          break;
        case 'stale': {
          const known = deps.configs.peek(m.event.tenantId);
          if (known === undefined || known.version === m.version) deps.configs.forget(m.event.tenantId);
          matching.giveBack(m);
          again.push(m.item, ...m.repeats);
          break;
        }
        case 'retry':
          matching.giveBack(m);
          again.push(m.item, ...m.repeats);
          break;
        case 'near':
          matching.giveBack(m);
          nearAgain.push(m.item, ...m.repeats);
          break;
        case 'over': {
          matching.giveBack(m);
          const refusal = quotas.usedUp(m.event.tenantId, m.version, result);
          for (const item of [m.item, ...m.repeats]) refuse(item, refusal);
          break;
        }
      }
    }
    near.send(nearAgain);
    if (owned.length > 0) deps.localWorker?.accept(owned);
    if (readyQueues.size > 0) deps.ready(readyQueues.values());
    if (again.length > 0) requeue(again);
  }

  function answerRepeats(m: Matched, eventId: EventId, deliveryCount: number): void {
    if (m.repeats.length === 0) return;
    const first = fingerprintOf(m.event);
    for (const repeat of m.repeats) {
      const same = fingerprintOf(repeat.event).equals(first);
      repeat.done(duplicateOutcome(repeat.event, { eventId, deliveryCount, same }));
    }
  }

  return {
    add(event, isWanted, done) {
      if (
        queue.length + near.count() + reads.count() >= MAX_QUEUED ||
        queuedBytes + near.bytes() >= MAX_QUEUED_BYTES
      ) {
        const message = 'more is being published than the database takes; try again later';
        const details = { reason: 'PUBLISH_QUEUE_FULL', retryAfterMs: 1_000 };
        done({ ok: false, error: new DispatchError('RESOURCE_EXHAUSTED', message, details) });
        return;
      }
      queuedBytes += event.payload.length;
      queue.push({
        serial: itemCount++,
        event,
        isWanted,
        done,
        rounds: 0,
        paidBy: undefined,
        config: undefined,
      });
      // The microtask lets the events of one request, and of requests read in one turn, go into one commit: a commit has a
      // row to write for each of its tenants, however few of their events it holds.
      const mayBegin =
        mainCount() === 0 || queue.length >= BESIDE || (mayGoBeside() && !isInLarge(event.tenantId));
      if (pumpsSoon || !mayBegin) return;
      pumpsSoon = true;
      queueMicrotask(() => {
        pumpsSoon = false;
        pump();
      });
    },
    idle: () => (isIdle() ? Promise.resolve() : new Promise((done) => waiters.push(done))),
  };
}

/** Whether an event has a token of this rate: what it paid at another one, before its tenant's quota changed, is no token. */
const hasPaid = ({ paidBy }: Item, quota: Quota): boolean =>
  paidBy?.publishPerSecond === quota.publishPerSecond && burstOf(paidBy) === burstOf(quota);

const GONE = new DispatchError('CANCELLED', 'the caller has gone, so the event was not stored');
