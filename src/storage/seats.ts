// Seats on a host, for its workers: advisory locks of the session that listens, so they end with it, however the process
// ends. Processes of one host agree on them through the database, as those in containers share nothing else.
import type pg from 'pg';

export type Seats = {
  readonly holds: () => boolean;
  /** False: all seats of the host are taken. Undefined: nobody could be asked. */
  readonly take: () => Promise<boolean | undefined>;
  readonly giveBack: () => Promise<void>;
};

/** `session`: the one that listens now. A host is known by an id that no other has, and has `count` seats. */
export function createSeats(
  session: () => pg.Client | undefined,
  hostId: string,
  count: number,
  onError: (error: unknown) => void,
): Seats {
  let heldBy: pg.Client | undefined;
  return {
    holds: () => heldBy !== undefined && heldBy === session(),
    async take() {
      const client = session();
      if (client === undefined) return undefined;
      try {
        const { rows } = await client.query(
          `SELECT seat FROM generate_series(1, $2) AS seat
           WHERE pg_try_advisory_lock(hashtext('dispatch.seat ' || $1), seat) LIMIT 1`,
          [hostId, count],
        );
        if (rows.length > 0) heldBy = client;
        return rows.length > 0;
      } catch (error) {
        onError(error);
        // It may have taken one all the same: a seat ends with its session, and the next session begins without.
        client.end().catch(() => {});
        return undefined;
      }
    },
    async giveBack() {
      const client = heldBy;
      heldBy = undefined;
      await client?.query('SELECT pg_advisory_unlock_all()').catch((error) => {
        onError(error);
        client.end().catch(() => {});
      });
    },
  };
}
