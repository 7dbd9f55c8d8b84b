// Producers for the runs in which things are killed: they publish with idempotency keys, try again until they are
// acked, and keep the ledger.
import type { Client } from '@connectrpc/connect';
import type { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { type Acked, hashOf } from './ledger.ts';

export type ProducerLedger = Map<string, Acked>;

/**
 * Publishes events `from` to `to` in batches, each batch until it is acked. A batch that failed is sent again with
 * the same idempotency keys, so that what was committed before the failure is not published twice.
 */
export async function publishUntilAcked(
  client: () => Client<typeof PublishService>,
  tenantId: string,
  from: number,
  to: number,
  acked: ProducerLedger,
  batchSize = 20,
): Promise<void> {
  for (let start = from; start < to; start += batchSize) {
    const numbers = Array.from({ length: Math.min(batchSize, to - start) }, (_, i) => start + i);
    const payloads = numbers.map((n) => Buffer.from(JSON.stringify({ n, tenantId })));
    const events = numbers.map((n, i) => ({
      type: 'order.created',
      idempotencyKey: `k${n}`,
      body: { case: 'payload' as const, value: payloads[i]! },
    }));
    for (;;) {
      try {
        const { results } = await client().publishBatch({ tenantId, events }, { timeoutMs: 20_000 });
        let failed = false;
        for (const [i, { result }] of results.entries()) {
          if (result.case === 'ok') {
            acked.set(result.value.eventId, {
              bodyHash: hashOf(payloads[i]!),
              deliveryCount: result.value.deliveryCount,
            });
          } else {
            failed = true;
          }
        }
        if (!failed) break;
      } catch {
        // Killed, restarting or not there yet: the same batch again. The test's own time limit bounds this.
      }
      await new Promise((done) => setImmediate(done));
    }
  }
}
