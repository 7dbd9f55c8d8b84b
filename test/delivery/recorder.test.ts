import { describe, expect, test } from 'vitest';
import { createRecorder } from '../../src/delivery/recorder.ts';
import type { TenantId } from '../../src/domain/ids.ts';
import type { DeliveryRecord } from '../../src/storage/records.ts';

const record = (): DeliveryRecord => ({
  tenantId: 'a' as TenantId,
  idBytes: Buffer.alloc(16),
  lease: Buffer.alloc(16),
  kind: 'release',
  delayMs: 0,
});

type Write = (records: readonly DeliveryRecord[], isConfirmed: boolean) => Promise<number>;

function setup(write: Write, leaseMs = 60_000, kept: (id: string) => boolean = () => true) {
  const lost: number[] = [];
  const errors: unknown[] = [];
  const recorder = createRecorder({
    write: async (records, isConfirmed) => {
      const count = await write(records, isConfirmed);
      const ids = records.map((r) => r.idBytes.toString('hex')).filter(kept);
      return { count, ids: new Set(isConfirmed ? ids : []) };
    },
    uuidOf: (bytes) => bytes.toString('hex'),
    leaseMs,
    isPassing: (e) => e instanceof Error && e.message === 'away',
    onWritten: () => {},
    onLeaseLost: (n) => lost.push(n),
    onError: (e) => errors.push(e),
  });
  return { recorder, lost, errors };
}

describe('the recorder', () => {
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
    for (let i = 0; i < 49; i++) recorder.add(record());
    expect(batches).toEqual([]);
    recorder.add(record());
    expect(batches).toEqual([50]);
    for (let i = 0; i < 199; i++) recorder.add(record());
    expect(batches).toEqual([50]);
    recorder.add(record());
    expect(batches).toEqual([50, 200]);
    const flushed = recorder.flush();
    for (const done of written) done();
    await flushed;
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
    const batches: boolean[] = [];
    const { recorder } = setup(
      async (records, isConfirmed) => {
        batches.push(isConfirmed);
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
    expect(batches).toEqual([true, false]);
  });

  test('says so of those that it had to drop, too', async () => {
    const { recorder } = setup(async () => Promise.reject(new Error('away')), 100);
    const heard: boolean[] = [];
    recorder.add(record(), (isWritten) => heard.push(isWritten));
    await recorder.flush();
    expect(heard).toEqual([false]);
  });
});
