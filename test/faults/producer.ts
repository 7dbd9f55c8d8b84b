// Producers of fault runs: a steady rate of events with idempotency keys, each tried again until it is acked.
import { setTimeout as wait } from 'node:timers/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import { hashOf } from '../support/ledger.ts';
import type { Clients } from '../support/rpc-clients.ts';
import type { World } from './world.ts';

export type ProducerOptions = {
  readonly tenantIds: readonly string[];
  /** The APIs that may be asked now, in turn; a failed call goes to the next. */
  readonly clients: () => readonly Clients[];
  readonly perSecond: number;
  /** Events in one call. */
  readonly batch?: number;
  /** Calls under way at once; beyond it the rate is not kept. */
  readonly concurrency?: number;
  /** Ends by itself after so many events. */
  readonly count?: number;
  readonly timeoutMs?: number;
};

export type Producer = {
  /** Events acked so far. */
  readonly ackedCount: () => number;
  /** Calls that failed and were tried again, by code. */
  readonly failures: ReadonlyMap<string, number>;
  /** How long calls took that were acked, in ms, retries included. */
  readonly latencies: number[];
  /** No new events; resolves when all are acked. */
  readonly stop: () => Promise<void>;
  /** Resolves when `count` events are acked. */
  readonly done: Promise<void>;
};

/** Codes that a client tries again after; any other is a broken promise and ends the run. */
const RETRYABLE = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.ResourceExhausted, Code.Aborted]);
const RETRY_MS = 50;

/**
 * Whether the client could not write to a connection whose other end was gone. Its library calls that Internal, unlike
 * every other loss of a connection; an answer that says Internal has no such cause.
 */
function isBrokenPipe(error: unknown): boolean {
  for (let e = error; e instanceof Error; e = e.cause) if ('code' in e && e.code === 'EPIPE') return true;
  return false;
}

export function startProducer(world: World, options: ProducerOptions): Producer {
  const { batch = 10, concurrency = 16, count = Number.POSITIVE_INFINITY, timeoutMs = 5_000 } = options;
  const failures = new Map<string, number>();
  const latencies: number[] = [];
  let sent = 0;
  let acked = 0;
  let turn = 0;
  let stopped = false;
  const startedAt = performance.now();
  /** Keys are of this producer: several may publish for one tenant. */
  const prefix = Math.floor(world.random() * 2 ** 32).toString(36);

  async function publish(first: number, size: number): Promise<void> {
    const tenantId = options.tenantIds[Math.floor(first / batch) % options.tenantIds.length]!;
    const payloads = Array.from({ length: size }, (_, i) =>
      Buffer.from(`{"k":"${prefix}","n":${first + i}}`),
    );
    const events = payloads.map((value, i) => ({
      type: 'order.created',
      idempotencyKey: `${prefix}-${first + i}`,
      body: { case: 'payload' as const, value },
    }));
    const began = performance.now();
    for (let left = events.map((event, i) => ({ event, i })); ; ) {
      const clients = options.clients();
      const client = clients[turn++ % Math.max(1, clients.length)];
      try {
        if (client === undefined) throw new ConnectError('no API is up', Code.Unavailable);
        const request = { tenantId, events: left.map(({ event }) => event) };
        const { results } = await client.publish.publishBatch(request, { timeoutMs });
        const again: typeof left = [];
        let ackedNow = 0;
        for (const [at, { result }] of results.entries()) {
          const { i } = left[at]!;
          if (result.case === 'ok') {
            ackedNow++;
            const { eventId, deliveryCount } = result.value;
            world.ledger.acked.set(eventId, { bodyHash: hashOf(payloads[i]!), deliveryCount });
          } else {
            const code = (result.value as { code?: number } | undefined)?.code ?? Code.Unknown;
            failed(code, String(result.value?.message));
            again.push(left[at]!);
          }
        }
        acked += ackedNow;
        world.timeline.acked(ackedNow);
        left = again;
        if (left.length === 0) break;
      } catch (error) {
        const { code, rawMessage } = ConnectError.from(error);
        failed(isBrokenPipe(error) ? Code.Unavailable : code, rawMessage);
      }
      await wait(RETRY_MS);
    }
    latencies.push(performance.now() - began);
  }

  function failed(code: Code, message: string): void {
    const name = Code[code] ?? String(code);
    failures.set(name, (failures.get(name) ?? 0) + 1);
    if (!RETRYABLE.has(code)) throw new Error(`a publish was refused: ${name}: ${message}`);
  }

  async function lane(): Promise<void> {
    while (!stopped && sent < count) {
      const size = Math.min(batch, count - sent);
      const first = sent;
      sent += size;
      const dueAt = startedAt + (first / options.perSecond) * 1000;
      const early = dueAt - performance.now();
      if (early > 0) await wait(early);
      await publish(first, size);
    }
  }

  const done = Promise.all(Array.from({ length: concurrency }, lane)).then(() => {});
  done.catch(() => {}); // whoever waits for it hears of it
  return {
    ackedCount: () => acked,
    failures,
    latencies,
    done,
    async stop() {
      stopped = true;
      await done;
    },
  };
}
