// dispatch as real processes, for tests that kill them.
import { type ChildProcess, spawn } from 'node:child_process';
import { freePort } from './free-port.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;

/** What a test that failed half-way left running ends with the tests. */
const running = new Set<ChildProcess>();
const endAll = () => {
  for (const child of running) child.kill('SIGKILL');
};
process.once('exit', endAll);
// Test files run in processes that are ended by a signal, and then there is no 'exit'.
for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  process.once(signal, () => {
    endAll();
    process.kill(process.pid, signal);
  });
}

export type DispatchProcess = {
  readonly child: ChildProcess;
  readonly httpPort: number;
  readonly grpcPort: number;
  /** Everything it printed so far. */
  readonly output: () => string;
  /** Ends it at once and waits until it is gone. */
  readonly kill: (signal: NodeJS.Signals) => Promise<number | null>;
};

/** Starts `dispatch serve` and waits until it says that it is ready. */
export async function spawnDispatch(
  environment: Readonly<Record<string, string>>,
  args: readonly string[] = [],
  options: { readonly uid?: number; readonly gid?: number } = {},
  checkout: string | undefined = undefined,
): Promise<DispatchProcess> {
  const httpPort = Number(environment['DISPATCH_HTTP_PORT'] ?? (await freePort()));
  const grpcPort = Number(environment['DISPATCH_GRPC_PORT'] ?? (await freePort()));
  const [node, main] =
    checkout === undefined
      ? [process.execPath, MAIN]
      : [`${checkout}/node_modules/.bin/node`, `${checkout}/src/main.ts`];
  const child = spawn(node, [main, 'serve', ...args], {
    ...options,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      PATH: process.env['PATH'],
      DISPATCH_LOG_LEVEL: 'warn',
      ...environment,
      DISPATCH_HTTP_PORT: String(httpPort),
      DISPATCH_GRPC_PORT: String(grpcPort),
    },
  });
  let text = '';
  running.add(child);
  const ended = new Promise<number | null>((done) => child.once('exit', (code) => done(code)));
  void ended.then(() => running.delete(child));
  const ready = new Promise<void>((done, fail) => {
    const read = (chunk: Buffer) => {
      text += chunk.toString();
      if (text.includes('dispatch is ready')) done();
    };
    child.stdout.on('data', read);
    child.stderr.on('data', read);
    child.once('error', fail);
    void ended.then((code) => fail(new Error(`dispatch ended with ${code} before it was ready:\n${text}`)));
  });
  await ready;
  return {
    child,
    httpPort,
    grpcPort,
    output: () => text,
    kill: (signal) => {
      child.kill(signal);
      return ended;
    },
  };
}
