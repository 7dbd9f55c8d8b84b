// google.protobuf's times and durations as ms. Binary messages can hold some that are none: those become NaN, which no check
// lets pass.
import { type Duration, durationMs, type Timestamp, timestampMs } from '@bufbuild/protobuf/wkt';

const MAX_NANOS = 999_999_999;

/** Ms since 1970. */
export const timeMs = (time: Timestamp): number =>
  time.nanos >= 0 && time.nanos <= MAX_NANOS ? timestampMs(time) : Number.NaN;

/** Whole ms; both parts of a duration have the same sign. NaN also when it is missing. */
export function msOf(duration: Duration | undefined): number {
  if (duration === undefined) return Number.NaN;
  const { seconds, nanos } = duration;
  const isOne = Math.abs(nanos) <= MAX_NANOS && (seconds > 0n ? nanos >= 0 : seconds === 0n || nanos <= 0);
  return isOne ? Math.round(durationMs(duration)) : Number.NaN;
}
