// The cheapest HTTP/1.1 client: whole requests that were encoded once, one at a time on each connection.
import { connect } from 'node:net';

/** A POST that lies ready to be written. */
export function rawPost(path: string, headers: Readonly<Record<string, string>>, body: Buffer): Buffer {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  const head = `POST ${path} HTTP/1.1\r\nhost: bench\r\n${lines.join('')}content-length: ${body.length}\r\n\r\n`;
  return Buffer.concat([Buffer.from(head), body]);
}

/** A connection that answers are read from by their content-length. Rejects unless the status is 200. */
export function rawConnection(port: number): Promise<(request: Buffer) => Promise<void>> {
  return new Promise((ready, failed) => {
    const socket = connect({ host: '127.0.0.1', port, noDelay: true });
    let pending: Buffer = Buffer.alloc(0);
    let done: (() => void) | undefined;
    let fail: (error: Error) => void = failed;
    socket.on('error', (error) => fail(error));
    socket.on('close', () => fail(new Error('the server closed a connection')));
    socket.on('data', (chunk) => {
      pending = pending.length === 0 ? chunk : Buffer.concat([pending, chunk]);
      const end = pending.indexOf('\r\n\r\n');
      if (end < 0) return;
      const head = pending.toString('latin1', 0, end);
      const length = Number(/content-length: (\d+)/i.exec(head)?.[1]);
      if (!(length >= 0)) fail(new Error(`an answer without a content-length: ${head}`));
      if (pending.length < end + 4 + length) return;
      const answer = pending.toString('utf8', end + 4, end + 4 + length);
      pending = pending.subarray(end + 4 + length);
      if (head.startsWith('HTTP/1.1 200')) done?.();
      else fail(new Error(`${head.split('\r\n')[0]}: ${answer}`));
    });
    socket.once('connect', () =>
      ready(
        (request) =>
          new Promise((resolve, reject) => {
            done = resolve;
            fail = reject;
            socket.write(request);
          }),
      ),
    );
  });
}
