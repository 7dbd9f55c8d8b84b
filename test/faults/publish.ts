// Publishes a few events once, for scenarios that need them at a certain moment; a steady load is in producer.ts.
import { hashOf } from '../support/ledger.ts';
import type { Clients } from '../support/rpc-clients.ts';
import type { World } from './world.ts';

/** Publishes payloads in one call, each as an event, and writes down what was acked. Throws if one was refused. */
export async function publishAll(
  world: World,
  clients: Clients,
  tenantId: string,
  payloads: readonly string[],
): Promise<void> {
  const bodies = payloads.map((payload) => Buffer.from(payload));
  const events = bodies.map((value) => ({
    type: 'order.created',
    body: { case: 'payload' as const, value },
  }));
  const { results } = await clients.publish.publishBatch({ tenantId, events });
  for (const [i, { result }] of results.entries()) {
    if (result.case !== 'ok') throw new Error(`event ${i} was refused: ${result.value?.message}`);
    const { eventId, deliveryCount } = result.value;
    world.ledger.acked.set(eventId, { bodyHash: hashOf(bodies[i]!), deliveryCount });
  }
  world.timeline.acked(results.length);
}

/** Different payloads, of no other series. */
export const numbered = (count: number, series: number): string[] =>
  Array.from({ length: count }, (_, n) => `{"series":${series},"n":${n}}`);
