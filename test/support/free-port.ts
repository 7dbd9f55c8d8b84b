// Ports for servers that are stopped and started again at the same address.
import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';

/**
 * Below what Linux gives to outgoing connections (32768 and up): a port of that range may be the local end of somebody's
 * connection by the time a server that was killed comes back.
 */
const FIRST = 20_000;
const COUNT = 12_000;
const MAX_TRIES = 100;
/** One that is not in use yet is not given out twice. */
const given = new Set<number>();

/** A port of loopback that nothing listens on. */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < MAX_TRIES; tries++) {
    const port = FIRST + randomInt(COUNT);
    if (given.has(port) || !(await isFree(port))) continue;
    given.add(port);
    return port;
  }
  throw new Error(`none of ${MAX_TRIES} ports from ${FIRST} to ${FIRST + COUNT - 1} is free`);
}

function isFree(port: number): Promise<boolean> {
  return new Promise((done) => {
    const server = createServer();
    server.once('error', () => done(false));
    server.listen(port, '127.0.0.1', () => server.close(() => done(true)));
  });
}
