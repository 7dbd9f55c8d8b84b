import { create } from '@bufbuild/protobuf';
import { DurationSchema, TimestampSchema } from '@bufbuild/protobuf/wkt';
import { describe, expect, test } from 'vitest';
import { msOf, timeMs } from '../../src/rpc/times.ts';

const duration = (seconds: bigint, nanos: number) => create(DurationSchema, { seconds, nanos });
const time = (seconds: bigint, nanos: number) => create(TimestampSchema, { seconds, nanos });

describe('what binary messages can hold', () => {
  test.each([
    [15n, 500_000_000, 15_500],
    [0n, -1_000_000, -1],
    [-2n, -500_000_000, -2_500],
    [15n, -5, Number.NaN],
    [-15n, 5, Number.NaN],
    [5n, 1_000_000_000, Number.NaN],
    [0n, 2_147_483_647, Number.NaN],
  ])('a duration of %d s and %d ns is %d ms', (seconds, nanos, ms) => {
    expect(msOf(duration(seconds, nanos))).toBe(ms);
  });

  test.each([
    [1n, 5_000_000, 1_005],
    [1n, -5, Number.NaN],
    [1n, 1_000_000_000, Number.NaN],
  ])('a time of %d s and %d ns is %d ms', (seconds, nanos, ms) => {
    expect(timeMs(time(seconds, nanos))).toBe(ms);
  });

  test('no duration is none', () => {
    expect(msOf(undefined)).toBeNaN();
  });
});
