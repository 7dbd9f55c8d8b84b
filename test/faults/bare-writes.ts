// What a write and a read that do next to nothing take: the part of a figure that is the machine's.
import { setTimeout as wait } from 'node:timers/promises';
import pg from 'pg';
import { quantile } from './figures.ts';
import type { Figure } from './scenario.ts';

const EVERY_MS = 15;

export type BareWrites = {
  /** Ends them. How long each took, in ms. */
  readonly stop: () => Promise<readonly number[]>;
};

/**
 * Commits an update of one row and reads it, again and again, on a connection and in a table of its own: each a while
 * after the one before, or, `asCalled`, one each `EVERY_MS` whatever the ones before took, timed from when it was due. A
 * machine that stands still for a second then shows as often as in calls that come at a rate.
 */
export async function startBareWrites(ownerUrl: string, { asCalled = false } = {}): Promise<BareWrites> {
  const client = new pg.Client({ connectionString: ownerUrl });
  client.on('error', () => {}); // the query hears of it, too
  await client.connect();
  await client.query('DROP TABLE IF EXISTS bare_writes; CREATE TABLE bare_writes AS SELECT 0 AS n');
  const stopping = new AbortController();
  const took: number[] = [];
  async function write(dueAt: number): Promise<void> {
    await client.query({ name: 'write', text: 'UPDATE bare_writes SET n = n + 1' });
    await client.query({ name: 'read', text: 'SELECT n FROM bare_writes' });
    took.push(performance.now() - dueAt);
  }
  async function run(): Promise<void> {
    for (let dueAt = performance.now(); !stopping.signal.aborted; ) {
      await write(dueAt);
      if (asCalled) dueAt += EVERY_MS;
      await wait(Math.max(0, asCalled ? dueAt - performance.now() : EVERY_MS));
      if (!asCalled) dueAt = performance.now();
    }
  }
  const running = run().finally(() => client.end());
  running.catch(() => {}); // stop() throws it
  return {
    async stop() {
      stopping.abort();
      await running;
      return took;
    },
  };
}

/**
 * A 99th percentile in ms and its bound, which it must keep as it is at full size. Of a few seconds on a busy machine it is
 * the machine that is seen: there it must keep it with the part of bare writes taken off.
 */
export function p99Figures(
  name: string,
  p99Ms: number,
  bareMs: readonly number[],
  { atMost, isFullSize }: { readonly atMost: number; readonly isFullSize: boolean },
): Figure[] {
  const bareP99Ms = quantile(bareMs, 0.99);
  return [
    { name: `${name} p99, ms`, value: p99Ms, ...(isFullSize && { atMost }) },
    { name: 'bare write p99, ms', value: bareP99Ms },
    { name: 'more than it, ms', value: p99Ms - bareP99Ms, atMost },
  ];
}
