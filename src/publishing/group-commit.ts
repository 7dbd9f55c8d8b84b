// Group commit: concurrent publishes of one instance, of any tenants, become one statement. No timer: while one
// commit runs the next batch fills. May import storage, domain and telemetry.
//
// States of an item: queued → in a commit → done, or back to queued (its tenant's configuration changed; its key's
// owner vanished) at most MAX_ROUNDS times. One whose tenant's configuration is not in memory waits for that apart from the
// others, and is queued again, before what came after it if its tenant has an order.
import { performance } from 'node:perf_hooks';
import type { ClaimedDelivery, Place } from '../domain/delivery.ts';
import { DispatchError } from '../domain/errors.ts';
import { fingerprintOf, type NewEvent } from '../domain/event.ts';
import {
  type DeliveryId,
  deliveryIdOf,
  type EventId,
  encodeId,
  type IdSource,
  type TenantId,
} from '../domain/ids.ts';
import { burstOf, type Quota, quotaExceeded } from '../domain/quota.ts';
import type { QueueKey } from '../storage/claims.ts';
import type { IngestBatch, IngestEvent, IngestResult, IngestTenant } from '../storage/ingest.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import type { Target } from '../storage/targets.ts';
import type { Admission } from './admission.ts';
import { type ConfigReadsDeps, createConfigReads } from './config-reads.ts';
import { lineOf } from './line.ts';

/** The answer to a publish. */
export type Published = {
  readonly eventId: EventId;
  readonly duplicate: boolean;
  readonly deliveryCount: number;
};

export type PublishOutcome =
  | { readonly ok: true; readonly published: Published }
  | { readonly ok: false; readonly error: DispatchError };

/** The worker of this process, if it has one: deliveries can be handed to it right after the commit. */
export type LocalWorker = {
  /** Holds a place for one delivery; undefined when there is no room. */
  readonly reserve: (config: TenantConfig, target: Target) => Place | undefined;
  /** Takes deliveries whose places were reserved. */
  readonly accept: (deliveries: readonly ClaimedDelivery[]) => void;
  /** Gives a reserved place back. */
  readonly unreserve: (place: Place) => void;
};

export type GroupCommitDeps = {
  readonly ingest: (batch: IngestBatch) => Promise<IngestResult[]>;
  /** For one tenant near the end of a quota: see storage/ingest.ts. */
  readonly ingestNearLimit: (batch: IngestBatch) => Promise<IngestResult[]>;
  readonly admission: Admission;
  /** Events that commits on all instances may have under way at once: kept free at the end of quotas of events. */
  readonly margin: () => number;
  /** A number that no other process has: its lanes count usage in slots of their own. */
  readonly usageSlot: number;
  readonly configs: ConfigReadsDeps<unknown>['configs'];
  readonly localWorker: LocalWorker | undefined;
  /** Says that queues have something due that nobody holds. */
  readonly ready: (queues: Iterable<QueueKey>) => void;
  readonly ids: IdSource;
  readonly randomBytes: (size: number) => Buffer;
  readonly leaseMs: number;
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
const MAX_DELIVERIES = 10_000;
/** A second and third commit run beside the first only when this much waits: small batches cost more each. */
const BESIDE = 300;
const MAX_COMMITS = 3;
/** Commits of tenants near the end of a quota of events, beside the others: one at a time for each tenant. */
const MAX_NEAR = 2;
/** Slots of usage a process has: one for each commit that may run. */
export const LANES = MAX_COMMITS + MAX_NEAR;
/** A tenant that has used up a quota of events is told so from memory for this long. */
const OVER_MS = 1_000;
/** How long a tenant that is far from the end of its quotas is not looked at. */
const FAR_MS = 1_000;
/** How long a tenant that came near the end of a quota of events is taken for near it. */
const NEAR_MS = 5_000;
const MAX_ROUNDS = 10;
/** Events that may wait; beyond it publishing is refused rather than memory filled. */
const MAX_QUEUED = 20_000;
const MAX_QUEUED_BYTES = 256 * 1024 * 1024;

/** Events that one process may have under way at once. */
export const MAX_UNDER_WAY = LANES * MAX_EVENTS;

type Item = {
  /** Counts them in the order in which they came. */
  readonly serial: number;
  readonly event: NewEvent;
  readonly isWanted: () => boolean;
  readonly done: (outcome: PublishOutcome) => void;
  rounds: number;
  /** The quota by whose publish rate it has a token. */
  paidBy: Quota | undefined;
  /** What was read for it, until it is in a commit: a tenant that changes may not be in memory by then. */
  config: TenantConfig | undefined;
};

/** One that is owned has its place in the worker of this process. */
type MatchedDelivery = IngestEvent['deliveries'][number] & { readonly place: Place | undefined };

/** `repeats` are the later items of a batch with the same idempotency key: answered by what becomes of the first. */
type Matched = IngestEvent & {
  readonly deliveries: readonly MatchedDelivery[];
  readonly item: Item;
  readonly targets: readonly Target[];
  readonly repeats: Item[];
  /** Of the configuration that it was matched with. */
  readonly version: number;
};

export function createGroupCommit(deps: GroupCommitDeps): GroupCommit {
  let queue: Item[] = [];
  let itemCount = 0;
  let queuedBytes = 0;
  let waiters: (() => void)[] = [];
  const lanes = Array.from({ length: MAX_COMMITS }, (_, i) => deps.usageSlot * LANES + i);
  const nearLanes = Array.from({ length: MAX_NEAR }, (_, i) => deps.usageSlot * LANES + MAX_COMMITS + i);
  /** Tenants near the end of a quota of events, until when. */
  const nearUntil = new Map<TenantId, number>();
  /** Their events: those of one tenant are committed one batch after the other, the tenants in turn. */
  const near = new Map<TenantId, Item[]>();
  const nearRunning = new Set<TenantId>();
  let nearCount = 0;
  /** Tenants that have used up a quota, until when that is not asked again, and what they are told. */
  const over = new Map<
    TenantId,
    { readonly version: number; readonly untilMs: number; readonly refusal: DispatchError }
  >();
  /** Tenants that are far from the end of their quotas, as of a version of their configuration. */
  const far = new Map<TenantId, { readonly version: number; readonly untilMs: number }>();
  const commitCount = () => MAX_COMMITS - lanes.length;
  let pumpsSoon = false;
  const isIdle = () =>
    commitCount() === 0 &&
    queue.length === 0 &&
    nearCount === 0 &&
    nearRunning.size === 0 &&
    reads.count() === 0;

  function pump(): void {
    while (queue.length > 0 && (commitCount() === 0 || (lanes.length > 0 && queue.length >= BESIDE))) {
      const items = take();
      if (items.length === 0) return; // all of it waits for a commit that is under way
      const lane = lanes.pop()!;
      const marked = markOrdered(items);
      void commit(items, lane).finally(() => {
        for (const tenantId of marked) committing.delete(tenantId);
        lanes.push(lane);
        pump();
        wakeIfIdle();
      });
    }
  }

  function wakeIfIdle(): void {
    if (!isIdle()) return;
    for (const wake of waiters) wake();
    waiters = [];
  }

  /** Commits what tenants near a limit have waiting: each tenant's in turn, no two batches of one at once. */
  function pumpNear(): void {
    for (const [tenantId, items] of near) {
      if (nearLanes.length === 0) return;
      if (nearRunning.has(tenantId)) continue;
      const mine = items.length <= MAX_EVENTS ? items : items.slice(0, MAX_EVENTS);
      near.delete(tenantId);
      if (items.length > MAX_EVENTS) near.set(tenantId, items.slice(MAX_EVENTS)); // behind the others
      nearCount -= mine.length;
      for (const item of mine) queuedBytes -= item.event.payload.length;
      const lane = nearLanes.pop()!;
      nearRunning.add(tenantId);
      void commit(mine, lane).finally(() => {
        nearLanes.push(lane);
        nearRunning.delete(tenantId);
        pumpNear();
        pump(); // a commit may have put something back
        wakeIfIdle();
      });
    }
  }

  function sendNear(items: readonly Item[]): void {
    if (items.length === 0) return;
    const untilMs = performance.now() + NEAR_MS;
    if (nearUntil.size > 10_000) nearUntil.clear();
    for (const item of items) {
      const { tenantId, payload } = item.event;
      nearUntil.set(tenantId, untilMs);
      const waiting = near.get(tenantId) ?? [];
      waiting.push(item);
      // What had to be done again comes before what came after it.
      if ((waiting.at(-2)?.serial ?? 0) > item.serial) waiting.sort(bySerial);
      near.set(tenantId, waiting);
      nearCount++;
      queuedBytes += payload.length;
    }
    pumpNear();
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
      if (++item.rounds < MAX_ROUNDS) (near.has(item.event.tenantId) ? nearAgain : again).push(item);
      else
        refuse(
          item,
          new DispatchError('UNAVAILABLE', 'the tenant changes too fast; try again', { retryAfterMs: 100 }),
        );
    }
    sendNear(nearAgain);
    for (const item of again) queuedBytes += item.event.payload.length;
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
    if (!isNearLane && (nearUntil.size > 0 || near.size > 0 || nearRunning.size > 0)) {
      // Also what comes behind others that went that way and are not done.
      const isNear = ({ event: { tenantId } }: Item) =>
        (nearUntil.get(tenantId) ?? 0) > startedAt || near.has(tenantId) || nearRunning.has(tenantId);
      sendNear(wanted.filter(isNear));
      wanted = wanted.filter((item) => !isNear(item));
    }
    const { ready, configs } = withConfigs(wanted);
    wanted = ready;
    let open: readonly Item[] = wanted; // items that nobody has answered or queued again yet
    let matched: readonly Matched[] = [];
    try {
      wanted = await payRates(wanted, configs);
      open = wanted;
      const prepared = prepare(wanted, configs, lane);
      matched = prepared.batch.events;
      open = matched.flatMap((m) => [m.item, ...m.repeats]);
      if (prepared.later.length > 0) requeue(prepared.later);
      if (matched.length === 0) return;
      const results = await (isNearLane ? deps.ingestNearLimit : deps.ingest)(prepared.batch);
      deps.onCommit(matched.length, (performance.now() - startedAt) / 1000);
      settle(matched, results, prepared.batch.lease, startedAt);
    } catch (error) {
      for (const m of matched) giveBack(m);
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
      if (hasPaid(item, config.quota)) continue;
      const ofTenant = unpaid.get(config);
      if (ofTenant === undefined) unpaid.set(config, [item]);
      else ofTenant.push(item);
    }
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
      if (near.has(config.tenantId) || nearRunning.has(config.tenantId)) {
        for (const { event } of items) queuedBytes -= event.payload.length;
        sendNear(items);
        return;
      }
      // Before what came after them, if that matters: others have waited for their turns.
      queue = config.isOrdered ? [...items, ...queue] : [...queue, ...items];
      pump();
    },
    onRefused(items, refusal) {
      for (const item of items) {
        queuedBytes -= item.event.payload.length;
        refuse(item, refusal);
      }
      wakeIfIdle();
    },
    onError: deps.onError,
  });

  /** Matches events with their tenants' configurations. A key may occur once in a batch. */
  function prepare(
    items: readonly Item[],
    configs: ReadonlyMap<TenantId, TenantConfig>,
    slot: number,
  ): {
    readonly batch: IngestBatch & { readonly events: readonly Matched[] };
    readonly later: readonly Item[];
  } {
    const tenants = new Map<TenantId, IngestTenant>();
    const keys = new Map<string, Matched>();
    const events: Matched[] = [];
    const later: Item[] = [];
    /** Ordered tenants of which something has to wait: what comes behind it waits too. */
    const behind = new Set<TenantId>();
    let deliveryCount = 0;
    for (const item of items) {
      const { event } = item;
      const config = configs.get(event.tenantId)!;
      const targets = config.matches.match(event.type);
      const key = event.idempotencyKey === '' ? '' : `${event.tenantId}/${event.idempotencyKey}`;
      const isFull = events.length > 0 && deliveryCount + targets.length > MAX_DELIVERIES;
      const first = key === '' ? undefined : keys.get(key);
      if (first !== undefined) {
        first.repeats.push(item);
        continue;
      }
      if (isFull || behind.has(event.tenantId)) {
        item.rounds--; // not this item's fault
        later.push(item);
        if (config.isOrdered) behind.add(event.tenantId);
        continue;
      }
      const refusal = usedUpBefore(event, config) ?? admit(event, config, targets.length);
      if (refusal !== undefined) {
        refuse(item, refusal);
        continue;
      }
      if (!tenants.has(event.tenantId)) {
        tenants.set(event.tenantId, ingestTenant(config));
      }
      deliveryCount += targets.length;
      const matched = match(item, targets, config);
      if (key !== '') keys.set(key, matched);
      events.push(matched);
    }
    const lease = deps.randomBytes(16);
    const { leaseMs } = deps;
    const batch = { tenants, events, lease, leaseMs, slot, margin: deps.margin(), isUsage: true, onFar };
    return { batch, later };
  }

  /** A tenant for the statement; without the quotas of events that it is known to be far from. */
  function ingestTenant({ tenantId, version, quota }: TenantConfig): IngestTenant {
    const known = far.get(tenantId);
    const isFar = known !== undefined && known.version === version && known.untilMs > performance.now();
    const { eventsPerDay, eventsPerMonth } = quota;
    return isFar
      ? { version, eventsPerDay: 0, eventsPerMonth: 0 }
      : { version, eventsPerDay, eventsPerMonth };
  }

  function onFar(tenantId: TenantId, version: number): void {
    if (far.size >= 10_000) far.clear();
    far.set(tenantId, { version, untilMs: performance.now() + FAR_MS });
  }

  /** What a tenant was told a moment ago; a repeat of a key is asked about all the same. */
  function usedUpBefore(
    { tenantId, idempotencyKey }: NewEvent,
    { version }: TenantConfig,
  ): DispatchError | undefined {
    const known = over.get(tenantId);
    if (known === undefined || idempotencyKey !== '') return undefined;
    if (known.version === version && known.untilMs > performance.now()) return known.refusal;
    over.delete(tenantId);
    return undefined;
  }

  const admit = (event: NewEvent, config: TenantConfig, deliveryCount: number) =>
    deps.admission.refusal(config, event.payload.length, deliveryCount);

  function match(item: Item, targets: readonly Target[], config: TenantConfig): Matched {
    const { event } = item;
    const eventId = deps.ids.eventBytes();
    const mayOwn = deps.localWorker !== undefined && event.deliverAfterMs === undefined;
    const deliveries = targets.map((target, i) => {
      const deliveryId = deliveryIdOf(eventId, i + 1);
      const orderKey = lineOf(target, event.orderingKey, deliveryId);
      // What is before it in its line may be anywhere.
      const isOwn = mayOwn && orderKey === undefined && target.state === 'active';
      const place = isOwn ? deps.localWorker?.reserve(config, target) : undefined;
      return { deliveryId, subscriptionId: target.idBytes, owned: place !== undefined, orderKey, place };
    });
    return { event, eventId, deliveries, item, targets, repeats: [], version: config.version };
  }

  function settle(
    matched: readonly Matched[],
    results: readonly IngestResult[],
    lease: Buffer,
    startedAt: number,
  ): void {
    const again: Item[] = [];
    const nearAgain: Item[] = [];
    const owned: ClaimedDelivery[] = [];
    const readyQueues = new Map<string, QueueKey>();
    for (let i = 0; i < matched.length; i++) {
      const m = matched[i]!;
      const result = results[i]!;
      switch (result.kind) {
        case 'stored': {
          const eventId = encodeId('evt', m.eventId) as EventId;
          handOver(m, eventId, lease, startedAt, owned, readyQueues);
          const deliveryCount = m.deliveries.length;
          m.item.done({ ok: true, published: { eventId, duplicate: false, deliveryCount } });
          answerRepeats(m, eventId, deliveryCount);
          break;
        }
        case 'duplicate':
          giveBack(m);
          m.item.done(duplicateOutcome(m.event, result));
          if (result.same) answerRepeats(m, result.eventId, result.deliveryCount);
          else again.push(...m.repeats);
          break;
        case 'stale': {
          const known = deps.configs.peek(m.event.tenantId);
          if (known === undefined || known.version === m.version) deps.configs.forget(m.event.tenantId);
          giveBack(m);
          again.push(m.item, ...m.repeats);
          break;
        }
        case 'retry':
          giveBack(m);
          again.push(m.item, ...m.repeats);
          break;
        case 'near':
          giveBack(m);
          nearAgain.push(m.item, ...m.repeats);
          break;
        case 'over': {
          giveBack(m);
          const refusal = usedUp(m.event.tenantId, result);
          if (over.size >= 10_000) over.clear();
          const untilMs = performance.now() + Math.min(OVER_MS, result.retryAfterMs);
          over.set(m.event.tenantId, { version: m.version, untilMs, refusal });
          for (const item of [m.item, ...m.repeats]) refuse(item, refusal);
          break;
        }
      }
    }
    sendNear(nearAgain);
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

  /** The deliveries of a stored event: to the local worker, or to whoever hears that their queues are ready. */
  function handOver(
    m: Matched,
    eventId: EventId,
    lease: Buffer,
    startedAt: number,
    owned: ClaimedDelivery[],
    readyQueues: Map<string, QueueKey>,
  ): void {
    const { tenantId, type, contentType, payload, source, subject, deliverAfterMs } = m.event;
    const event = { eventId, type, contentType, payload, source, subject };
    const nowMs = Date.now();
    for (let i = 0; i < m.deliveries.length; i++) {
      const delivery = m.deliveries[i]!;
      const target = m.targets[i]!;
      const { subscriptionId } = target;
      if (delivery.place !== undefined) {
        owned.push({
          tenantId,
          deliveryId: encodeId('dlv', delivery.deliveryId) as DeliveryId,
          idBytes: delivery.deliveryId,
          subscriptionId,
          attemptCount: 0,
          retryBase: 0,
          roundAtMs: undefined,
          lease,
          leaseUntilMs: startedAt + deps.leaseMs,
          dueAtMs: nowMs,
          isOrdered: false,
          place: delivery.place,
          event,
        });
      } else if (target.state === 'active' && (deliverAfterMs === undefined || deliverAfterMs <= nowMs)) {
        readyQueues.set(`${tenantId}/${subscriptionId}`, { tenantId, subscriptionId });
      }
    }
  }

  function giveBack(m: Matched): void {
    deps.admission.giveBack(m.event.tenantId, m.deliveries.length);
    for (const { place } of m.deliveries) if (place !== undefined) deps.localWorker?.unreserve(place);
  }

  return {
    add(event, isWanted, done) {
      if (queue.length + nearCount + reads.count() >= MAX_QUEUED || queuedBytes >= MAX_QUEUED_BYTES) {
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
      if (pumpsSoon || (commitCount() > 0 && queue.length < BESIDE)) return;
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

const bySerial = (a: Item, b: Item) => a.serial - b.serial;

const GONE = new DispatchError('CANCELLED', 'the caller has gone, so the event was not stored');

function usedUp(tenantId: TenantId, over: Extract<IngestResult, { kind: 'over' }>): DispatchError {
  const { field, limit, retryAfterMs } = over;
  const period = field === 'eventsPerDay' ? 'day' : 'month';
  const explanation = `all ${limit} events of this ${period} are used; the next begins at 00:00 UTC`;
  return quotaExceeded(tenantId, field, limit, limit, explanation, retryAfterMs);
}

function refuse(item: Item, error: DispatchError): void {
  item.done({ ok: false, error });
}

type KeyOwner = Omit<Extract<IngestResult, { kind: 'duplicate' }>, 'kind'>;

function duplicateOutcome(event: NewEvent, result: KeyOwner): PublishOutcome {
  const { eventId, deliveryCount, same } = result;
  if (same) return { ok: true, published: { eventId, duplicate: true, deliveryCount } };
  const message = `idempotency key "${event.idempotencyKey}" was used for another event (${eventId}) within 24 h`;
  const field = {
    field: 'event.idempotency_key',
    description: 'use a new key for a new event, or repeat the same event',
  };
  return {
    ok: false,
    error: new DispatchError('ALREADY_EXISTS', message, {
      violations: [field],
      reason: 'IDEMPOTENCY_CONFLICT',
    }),
  };
}
