// What a process that runs holds on to: its resident memory without the garbage, which V8 leaves lying about as long as the
// machine has memory, some hundred MB of it.
import { readFile } from 'node:fs/promises';
import type { DispatchProcess } from '../support/processes.ts';

/** Settings of a process whose memory is asked for. */
export const INSPECTED = { NODE_OPTIONS: '--inspect=127.0.0.1:0' };

/** MB that a process started with `INSPECTED` keeps once its garbage is collected. */
export async function keptMb({ child, output }: DispatchProcess): Promise<number> {
  const url = /Debugger listening on (ws:\S+)/.exec(output())?.[1];
  if (url === undefined) throw new Error('the process was not started with INSPECTED');
  await collectGarbage(url);
  const status = await readFile(`/proc/${child.pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1] ?? Number.NaN) / 1024;
}

/** By the Chrome DevTools protocol. */
async function collectGarbage(url: string): Promise<void> {
  const socket = new WebSocket(url);
  try {
    await new Promise((done, fail) => {
      socket.onerror = () => fail(new Error(`no inspector at ${url}`));
      socket.onopen = () => socket.send(JSON.stringify({ id: 1, method: 'HeapProfiler.collectGarbage' }));
      socket.onmessage = ({ data }) => {
        const answer = JSON.parse(String(data));
        if (answer.error !== undefined) fail(new Error(answer.error.message));
        else if (answer.id === 1) done(undefined);
      };
    });
  } finally {
    socket.close();
  }
}
