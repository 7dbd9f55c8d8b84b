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

function setup(write: (records: readonly DeliveryRecord[]) => Promise<number>, leaseMs = 60_000) {
  const lost: number[] = [];
  const errors: unknown[] = [];
  const recorder = createRecorder({
    write,
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
    expect(Math.max(...batches)).toBeLessThanOrEqual(500);
    expect([recorder.backlog(), lost]).toEqual([0, []]);
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
});
