// Finds a real Redis for tests: DISPATCH_TEST_REDIS_URL, a redis-server on PATH, Docker through testcontainers,
// Debian's package as root. Failing all that, the test fails and says what to do. With a binary, servers of its own
// are started, so that tests can stop, pause and kill them.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { parseConfig, type RedisTarget } from '../../src/config.ts';
import { eventually } from './eventually.ts';
import { freePort } from './free-port.ts';

/** A redis-server process. */
export type RedisServer = AsyncDisposable & {
  readonly port: number;
  readonly url: string;
  /** Undefined when it is not ours to signal. */
  readonly child: ChildProcess | undefined;
  /** Starts it again on the same port, empty, after it was killed. */
  readonly restart: () => Promise<void>;
};

/** The binary, installed if need be; undefined when only Docker or a given server is there. */
function binary(): string {
  try {
    return execFileSync('sh', ['-c', 'command -v redis-server']).toString().trim();
  } catch {
    if (process.getuid?.() !== 0) throw new Error('redis-server is not on PATH and installing it needs root');
    execFileSync('apt-get', ['update', '-qq'], { stdio: 'ignore' });
    execFileSync('apt-get', ['install', '-y', '-qq', 'redis-server'], { stdio: 'ignore' });
    return execFileSync('sh', ['-c', 'command -v redis-server']).toString().trim();
  }
}

/** A Redis for tests that only use it: the given one, or one of our own. */
export async function someRedis(): Promise<Pick<RedisServer, 'url'> & AsyncDisposable> {
  const given = process.env['DISPATCH_TEST_REDIS_URL'];
  if (given !== undefined && given !== '') return { url: given, [Symbol.asyncDispose]: async () => {} };
  try {
    return await startRedis();
  } catch (error) {
    return await fromDocker(error);
  }
}

async function fromDocker(before: unknown): Promise<Pick<RedisServer, 'url'> & AsyncDisposable> {
  try {
    const { GenericContainer } = await import('testcontainers');
    const container = await new GenericContainer('redis:7').withExposedPorts(6379).start();
    return {
      url: `redis://${container.getHost()}:${container.getMappedPort(6379)}`,
      [Symbol.asyncDispose]: async () => void (await container.stop()),
    };
  } catch (error) {
    throw new Error(
      `no Redis for the tests: put redis-server on PATH or set DISPATCH_TEST_REDIS_URL (${before}; Docker: ${error})`,
    );
  }
}

/** Starts a redis-server on a free port of loopback, without persistence. */
export async function startRedis(extra: readonly string[] = []): Promise<RedisServer> {
  const program = binary();
  const port = await freePort();
  const dir = mkdtempSync(join(tmpdir(), 'dispatch-redis-'));
  let child: ChildProcess | undefined;
  const start = async () => {
    child = spawn(
      program,
      [
        '--port',
        String(port),
        '--bind',
        '127.0.0.1',
        '--save',
        '',
        '--appendonly',
        'no',
        '--dir',
        dir,
        ...extra,
      ],
      { stdio: 'ignore' },
    );
    await ping(port);
  };
  await start();
  return {
    port,
    url: `redis://127.0.0.1:${port}`,
    get child() {
      return child;
    },
    restart: start,
    async [Symbol.asyncDispose]() {
      await stop(child);
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

export async function stop(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((done) => child.once('exit', done));
  child.kill('SIGCONT');
  child.kill('SIGKILL');
  await gone;
}

async function ping(port: number): Promise<void> {
  await eventually(async () => {
    const redis = new Redis({ host: '127.0.0.1', port, lazyConnect: true, retryStrategy: () => null });
    redis.on('error', () => {});
    try {
      await redis.connect();
      await redis.ping();
    } finally {
      redis.disconnect();
    }
  });
}

/** Three masters that share the slots. */
export async function startRedisCluster(): Promise<AsyncDisposable & { readonly url: string }> {
  await using stack = new AsyncDisposableStack();
  const nodes: RedisServer[] = [];
  // By itself a node talks to the others on its port + 10,000, which lies among those of outgoing connections.
  const busPorts = [await freePort(), await freePort(), await freePort()];
  for (const [i, busPort] of busPorts.entries()) {
    const flags = ['--cluster-enabled', 'yes', '--cluster-config-file', `nodes-${i}.conf`];
    const timing = ['--cluster-node-timeout', '2000', '--cluster-port', String(busPort)];
    nodes.push(stack.use(await startRedis([...flags, ...timing])));
  }
  const clients = nodes.map((node) => new Redis(node.url));
  try {
    const last = 16_383;
    for (const [i, client] of clients.entries()) {
      const from = Math.ceil((i * (last + 1)) / 3);
      const to = Math.ceil(((i + 1) * (last + 1)) / 3) - 1;
      await client.call('CLUSTER', 'ADDSLOTSRANGE', from, to);
      if (i > 0) await client.call('CLUSTER', 'MEET', '127.0.0.1', nodes[0]!.port, busPorts[0]!);
    }
    for (const client of clients) {
      await eventually(async () => {
        const info = String(await client.call('CLUSTER', 'INFO'));
        if (!info.includes('cluster_state:ok') || !info.includes('cluster_known_nodes:3'))
          throw new Error(info);
      });
    }
  } finally {
    for (const client of clients) client.disconnect();
  }
  const owned = stack.move();
  return {
    url: nodes.map((node) => node.url).join(','),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** The target of a URL, as the configuration parses it. */
export function redisTarget(url: string): RedisTarget {
  const result = parseConfig({ DISPATCH_REDIS_URL: url }, '/');
  if (!result.ok || result.config.redis === undefined) throw new Error('not a Redis URL');
  return result.config.redis;
}
