// The ledger checker: the only judge of the runs in which things are killed. It compares what producers were acked,
// what receivers got, and what the database holds after a full drain.
import { createHash } from 'node:crypto';
import type pg from 'pg';
import { idFromUuid } from '../../src/domain/ids.ts';
import type { Received } from './receiver.ts';

/** What a run did. */
export type Ledger = {
  /** Every event that was acked, with the hash of its body and how many deliveries it should have. */
  readonly acked: ReadonlyMap<string, { readonly bodyHash: string; readonly deliveryCount: number }>;
  /** Bodies of publishes that were never acked: their events may exist or not. */
  readonly unackedHashes: ReadonlySet<string>;
  readonly received: readonly Received[];
};

/** The verdict. A promise is broken if anything but `duplicated` is not zero. */
export type Verdict = {
  readonly acked: number;
  readonly receivedRequests: number;
  /** Acked deliveries that no receiver got. */
  readonly lost: number;
  /** Requests for events that nobody published, or with another body. */
  readonly unexpected: number;
  /** Requests beyond the first for the same delivery. */
  readonly duplicated: number;
  /** Rows that are still unfinished after the drain. */
  readonly unfinished: number;
  /** Acked events that the database does not have. */
  readonly missingEvents: number;
};

export const hashOf = (body: Uint8Array): string => createHash('sha256').update(body).digest('hex');

export async function checkLedger(owner: pg.Client, ledger: Ledger): Promise<Verdict> {
  // The database first: what it holds no more was received before. Asked after, it could have finished meanwhile.
  const unfinished = await owner.query<{ n: string }>('SELECT count(*) AS n FROM deliveries');
  const events = await owner.query<{ id: string }>('SELECT id FROM events');
  const byEvent = new Map<string, Set<string>>();
  const seen = new Set<string>();
  let unexpected = 0;
  let duplicated = 0;
  for (const { headers, body } of ledger.received) {
    const eventId = String(headers['webhook-id']);
    const deliveryId = String(headers['dispatch-delivery-id']);
    const known = ledger.acked.get(eventId);
    const hash = hashOf(body);
    if (known === undefined ? !ledger.unackedHashes.has(hash) : known.bodyHash !== hash) unexpected++;
    if (seen.has(deliveryId)) duplicated++;
    seen.add(deliveryId);
    const deliveries = byEvent.get(eventId) ?? new Set();
    byEvent.set(eventId, deliveries.add(deliveryId));
  }
  let lost = 0;
  for (const [eventId, { deliveryCount }] of ledger.acked) {
    lost += Math.max(0, deliveryCount - (byEvent.get(eventId)?.size ?? 0));
  }
  const stored = new Set(events.rows.map((row) => idFromUuid('evt', row.id)));
  let missingEvents = 0;
  for (const eventId of ledger.acked.keys()) if (!stored.has(eventId)) missingEvents++;
  return {
    acked: ledger.acked.size,
    receivedRequests: ledger.received.length,
    lost,
    unexpected,
    duplicated,
    unfinished: Number(unfinished.rows[0]?.n ?? 0),
    missingEvents,
  };
}
