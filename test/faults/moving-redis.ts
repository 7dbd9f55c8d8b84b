// A Redis at an address that stays while the server behind it is stopped, killed, paused, flushed or replaced by its
// replica: real redis-server processes behind a proxy.
import { Redis } from 'ioredis';
import { eventually } from '../support/eventually.ts';
import { type RedisServer, startRedis, stop } from '../support/redis.ts';
import { startProxy } from './proxy.ts';
import type { World } from './world.ts';

/** Something that is done to it. */
export type RedisFault = {
  readonly name: 'stopped' | 'killed' | 'paused' | 'flushed' | 'failed over';
  /** Whether it is away between `begin` and `end`. */
  readonly isAway: boolean;
  readonly begin: () => Promise<void>;
  readonly end: () => Promise<void>;
};

/** Starts one; its servers end with the world. */
export async function startMovingRedis(
  world: World,
): Promise<{ readonly url: string; readonly faults: readonly RedisFault[] }> {
  let server = world.use(await start());
  const proxy = world.use(await startProxy(server.port));
  const nothing = async () => {};
  const restart = () => server.restart();
  return {
    url: `redis://127.0.0.1:${proxy.port}`,
    faults: [
      { name: 'stopped', isAway: true, begin: () => shutDown(server), end: restart },
      { name: 'killed', isAway: true, begin: () => stop(server.child), end: restart },
      {
        name: 'paused',
        isAway: true,
        begin: async () => void server.child?.kill('SIGSTOP'),
        end: async () => void server.child?.kill('SIGCONT'),
      },
      { name: 'flushed', isAway: false, begin: () => flush(server), end: nothing },
      {
        name: 'failed over',
        isAway: false,
        async begin() {
          const replica = world.use(await startReplica(server));
          await asking(replica, (redis) => redis.replicaof('NO', 'ONE'));
          await stop(server.child);
          proxy.target = { host: '127.0.0.1', port: replica.port };
          server = replica;
        },
        end: nothing,
      },
    ],
  };
}

async function asking(server: RedisServer, ask: (redis: Redis) => Promise<unknown>): Promise<void> {
  const redis = new Redis(server.url, { retryStrategy: () => null });
  redis.on('error', () => {}); // the call says the same
  try {
    await ask(redis);
  } finally {
    redis.disconnect();
  }
}

async function shutDown(server: RedisServer): Promise<void> {
  const gone = new Promise((done) => server.child!.once('exit', done));
  await asking(server, (redis) => redis.shutdown('NOSAVE')).catch(() => {}); // it ends without an answer
  await gone;
}

const flush = (server: RedisServer) =>
  asking(server, async (redis) => {
    await redis.flushall();
    await redis.script('FLUSH');
  });

/** A replica that has everything its master has. What it is it was told: started again, it is a server like any. */
async function startReplica(master: RedisServer): Promise<RedisServer> {
  const replica = await start();
  await asking(replica, async (redis) => {
    await redis.replicaof('127.0.0.1', master.port);
    await eventually(async () => {
      const info = await redis.info('replication');
      if (!info.includes('master_link_status:up')) throw new Error(info);
    });
  });
  return replica;
}

/** One that hands a replica its data at once: by default it would wait 5 s for others to join. */
const start = () => startRedis(['--repl-diskless-sync-delay', '0']);
