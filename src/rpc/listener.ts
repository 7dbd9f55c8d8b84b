// The sockets of both servers: plain or TLS, a bound on how many are open, none that stays silent, and certificates
// that are read again when their files change.
import { createHash, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer as createTcpServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer, type TLSSocket, type TlsOptions } from 'node:tls';
import type { TlsFiles } from '../config.ts';

export type ListenerOptions = {
  readonly host: string;
  readonly port: number;
  readonly maxConnections: number;
  readonly tls: TlsFiles | undefined;
  /** Protocols to agree on, the preferred one first. */
  readonly alpn: readonly string[];
  /** Takes a connection over; `protocol` is what TLS agreed on. */
  readonly onSocket: (socket: Socket, protocol: string | undefined) => void;
  /** New certificates could not be used (the old ones go on), or were taken. */
  readonly onReload: (error: unknown) => void;
};

export type Listener = {
  readonly port: number;
  readonly sockets: ReadonlySet<Socket>;
  /** Takes the connections that are made already, then no more, and calls `onStopped`; resolves when the last one is closed. */
  readonly close: (onStopped: () => void) => Promise<void>;
};

/** How long a connection may be silent before it says its first word. */
const SILENT_MS = 10_000;
const CHECK_FILES_MS = 2_000;
/** How many turns of the event loop that bring new connections go by before no more are taken. */
const MAX_CLOSING_TURNS = 1_000;

export async function openListener(options: ListenerOptions): Promise<Listener> {
  const sockets = new Set<Socket>();
  const accept = (socket: Socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    socket.on('error', () => socket.destroy());
    const timer = setTimeout(() => {
      if (socket.bytesRead === 0) socket.destroy();
    }, SILENT_MS);
    timer.unref();
    socket.once('close', () => clearTimeout(timer));
    options.onSocket(socket, (socket as TLSSocket).alpnProtocol || undefined);
  };
  let server: Server;
  let watcher: NodeJS.Timeout | undefined;
  if (options.tls === undefined) {
    server = createTcpServer({ noDelay: true }, accept);
  } else {
    const files = options.tls;
    const loaded = await loadTls(files);
    const tls = createTlsServer(
      { ...loaded.options, ALPNProtocols: [...options.alpn], handshakeTimeout: SILENT_MS, noDelay: true },
      accept,
    );
    server = tls;
    watcher = watch(files, loaded.digest, options.onReload, (fresh) => tls.setSecureContext(fresh));
  }
  server.maxConnections = options.maxConnections;
  let connectionCount = 0;
  server.on('connection', () => {
    connectionCount++;
  });
  const port = await new Promise<number>((done, fail) => {
    server.once('error', fail);
    server.listen(options.port, options.host, () => {
      const bound = server.address();
      done(typeof bound === 'object' && bound !== null ? bound.port : options.port);
    });
  });
  return {
    port,
    sockets,
    close: (onStopped) =>
      new Promise((done) => {
        clearInterval(watcher);
        // The kernel resets connections that it has made and nobody has taken yet, with the requests that lie in them.
        let seen = -1;
        const closeOnceTaken = (turnsLeft: number) => {
          if (seen === connectionCount || turnsLeft === 0) {
            server.close(() => done());
            onStopped();
            return;
          }
          seen = connectionCount;
          setImmediate(closeOnceTaken, turnsLeft - 1);
        };
        setImmediate(closeOnceTaken, MAX_CLOSING_TURNS);
      }),
  };
}

type Loaded = { readonly options: TlsOptions; readonly digest: string };

/** Reads the files; throws one line that names the variable if they do not belong together. */
async function loadTls({ certFile, keyFile, clientCaFile }: TlsFiles): Promise<Loaded> {
  const read = async (name: string, file: string) => {
    try {
      return await readFile(file);
    } catch (error) {
      throw new Error(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    }
  };
  const cert = await read('DISPATCH_TLS_CERT_FILE', certFile);
  const key = await read('DISPATCH_TLS_KEY_FILE', keyFile);
  const ca = clientCaFile === undefined ? undefined : await read('DISPATCH_TLS_CLIENT_CA_FILE', clientCaFile);
  try {
    new X509Certificate(cert);
  } catch {
    throw new Error(`DISPATCH_TLS_CERT_FILE: ${certFile} holds no certificate in PEM`);
  }
  const digest = createHash('sha256')
    .update(cert)
    .update(key)
    .update(ca ?? '')
    .digest('hex');
  const clients = ca === undefined ? {} : { ca, requestCert: true, rejectUnauthorized: true };
  return { options: { cert, key, minVersion: 'TLSv1.2', ...clients }, digest };
}

/** Looks at the files' contents and not at their times: links that are switched, as orchestrators do, count too. */
function watch(
  files: TlsFiles,
  first: string,
  onReload: (error: unknown) => void,
  use: (options: TlsOptions) => void,
): NodeJS.Timeout {
  let current = first;
  let failed = '';
  const look = async () => {
    try {
      const { options, digest } = await loadTls(files);
      if (digest === current) return;
      use(options); // throws when key and certificate do not match: they may be written one after the other
      current = digest;
      failed = '';
      onReload(undefined);
    } catch (error) {
      const message = String(error);
      if (message !== failed) onReload(error);
      failed = message;
    }
  };
  const timer = setInterval(() => void look(), CHECK_FILES_MS);
  timer.unref();
  return timer;
}
