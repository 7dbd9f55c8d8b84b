// What the list calls share.
import type { Timestamp } from '@bufbuild/protobuf/wkt';
import { invalidField } from '../domain/errors.ts';
import { patternProblem } from '../domain/event-type.ts';
import { timeMs } from './times.ts';

/** Ms since 1970 of an optional time; INVALID_ARGUMENT for one that cannot be. */
export function optionalMs(time: Timestamp | undefined, field: string): number | undefined {
  if (time === undefined) return undefined;
  const ms = timeMs(time);
  if (!(ms >= -62_135_596_800_000 && ms <= 253_402_300_799_999))
    throw invalidField(field, 'is not a valid timestamp: 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999Z');
  return ms;
}

/** An optional range of times, from the first up to and without the second; INVALID_ARGUMENT for one that holds nothing. */
export function optionalRange(
  range: { readonly startTime?: Timestamp | undefined; readonly endTime?: Timestamp | undefined },
  path = '',
): { readonly startMs: number | undefined; readonly endMs: number | undefined } {
  const startMs = optionalMs(range.startTime, `${path}start_time`);
  const endMs = optionalMs(range.endTime, `${path}end_time`);
  if (startMs !== undefined && endMs !== undefined && endMs <= startMs)
    throw invalidField(`${path}end_time`, `must be after ${path}start_time`);
  return { startMs, endMs };
}

/** An optional event-type pattern; INVALID_ARGUMENT for a malformed one. */
export function optionalPattern(pattern: string, field: string): string | undefined {
  if (pattern === '') return undefined;
  const problem = patternProblem(pattern);
  if (problem !== undefined) throw invalidField(field, problem);
  return pattern;
}

/** A filter of free text, at most 512 characters; INVALID_ARGUMENT for one that cannot be stored. */
export function shortText(text: string, field: string): string {
  if (text.length <= 512 && !text.includes('\0')) return text;
  throw invalidField(field, 'must be at most 512 characters without NUL');
}
