// The cheapest honest receiver: a raw HTTP/1.1 server in a process of its own that reads whole requests and answers
// 204. Prints its port. `GET /count` tells how many requests it has had; `GET /times` (with --times) the arrival time
// of each webhook-id since it was last asked, in ms of machineMs(). `--delay=100` answers so many ms after the request, and a
// request to /hang is never answered (nor counted).
import { createServer } from 'node:net';
import { machineMs } from './clock.ts';

const ANSWER = Buffer.from('HTTP/1.1 204 No Content\r\n\r\n');
const withTimes = process.argv.includes('--times');
const delayMs = Number(process.argv.find((arg) => arg.startsWith('--delay='))?.slice(8) ?? 0);
const times: string[] = [];
let count = 0;

const NOTHING = Buffer.alloc(0);

const server = createServer({ noDelay: true }, (socket) => {
  let pending: Buffer = NOTHING;
  let head = '';
  let rest = 0; // of its body, still on its way: it is counted, not kept
  socket.on('error', () => socket.destroy());

  function received(): void {
    if (head.startsWith('POST /hang')) return;
    count++;
    if (withTimes) {
      const id = /webhook-id: (\S+)/i.exec(head)?.[1] ?? '';
      times.push(`${id} ${machineMs().toFixed(3)}`);
    }
    if (delayMs === 0) socket.write(ANSWER);
    else setTimeout(() => socket.write(ANSWER), delayMs);
  }

  socket.on('data', (chunk) => {
    if (rest > chunk.length) {
      rest -= chunk.length;
      return;
    }
    if (rest > 0) received();
    const more = chunk.subarray(rest);
    rest = 0;
    pending = pending.length === 0 ? more : Buffer.concat([pending, more]);
    for (;;) {
      const end = pending.indexOf('\r\n\r\n');
      if (end < 0) return;
      head = pending.toString('latin1', 0, end);
      pending = pending.subarray(end + 4);
      if (head.startsWith('GET ')) {
        const body = head.startsWith('GET /times') ? times.splice(0).join('\n') : String(count);
        socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
        continue;
      }
      const length = Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0);
      if (pending.length < length) {
        rest = length - pending.length;
        pending = NOTHING;
        return;
      }
      pending = pending.subarray(length);
      received();
    }
  });
});
server.listen(0, '127.0.0.1', () => {
  const address = server.address();
  process.stdout.write(`${typeof address === 'object' && address !== null ? address.port : 0}\n`);
});
process.on('disconnect', () => process.exit(0));
