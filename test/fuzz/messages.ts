// What the targets of messages share.
import { isDeepStrictEqual } from 'node:util';
import {
  create,
  type DescMessage,
  fromBinary,
  fromJsonString,
  type MessageInitShape,
  type MessageShape,
  toBinary,
  toJsonString,
} from '@bufbuild/protobuf';
import { ensure, isStorable } from './target.ts';

/** A message, as either port reads it; undefined for bytes that are none. */
export function read<Desc extends DescMessage>(schema: Desc, input: Buffer): MessageShape<Desc> | undefined {
  try {
    return fromBinary(schema, input, { readUnknownFields: false });
  } catch {
    try {
      return fromJsonString(schema, input.toString('utf8'), { ignoreUnknownFields: false });
    } catch {
      return undefined; // what readers say of it is the library's, and tested over the wire
    }
  }
}

/** Both forms of a message. */
export function seedsOf<Desc extends DescMessage>(
  schema: Desc,
  ...values: MessageInitShape<Desc>[]
): (string | Uint8Array)[] {
  return values.flatMap((value) => {
    const message = create(schema, value);
    return [toBinary(schema, message), toJsonString(schema, message)];
  });
}

/** All text in a value that is going to be stored. */
function textsIn(value: unknown): string[] {
  if (typeof value === 'string') return [value];
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return [];
  return Object.entries(value).flatMap(([key, child]) => [key, ...textsIn(child)]);
}

export const assertStorable = (value: unknown): void => {
  for (const text of textsIn(value))
    ensure(isStorable(text), `${JSON.stringify(text.slice(0, 40))} cannot be stored`);
};

/** The same but for what is left out where it is undefined. */
export const same = (a: unknown, b: unknown): boolean =>
  isDeepStrictEqual(JSON.parse(JSON.stringify(a)), JSON.parse(JSON.stringify(b)));

export const JSON_WORDS = [
  '"',
  ':',
  ',',
  '{',
  '}',
  '[',
  ']',
  'null',
  '\\u0000',
  '\\ud800',
  '1e999',
  '"NaN"',
  '"Infinity"',
];
export const TIME_WORDS = [
  '"2026-11-24T10:00:00Z"',
  '"9999-12-31T23:59:59.999999999Z"',
  '"0001-01-01T00:00:00Z"',
  '"3s"',
  '"-1s"',
  '"0.000000001s"',
  '"315576000000s"',
];
