// The endpoint of fault runs: keeps of each request what the ledger needs, and answers as the scenario says.
import { createServer, type IncomingMessage } from 'node:http';
import { type AddressInfo, createServer as createTcpServer, type Server } from 'node:net';
import { type Arrival, arrivalOf } from '../support/ledger.ts';
import type { World } from './world.ts';

/** A request, before it is answered. */
export type Request = Arrival & { readonly attempt: number; readonly path: string };

/** A status, with headers if they matter; undefined: none is given. */
export type Answer =
  | number
  | { readonly status: number; readonly headers: Record<string, string> }
  | undefined;

export type Endpoint = AsyncDisposable & {
  readonly url: string;
  readonly port: number;
  /** May change at any time. */
  answer: (request: Request) => Answer | Promise<Answer>;
  /** Called once the answer has left. */
  answered: (request: Request) => void;
};

/**
 * Starts one on loopback that answers 204 and writes down every request that it answers with 2xx or not at all. `listenOn`
 * is a port that was nobody's so far; 0: any.
 */
export async function startEndpoint(world: World, listenOn = 0): Promise<Endpoint> {
  const server = createServer({ keepAliveTimeout: 60_000 }, (message: IncomingMessage, response) => {
    const chunks: Buffer[] = [];
    message.on('data', (chunk) => chunks.push(chunk));
    message.on('error', () => {}); // its sender was killed
    message.on('end', async () => {
      const arrival = arrivalOf({ headers: message.headers, body: Buffer.concat(chunks) });
      const attempt = Number(message.headers['dispatch-attempt']);
      const request = { ...arrival, attempt, path: message.url ?? '' };
      const answer = await endpoint.answer(request);
      const { status, headers } = typeof answer === 'object' ? answer : { status: answer, headers: {} };
      if (status === undefined || status < 300) {
        world.ledger.arrivals.push(arrival);
        world.timeline.received();
      }
      if (status === undefined) return;
      response.on('finish', () => endpoint.answered(request));
      response.writeHead(status, headers).end();
    });
  });
  await listen(server, listenOn);
  const { port } = server.address() as AddressInfo;
  const doors = Array.from({ length: DOORS - 1 }, () =>
    createTcpServer((socket) => void server.emit('connection', socket)),
  );
  await Promise.all(doors.map((door) => listen(door, port)));
  const endpoint: Endpoint = {
    url: `http://127.0.0.1:${port}/hook`,
    port,
    answer: () => 204,
    answered: () => {},
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await Promise.all([server, ...doors].map((door) => new Promise((done) => door.close(done))));
    },
  };
  return world.use(endpoint);
}

/**
 * Node accepts one connection in a turn of the event loop. A process that opens 200 at once would wait for seconds for this
 * one, which has its turns of 20 ms when the machine is busy: that many sockets listen at the port.
 */
const DOORS = 16;

const listen = (server: Server, port: number) =>
  new Promise<void>((done) => server.listen({ port, host: '127.0.0.1', reusePort: true }, done));
