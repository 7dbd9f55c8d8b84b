#!/usr/bin/env node
// argv → configuration → compose → run → signals.
import './heap.ts';
import cluster from 'node:cluster';
import { readFileSync } from 'node:fs';
import { enableCompileCache, flushCompileCache } from 'node:module';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { Config } from './config.ts';
import type { Installed } from './install.ts';
import type { Ready } from './processes.ts';
import type { Ports } from './quick-start.ts';

// Node keeps what it compiles, and the next start takes half the CPU: that is why the rest is loaded after this. It lies
// beside the code that it was made of, where whoever could change it could change that as well; where nothing can be
// written a start takes as long as the first.
enableCompileCache(fileURLToPath(new URL('../node_modules/.cache/dispatch', import.meta.url)));
const { startInstance } = await import('./compose/instance.ts');
const { readConfig } = await import('./config.ts');
const { install, installedBefore } = await import('./install.ts');
const { runProcesses } = await import('./processes.ts');
const { quickStart } = await import('./quick-start.ts');
const { createLog } = await import('./telemetry/logger.ts');

const USAGE = `dispatch ${version()}: multi-tenant webhook dispatch

  dispatch serve [--roles=api,worker,maintenance] [--processes=N]
  dispatch migrate

Settings are DISPATCH_* environment variables; the README lists them.`;

function version(): string {
  return (
    JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }
  ).version;
}

function fail(lines: readonly string[]): never {
  for (const line of lines) process.stderr.write(`${line}\n`);
  process.exit(1);
}

type Arguments = { readonly command: string; readonly config: Config; readonly processes: number };

function readArguments(): Arguments {
  const { values, positionals } = (() => {
    try {
      return parseArgs({
        allowPositionals: true,
        options: {
          roles: { type: 'string' },
          processes: { type: 'string' },
          help: { type: 'boolean', short: 'h' },
        },
      });
    } catch (error) {
      return fail([error instanceof Error ? error.message : String(error), '', USAGE]);
    }
  })();
  const command = positionals[0] ?? '';
  if (values.help === true) {
    process.stdout.write(`${USAGE}\n`);
    process.exit(0);
  }
  if (positionals.length !== 1 || !['serve', 'migrate'].includes(command)) fail([USAGE]);
  const processes = Number(values.processes ?? '1');
  if (!Number.isInteger(processes) || processes < 1 || processes > 64) {
    fail([`--processes is "${values.processes}"; it must be a whole number from 1 to 64`]);
  }
  const result = readConfig(
    values.roles === undefined ? {} : { DISPATCH_ROLES: values.roles },
    process.cwd(),
  );
  if (!result.ok) fail(result.problems);
  return { command, config: result.config, processes };
}

/** Runs this process's roles until it is told to stop, then drains. */
async function serve(config: Config, installed: Installed, greet: (ports: Ports) => void): Promise<void> {
  const log = createLog(config.logLevel);
  const stopped = new Promise<string>((done) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => done(signal));
    process.once('disconnect', () => done('disconnect'));
  });
  process.on('unhandledRejection', (error) => log.error(error, 'a rejection was not handled'));
  await using instance = await startInstance({ config, ...installed, version: version(), log });
  greet({ httpPort: instance.httpPort, grpcPort: instance.grpcPort });
  flushCompileCache();
  const signal = await stopped;
  log.info({ signal }, 'stopping: finishing what is in hand');
}

async function main(): Promise<void> {
  const { command, config, processes } = readArguments();
  if (cluster.isWorker) {
    await serve(config, installedBefore(config), (ports) =>
      process.send?.({ kind: 'ready', ports } satisfies Ready),
    );
    return;
  }
  await using installed = await install(config);
  const greet = (ports: Ports) => process.stdout.write(quickStart(config, installed, ports));
  if (command === 'migrate') {
    const { applied, partitionsMade } = installed.migration;
    process.stdout.write(`applied ${applied.length} migrations, made ${partitionsMade} partitions\n`);
  } else if (processes === 1) {
    await serve(config, installed, greet);
  } else {
    await runProcesses(processes, installed, greet);
  }
}

try {
  await main();
  process.exit(0); // what is still open (a worker's IPC channel, an idle socket) is nobody's any more
} catch (error) {
  fail([`dispatch: ${startProblem(error)}`]);
}

/** One line about why the start failed. */
function startProblem(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code, port } = error as NodeJS.ErrnoException & { readonly port?: number };
  if (code === 'EADDRINUSE' && port !== undefined) {
    return `port ${port} is in use; stop what uses it, or set DISPATCH_HTTP_PORT or DISPATCH_GRPC_PORT`;
  }
  if (code === 'ECONNREFUSED')
    return `the database at DISPATCH_DATABASE_URL refused the connection (${error.message})`;
  return error.message;
}
