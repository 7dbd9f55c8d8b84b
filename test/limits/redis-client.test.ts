import { setTimeout as wait } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { expect, test } from 'vitest';
import { connectRedis, PROBE_EVERY_MS } from '../../src/limits/redis-client.ts';
import { eventually } from '../support/eventually.ts';
import { redisTarget, someRedis } from '../support/redis.ts';

const CUTS = 5;

test('a connection that is cut is away once and back once, whoever notices first', async () => {
  await using server = await someRedis();
  await using other = useOther(server.url);
  const heard: boolean[] = [];
  await using client = connectRedis(redisTarget(server.url), (isUp) => void heard.push(isUp));
  await client.ready(10_000);
  const one = client.script('one', 'return 1');
  for (let cut = 1; cut <= CUTS; cut++) {
    await other.redis.call('CLIENT', 'KILL', 'TYPE', 'normal');
    await eventually(async () => {
      const answer = await one('{test}', []).catch((error) => client.failed(error));
      expect(answer).toBeUndefined();
    });
    await client.ready(10_000);
    // Not for luck: timers of one length fire in the order in which they were begun, so the client's own fires before
    // this one, and what it asks is answered before what is asked after it.
    await wait(PROBE_EVERY_MS);
    await one('{test}', []).catch((error) => client.failed(error)); // late on a busy machine: away once more
    expect(heard.length).toBeGreaterThan(2 * cut);
    expect(heard).toEqual(heard.map((_, i) => i % 2 === 0));
  }
});

function useOther(url: string) {
  const redis = new Redis(url);
  return { redis, [Symbol.asyncDispose]: async () => redis.disconnect() };
}
