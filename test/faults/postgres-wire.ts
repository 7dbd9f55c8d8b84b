// What passes between a dispatch process and Postgres, as a proxy sees it: prepared statements by their names, and ends of
// answers. The driver writes a statement with its parameters in one go, and the proxy's reads are as large.

/** The URL of a database, through a proxy on loopback. */
export function throughPort(databaseUrl: string, port: number): string {
  const url = new URL(databaseUrl);
  url.hostname = '127.0.0.1';
  url.port = String(port);
  return url.toString();
}

/**
 * Whether a chunk that goes to Postgres executes a prepared statement whose name matches, all of it. In a Bind message
 * the name stands between the portal's, which is empty, and the parameters.
 */
export function executes(chunk: Buffer, name: RegExp): boolean {
  const text = chunk.toString('latin1');
  return [...text.matchAll(/\0([a-z][a-z-]*)\0/g)].some(([, found]) => name.test(found!));
}

/** The Sync message that ends a statement: without it nothing is committed. */
const SYNC_BYTES = 5;

/** A statement without its end: Postgres executes it, and rolls it back when the connection is lost. */
export const withoutSync = (chunk: Buffer): Buffer => chunk.subarray(0, -SYNC_BYTES);

/** ReadyForQuery, outside of a transaction. */
const READY = Buffer.from([0x5a, 0, 0, 0, 5, 0x49]);

/** Whether a chunk from Postgres ends an answer: what came before is committed. */
export const isEndOfAnswer = (chunk: Buffer): boolean => chunk.subarray(-READY.length).equals(READY);
