// dispatch's own events (`dispatch.…`), published through dispatch itself to the tenant's subscriptions that ask for them.
// They count towards no quota. What one tells about a subscription is never sent to that subscription, and deliveries of
// these events are not told about: so they cannot go round in a circle.
//
// Best effort: they tell of what is stored elsewhere anyway. One that cannot be stored within a few tries is dropped, and
// said so in the log.
import { setTimeout as wait } from 'node:timers/promises';
import type { NewEvent } from '../domain/event.ts';
import { deliveryIdOf, type IdSource, type SubscriptionId, type TenantId } from '../domain/ids.ts';
import type { QueueKey } from '../storage/claims.ts';
import type { IngestBatch, IngestResult } from '../storage/ingest.ts';
import type { TenantConfig } from '../storage/read-config.ts';
import { lineOf } from './line.ts';

/** Every type there is. */
export type OperationalType =
  | 'dispatch.subscription.disabled'
  | 'dispatch.subscription.enabled'
  | 'dispatch.delivery.dead_lettered'
  | 'dispatch.breaker.opened'
  | 'dispatch.breaker.closed'
  | 'dispatch.quota.threshold'
  | 'dispatch.replay.finished';

export type OperationalEvent = {
  readonly tenantId: TenantId;
  readonly type: OperationalType;
  /** The subscription that it is about: it is not told. */
  readonly about: SubscriptionId | undefined;
  /** JSON. */
  readonly data: Readonly<Record<string, unknown>>;
};

/** Whether a type is one of dispatch's own. */
export const isOperational = (type: string): boolean => type.startsWith('dispatch.');

export type OperationalEventsDeps = {
  readonly reload: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  readonly get: (tenantId: TenantId) => Promise<TenantConfig | undefined>;
  readonly ingest: (batch: IngestBatch) => Promise<readonly IngestResult[]>;
  readonly ids: IdSource;
  readonly randomBytes: (size: number) => Buffer;
  /** Where (no) usage is counted: a number that no other writer has. */
  readonly slot: number;
  readonly ready: (queues: readonly QueueKey[]) => void;
  readonly onError: (error: unknown, event: OperationalEvent) => void;
};

export type OperationalEvents = AsyncDisposable & { readonly emit: (event: OperationalEvent) => void };

const MAX_QUEUED = 1_000;
const TRIES = 5;

export function createOperationalEvents(deps: OperationalEventsDeps): OperationalEvents {
  const queue: OperationalEvent[] = [];
  let running: Promise<void> | undefined;

  async function run(): Promise<void> {
    for (let event = queue.shift(); event !== undefined; event = queue.shift()) {
      try {
        await publish(event);
      } catch (error) {
        deps.onError(error, event);
      }
    }
  }

  async function publish(event: OperationalEvent): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        const config = tries === 1 ? await deps.get(event.tenantId) : await deps.reload(event.tenantId);
        if (config === undefined || config.state !== 'active') return;
        if (await store(event, config)) return;
        throw new Error('the tenant’s configuration changed');
      } catch (error) {
        if (tries === TRIES) throw error;
        await wait(100 * tries);
      }
    }
  }

  /** False: the configuration is not the current one. */
  async function store(event: OperationalEvent, config: TenantConfig): Promise<boolean> {
    const { tenantId, type, about } = event;
    const targets = config.matches.match(type).filter((t) => t.subscriptionId !== about);
    if (targets.length === 0) return true;
    const eventId = deps.ids.eventBytes();
    const stored = newEvent(event);
    const deliveries = targets.map((target, i) => {
      const deliveryId = deliveryIdOf(eventId, i + 1);
      const orderKey = lineOf(target, stored.orderingKey, deliveryId);
      return { deliveryId, subscriptionId: target.idBytes, owned: false, orderKey };
    });
    const tenants = new Map([[tenantId, { version: config.version, eventsPerDay: 0, eventsPerMonth: 0 }]]);
    const [result] = await deps.ingest({
      tenants,
      events: [{ event: stored, eventId, deliveries }],
      lease: deps.randomBytes(16),
      leaseMs: 0,
      slot: deps.slot,
      margin: 0,
      isUsage: false,
      onFar: () => {},
    });
    if (result?.kind !== 'stored') return false;
    deps.ready(targets.map(({ subscriptionId }) => ({ tenantId, subscriptionId })));
    return true;
  }

  return {
    emit(event) {
      if (queue.length >= MAX_QUEUED) {
        deps.onError(new Error('too many operational events are waiting'), event);
        return;
      }
      queue.push(event);
      running ??= run().finally(() => {
        running = undefined;
      });
    },
    async [Symbol.asyncDispose]() {
      await running;
    },
  };
}

function newEvent({ tenantId, type, about, data }: OperationalEvent): NewEvent {
  return {
    tenantId,
    type,
    payload: Buffer.from(JSON.stringify(data)),
    contentType: 'application/json',
    source: '/dispatch',
    subject: about ?? '',
    idempotencyKey: '',
    orderingKey: about ?? '',
    deliverAfterMs: undefined,
    metadata: {},
  };
}
