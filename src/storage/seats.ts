// Seats on a host, for its workers: advisory locks of the session that listens, so they end with it, however the process
// ends. Processes of one host agree on them through the database, as those in containers share nothing else.
import pg from 'pg';

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

  /** Without an answer of the database's a seat may be taken all the same: it ends with its session, the next begins without. */
  function failed(client: pg.Client, error: unknown): void {
    onError(error);
    if (!(error instanceof pg.DatabaseError)) client.end().catch(() => {});
  }

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
        failed(client, error);
        return undefined;
      }
    },
    async giveBack() {
      const client = heldBy;
      heldBy = undefined;
      await client?.query('SELECT pg_advisory_unlock_all()').catch((error) => failed(client, error));
    },
  };
}
