// The ledger checker: the only judge of the runs in which things are killed. It compares what producers were acked,
// what receivers got, and what the database holds after a full drain.
import { createHash } from 'node:crypto';
import type pg from 'pg';
import { idFromUuid } from '../../src/domain/ids.ts';
import type { Received } from './receiver.ts';

/** An event that was acked: the hash of its body, and how many deliveries it should have. */
export type Acked = { readonly bodyHash: string; readonly deliveryCount: number };

/** A request that a receiver got. */
export type Arrival = { readonly eventId: string; readonly deliveryId: string; readonly bodyHash: string };

/** What a run did. */
export type Ledger = {
  readonly acked: ReadonlyMap<string, Acked>;
  /** Bodies of publishes that were never acked: their events may exist or not. */
  readonly unackedHashes: ReadonlySet<string>;
  readonly arrivals: readonly Arrival[];
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
  /** Acked events that had more deliveries than the ack said. */
  readonly fannedOutTwice: number;
  /** Rows that are still unfinished after the drain. */
  readonly unfinished: number;
  /** Acked events that the database does not have. */
  readonly missingEvents: number;
  /** Stored events that nobody was acked for: a retry with the same idempotency key made a second one. */
  readonly unknownEvents: number;
  /** Acked deliveries without exactly one success, or a dead letter, in the history. */
  readonly misrecorded: number;
};

/** What a whole run must have none of. */
export const BROKEN = [
  'lost',
  'unexpected',
  'fannedOutTwice',
  'unfinished',
  'missingEvents',
  'unknownEvents',
  'misrecorded',
] as const satisfies readonly (keyof Verdict)[];

export const hashOf = (body: Uint8Array): string => createHash('sha256').update(body).digest('base64url');

export const arrivalOf = ({ headers, body }: Pick<Received, 'headers' | 'body'>): Arrival => ({
  eventId: String(headers['webhook-id']),
  deliveryId: String(headers['dispatch-delivery-id']),
  bodyHash: hashOf(body),
});

export async function checkLedger(owner: pg.Client, ledger: Ledger): Promise<Verdict> {
  // The database first: what it holds no more was received before. Asked after, it could have finished meanwhile.
  const unfinished = await owner.query<{ n: string }>('SELECT count(*) AS n FROM deliveries');
  const events = await owner.query<{ id: string; hash: string }>(
    `SELECT id, translate(rtrim(encode(sha256(payload), 'base64'), '='), '+/', '-_') AS hash
     FROM events WHERE type NOT LIKE 'dispatch.%'`,
  );
  const endings = await owner.query<{ finished: string; twice: string }>(
    `SELECT count(*) AS finished, count(*) FILTER (WHERE n > 1) AS twice
     FROM (SELECT count(*) AS n FROM (
         SELECT tenant_id, delivery_id AS id FROM attempts WHERE outcome = 'succeeded'
         UNION ALL SELECT tenant_id, id FROM dead_letters) e
       GROUP BY tenant_id, id) d`,
  );
  const byEvent = new Map<string, Set<string>>();
  const seen = new Set<string>();
  let unexpected = 0;
  let duplicated = 0;
  for (const { eventId, deliveryId, bodyHash } of ledger.arrivals) {
    const known = ledger.acked.get(eventId);
    if (known === undefined ? !ledger.unackedHashes.has(bodyHash) : known.bodyHash !== bodyHash) unexpected++;
    if (seen.has(deliveryId)) duplicated++;
    seen.add(deliveryId);
    const deliveries = byEvent.get(eventId) ?? new Set();
    byEvent.set(eventId, deliveries.add(deliveryId));
  }
  let lost = 0;
  let fannedOutTwice = 0;
  let expected = 0;
  for (const [eventId, { deliveryCount }] of ledger.acked) {
    const arrived = byEvent.get(eventId)?.size ?? 0;
    expected += deliveryCount;
    lost += Math.max(0, deliveryCount - arrived);
    if (arrived > deliveryCount) fannedOutTwice++;
  }
  const stored = new Set(events.rows.map((row) => idFromUuid('evt', row.id)));
  let missingEvents = 0;
  for (const eventId of ledger.acked.keys()) if (!stored.has(eventId)) missingEvents++;
  const unknownEvents = events.rows.filter(
    ({ id, hash }) => !ledger.acked.has(idFromUuid('evt', id)) && !ledger.unackedHashes.has(hash),
  ).length;
  const { finished = '0', twice = '0' } = endings.rows[0] ?? {};
  // Events of unacked publishes may have endings of their own: only what is missing counts then.
  const missing = Math.max(0, expected - Number(finished));
  return {
    acked: ledger.acked.size,
    receivedRequests: ledger.arrivals.length,
    lost,
    unexpected,
    duplicated,
    fannedOutTwice,
    unfinished: Number(unfinished.rows[0]?.n ?? 0),
    missingEvents,
    unknownEvents,
    misrecorded: missing + Number(twice),
  };
}
