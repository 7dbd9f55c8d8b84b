// Connections to endpoints, each vetted at the moment it is made: what a name meant when the subscription was created
// does not count. undici's own `connect.lookup` is never called for IP literals, so the whole connector is ours.
import { lookup } from 'node:dns';
import { isIP, type Socket } from 'node:net';
import { buildConnector } from 'undici';
import type { AddressGuard } from './guard.ts';

/** The target is not one that endpoints may have. Says nothing about what the name resolved to. */
export class BlockedAddressError extends Error {
  readonly code = 'DISPATCH_BLOCKED_ADDRESS';
}

const RESOLVE_TIMEOUT_MS = 2_000;
const CONNECT_TIMEOUT_MS = 5_000;
const MAX_ADDRESSES = 4;

/** Makes undici's `connect` option: resolve all addresses, refuse if any is denied, connect to one of them, check. */
export function createConnector(guard: AddressGuard): buildConnector.connector {
  const tcp = buildConnector({ timeout: CONNECT_TIMEOUT_MS });
  const tls = buildConnector({ timeout: CONNECT_TIMEOUT_MS, maxCachedSessions: 1_000 });

  async function open(options: buildConnector.Options): Promise<Socket> {
    const host = options.hostname.startsWith('[') ? options.hostname.slice(1, -1) : options.hostname;
    const addresses = isIP(host) !== 0 ? [host] : await resolve(host);
    if (!addresses.every((address) => guard.allows(address))) throw blocked();
    const port = options.port || (options.protocol === 'https:' ? '443' : '80');
    const socket = await connectAny(tcp, addresses, port);
    if (!guard.allows(socket.remoteAddress ?? '')) {
      socket.destroy();
      throw blocked();
    }
    if (options.protocol !== 'https:') return socket;
    // The name, not the address, is what the certificate must be for; a literal address sends no SNI.
    const servername = isIP(host) === 0 ? host : '';
    return promised((done) => tls({ ...options, hostname: host, servername, httpSocket: socket }, done));
  }

  return (options, callback) => {
    open(options).then(
      (socket) => callback(null, socket),
      (error: Error) => callback(error, null),
    );
  };
}

const blocked = () => new BlockedAddressError('the endpoint’s address is not allowed');

function promised(start: (done: buildConnector.Callback) => void): Promise<Socket> {
  return new Promise((resolve, reject) => {
    start((error, socket) => (error === null ? resolve(socket) : reject(error)));
  });
}

async function connectAny(
  tcp: buildConnector.connector,
  addresses: readonly string[],
  port: string,
): Promise<Socket> {
  let last: unknown;
  for (const hostname of addresses.slice(0, MAX_ADDRESSES)) {
    try {
      return await promised((done) => tcp({ hostname, port, protocol: 'http:' }, done));
    } catch (error) {
      last = error;
    }
  }
  throw last;
}

function resolve(host: string): Promise<string[]> {
  return new Promise((done, fail) => {
    const timer = setTimeout(() => {
      fail(Object.assign(new Error('the name was not resolved in time'), { code: 'EAI_AGAIN' }));
    }, RESOLVE_TIMEOUT_MS);
    lookup(host, { all: true }, (error, found) => {
      clearTimeout(timer);
      if (error !== null) fail(error);
      else done(found.map((f) => f.address));
    });
  });
}
