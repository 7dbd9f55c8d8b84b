// What the HTTP port answers beside RPCs: /healthz, /readyz and /metrics. A process without the api role serves nothing else.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { RpcServer, ServerAddress } from './grpc-server.ts';
import { openListener } from './listener.ts';

/** Pages that are not RPCs: path → answer. */
export type Page = () => Promise<{
  readonly status: number;
  readonly contentType: string;
  readonly body: string;
}>;
export type Pages = Readonly<Record<string, Page>>;

/** Answers with a page, or 404 and what there is instead. */
export function answerPage(
  pages: Pages,
  request: IncomingMessage,
  response: ServerResponse,
  instead: string,
): void {
  const page = pages[(request.url ?? '').split('?', 1)[0] ?? ''];
  const write = (status: number, contentType: string, body: string) => {
    response.writeHead(status, { 'content-type': contentType });
    response.end(body);
  };
  if (page === undefined) {
    write(404, 'text/plain', `there is nothing here; ${instead}\n`);
    return;
  }
  page().then(
    ({ status, contentType, body }) => write(status, contentType, body),
    () => write(500, 'text/plain', 'this page failed\n'),
  );
}

/** Listens for pages alone, over HTTP/1.1; rejects when the port is taken. */
export async function startPagesServer(pages: Pages, address: ServerAddress): Promise<RpcServer> {
  const instead = `this process has no api role; it has ${Object.keys(pages).join(', ')}`;
  const http = createServer(
    { headersTimeout: 15_000, requestTimeout: 15_000, keepAliveTimeout: 65_000 },
    (request, response) => answerPage(pages, request, response, instead),
  );
  // Node watches the deadlines of a server's connections from 'listening' on; this one never listens by itself.
  http.emit('listening');
  const listener = await openListener({
    ...address,
    alpn: ['http/1.1'],
    onSocket: (socket) => http.emit('connection', socket),
  });
  return {
    port: listener.port,
    close: async (graceMs) => {
      const timer = setTimeout(() => {
        for (const socket of listener.sockets) socket.destroy();
      }, graceMs);
      await listener.close(() => {
        http.close();
        http.closeIdleConnections();
        http.keepAliveTimeout = 1;
        for (const socket of listener.sockets) if (socket.bytesRead === 0) socket.destroy();
      });
      clearTimeout(timer);
    },
  };
}
