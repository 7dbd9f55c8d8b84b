// Connections to endpoints, each vetted at the moment it is made: what a name meant when the subscription was created
// does not count. undici's own `connect.lookup` is never called for IP literals, so the whole connector is ours.
import { isIP, type OnReadOpts, type Socket } from 'node:net';
import { buildConnector } from 'undici';
import type { EndpointTls } from '../domain/credentials.ts';
import type { AddressGuard } from './guard.ts';
import type { Resolve } from './resolver.ts';

/** The target is not one that endpoints may have. Says nothing about what the name resolved to. */
export class BlockedAddressError extends Error {
  readonly code = 'DISPATCH_BLOCKED_ADDRESS';
}

/** How long a connection took to make, in µs. */
export type ConnectionTiming = {
  readonly dnsUs: number | undefined;
  readonly connectUs: number;
  readonly tlsUs: number | undefined;
};

const MADE = Symbol('dispatch.made');
type Made = { readonly [MADE]?: ConnectionTiming };

/** How a connection of ours was made; undefined for a socket of somebody else. */
export const timingOf = (socket: Socket): ConnectionTiming | undefined => (socket as Made)[MADE];

const CONNECT_TIMEOUT_MS = 5_000;
const MAX_ADDRESSES = 4;

/** Makes connectors, for one TLS identity each. */
export type Connect = (tls: EndpointTls | undefined) => buildConnector.connector;

/** Makes undici's `connect` option: resolve all addresses, refuse if any is denied, connect to one of them, check. */
export function createConnect(guard: AddressGuard, resolve: Resolve): Connect {
  const tcp = buildConnector({ timeout: CONNECT_TIMEOUT_MS });
  const tcpOfHttp = buildConnector({ timeout: CONNECT_TIMEOUT_MS, onread: READ_IN_PLACE });
  const plain = buildConnector({ timeout: CONNECT_TIMEOUT_MS, maxCachedSessions: 1_000, allowH2: false });

  return (identity) => {
    const tls = identity === undefined ? plain : withIdentity(identity);
    async function open(options: buildConnector.Options): Promise<Socket> {
      const host = options.hostname.startsWith('[') ? options.hostname.slice(1, -1) : options.hostname;
      const port = options.port || (options.protocol === 'https:' ? '443' : '80');
      const startedAt = performance.now();
      const isAddress = isIP(host) !== 0;
      const addresses = isAddress ? [host] : await resolve(host);
      const resolvedAt = performance.now();
      const allowed = addresses.every((address) => guard.allows(address) && guard.allowsPort(address, port));
      if (!allowed) throw blocked();
      const isHttp = options.protocol !== 'https:';
      const socket = await connectAny(isHttp ? tcpOfHttp : tcp, addresses, port);
      const { remoteAddress } = socket;
      if (remoteAddress === undefined || !guard.allows(remoteAddress)) {
        socket.destroy();
        throw remoteAddress === undefined ? gone() : blocked();
      }
      const connectedAt = performance.now();
      const made = (opened: Socket, tlsUs: number | undefined): Socket => {
        const dnsUs = isAddress ? undefined : us(resolvedAt - startedAt);
        const timing: ConnectionTiming = { dnsUs, connectUs: us(connectedAt - resolvedAt), tlsUs };
        return Object.assign(opened, { [MADE]: timing });
      };
      if (isHttp) return made(socket, undefined);
      // The name, not the address, is what the certificate must be for; a literal address sends no SNI.
      const servername = isAddress ? '' : host;
      const secure = await promised((done) =>
        tls({ ...options, hostname: host, servername, httpSocket: socket }, done),
      );
      return made(secure, us(performance.now() - connectedAt));
    }
    return (options, callback) => {
      open(options).then(
        (socket) => callback(null, socket),
        (error: Error) => callback(error, null),
      );
    };
  };
}

/**
 * What comes is read into one buffer for all connections, and copied out of it at once. Without it Node takes 64 KiB for
 * each read, to give most of them back: a response has 100 bytes. That `this` is the socket, and that a socket with
 * `onread` still streams what is pushed to it, is how Node works and not what it documents: tests of connections and of the
 * sender say so.
 */
const READ_IN_PLACE: OnReadOpts = {
  buffer: Buffer.allocUnsafeSlow(64 * 1024),
  callback(this: unknown, length: number, buffer: Uint8Array): boolean {
    const chunk = Buffer.allocUnsafe(length);
    chunk.set(length === buffer.length ? buffer : buffer.subarray(0, length));
    return (this as Socket).push(chunk);
  },
};

const us = (ms: number) => Math.round(ms * 1000);

/** A connector that shows a client certificate, or trusts other authorities; its sessions are its own. */
function withIdentity({ certificatePem, privateKeyPem, caPem }: EndpointTls): buildConnector.connector {
  return buildConnector({
    timeout: CONNECT_TIMEOUT_MS,
    allowH2: false,
    ...(certificatePem === '' ? {} : { cert: certificatePem, key: privateKeyPem }),
    ...(caPem === '' ? {} : { ca: caPem }),
  });
}

const blocked = () => new BlockedAddressError('the endpoint’s address is not allowed');

/** The peer reset the connection as soon as it was made: the kernel has no address for it any more. */
const gone = () => Object.assign(new Error('the connection was reset at once'), { code: 'ECONNRESET' });

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
