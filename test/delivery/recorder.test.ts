import { afterEach, describe, expect, test, vi } from 'vitest';
import { createRecorder } from '../../src/delivery/recorder.ts';
import type { TenantId } from '../../src/domain/ids.ts';
import type { Commit, DeliveryRecord } from '../../src/storage/records.ts';

const record = (): DeliveryRecord => ({
  tenantId: 'a' as TenantId,
  idBytes: Buffer.alloc(16),
  lease: Buffer.alloc(16),
  kind: 'release',
  delayMs: 0,
});

type Write = (records: readonly DeliveryRecord[], commit: Commit) => Promise<number>;

const now = () => performance.now();

function setup(write: Write, leaseMs = 60_000, kept: (id: string) => boolean = () => true, clock = now) {
  const lost: number[] = [];
  const errors: unknown[] = [];
  const recorder = createRecorder({
    write: async (records, commit) => {
      const count = await write(records, commit);
      const ids = records.map((r) => r.idBytes.toString('hex')).filter(kept);
      return { count, ids: new Set(commit === 'confirmed' ? ids : []) };
    },
    uuidOf: (bytes) => bytes.toString('hex'),
    leaseMs,
    now: clock,
    isPassing: (e) => e instanceof Error && e.message === 'away',
    onWritten: () => {},
    onLeaseLost: (n) => lost.push(n),
    onError: (e) => errors.push(e),
  });
  return { recorder, lost, errors };
}

describe('the recorder', () => {
  afterEach(() => void vi.useRealTimers());

  test('writes everything once, in batches', async () => {
    const batches: number[] = [];
    const { recorder, lost } = setup(async (records) => {
      batches.push(records.length);
      return records.length;
    });
    for (let i = 0; i < 1_234; i++) recorder.add(record());
    await recorder.flush();
    expect(batches.reduce((a, b) => a + b)).toBe(1_234);
    expect(Math.max(...batches)).toBeLessThanOrEqual(200);
    expect([recorder.backlog(), lost]).toEqual([0, []]);
  });

  test('writes what is enough at once, and gathers more while that is written', async () => {
    const batches: number[] = [];
    const written: (() => void)[] = [];
    const { recorder } = setup((records) => {
      batches.push(records.length);
      return new Promise((done) => written.push(() => done(records.length)));
    });
    for (let i = 0; i < 99; i++) recorder.add(record());
    expect(batches).toEqual([]);
    recorder.add(record());
    expect(batches).toEqual([100]);
    for (let i = 0; i < 199; i++) recorder.add(record());
    expect(batches).toEqual([100]);
    recorder.add(record());
    expect(batches).toEqual([100, 200]);
    const flushed = recorder.flush();
    for (const done of written) done();
    await flushed;
  });

  test('writes a result that comes alone at once, and what follows it with the first that comes ten ms later, or in ten ms', async () => {
    vi.useFakeTimers();
    const startedAtMs = performance.now();
    const batches: [atMs: number, count: number][] = [];
    const { recorder } = setup(async (records) => {
      batches.push([performance.now() - startedAtMs, records.length]);
      return records.length;
    });
    const written = () => batches.splice(0);
    const add = async (count: number, passMs: number) => {
      for (let i = 0; i < count; i++) recorder.add(record());
      await vi.advanceTimersByTimeAsync(passMs);
    };
    await add(2, 4); // of one turn of the event loop
    expect(written()).toEqual([[1, 2]]);
    await add(1, 3);
    await add(1, 6); // until 13: the one at 4 waits until 14, if none comes
    expect(written()).toEqual([]);
    await add(1, 1); // but one does
    expect(written()).toEqual([[14, 3]]);
    await add(1, 4); // at 14, and alone: until 24
    await add(1, 5);
    expect(written()).toEqual([]);
    await add(0, 1);
    expect(written()).toEqual([[24, 2]]);
    await add(0, 5);
    await add(1, 5);
    expect(written()).toEqual([]);
    await add(1, 1); // at 34, ten after the last
    expect(written()).toEqual([[35, 2]]);
    // One that was enough leaves no timer of before: what is left waits as long as after any other.
    await add(1, 8);
    await add(100, 0);
    expect(written()).toEqual([[43, 100]]);
    await add(0, 9);
    expect(written()).toEqual([]);
    await add(0, 1);
    expect(written()).toEqual([[53, 1]]);
    await recorder.flush();
  });

  test('waits for the disk every 50 ms, and always for what something waits for', async () => {
    const commits: Commit[] = [];
    let nowMs = 0;
    const { recorder } = setup(
      async (records, commit) => {
        commits.push(commit);
        return records.length;
      },
      undefined,
      undefined,
      () => nowMs,
    );
    for (nowMs of [1_000, 1_001, 1_049, 1_050, 1_099, 5_000]) {
      recorder.add(record());
      await recorder.flush();
    }
    expect(commits).toEqual(['durable', 'soon', 'soon', 'durable', 'soon', 'durable']);
    recorder.add(record(), () => {});
    await recorder.flush();
    expect(commits.slice(6)).toEqual(['confirmed']);
  });

  test('tries a batch again that the database did not take', async () => {
    let calls = 0;
    const { recorder, lost, errors } = setup(async (records) => {
      if (++calls < 3) throw new Error('away');
      return records.length;
    });
    recorder.add(record());
    await recorder.flush();
    expect([calls, errors.length, lost, recorder.backlog()]).toEqual([3, 2, [], 0]);
  });

  test('drops results when their leases must have run out', async () => {
    const { recorder, lost } = setup(async () => Promise.reject(new Error('away')), 100);
    recorder.add(record());
    await recorder.flush();
    expect([lost, recorder.backlog()]).toEqual([[1], 0]);
  });

  test('finds the one row that spoils a batch, and writes the others', async () => {
    const bad = record();
    const { recorder, lost, errors } = setup(async (records) => {
      if (records.includes(bad)) throw new Error('out of range');
      return records.length;
    });
    for (let i = 0; i < 99; i++) recorder.add(i === 42 ? bad : record());
    await recorder.flush();
    expect([lost, errors.length, recorder.backlog()]).toEqual([[1], 1, 0]);
  });

  test('counts rows that were taken over', async () => {
    const { recorder, lost } = setup(async (records) => records.length - 1);
    recorder.add(record());
    recorder.add(record());
    await recorder.flush();
    expect(lost).toEqual([1]);
  });

  test('says of results that something waits for whether they were written under their lease', async () => {
    const numbered = (n: number) => ({ ...record(), idBytes: Buffer.alloc(16, n) });
    const batches: Commit[] = [];
    const { recorder } = setup(
      async (records, commit) => {
        batches.push(commit);
        return records.length;
      },
      60_000,
      (id) => !id.startsWith('02'),
    );
    const heard: string[] = [];
    for (const n of [1, 2, 3]) recorder.add(numbered(n), (isWritten) => heard.push(`${n} ${isWritten}`));
    recorder.add(numbered(4));
    await recorder.flush();
    expect(heard).toEqual(['1 true', '2 false', '3 true']);
    expect(batches).toEqual(['confirmed', 'durable']);
  });

  test('says so of those that it had to drop, too', async () => {
    const { recorder } = setup(async () => Promise.reject(new Error('away')), 100);
    const heard: boolean[] = [];
    recorder.add(record(), (isWritten) => heard.push(isWritten));
    await recorder.flush();
    expect(heard).toEqual([false]);
  });
});
