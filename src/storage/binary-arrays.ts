// Postgres arrays in the binary wire format: a batch of bodies is copied once, from where they are into the message of their
// statement, instead of being spelled in hexadecimal (2 × the bytes, and the server's parse).
// Format: src/backend/utils/adt/arrayfuncs.c, array_recv.
import { BinaryParameter, type MessageWriter } from './message-writer.ts';

const TEXT = 25;
const UUID = 2950;
const BYTEA = 17;
const INT2 = 21;
const INT4 = 23;
const INT8 = 20;
const FLOAT8 = 701;
const BOOL = 16;

/** Dimensions, whether there are nulls, type, count and lower bound, in 4 bytes each. */
const HEAD = 20;

// Each of these writes the elements that `pick` takes from `items`, one for each, when the statement is sent. Loops by index: these
// arrays are the largest part of what a statement costs here, and an iterator is allocated garbage.

/** text[] */
export function textArray<T>(items: readonly T[], pick: (item: T, i: number) => string | null) {
  return new BinaryParameter((message) => {
    begin(message, TEXT, items.length);
    for (let i = 0; i < items.length; i++) {
      const value = pick(items[i]!, i);
      if (value === null) message.int32(-1);
      else message.sizedText(value);
    }
  });
}

/** uuid[], from 16 bytes each. */
export function uuidArray<T>(items: readonly T[], pick: (item: T, i: number) => Uint8Array | null) {
  return bytesArray(UUID, items, pick);
}

/** bytea[] */
export function byteaArray<T>(items: readonly T[], pick: (item: T, i: number) => Uint8Array | null) {
  return bytesArray(BYTEA, items, pick);
}

function bytesArray<T>(type: number, items: readonly T[], pick: (item: T, i: number) => Uint8Array | null) {
  return new BinaryParameter((message) => {
    begin(message, type, items.length);
    for (let i = 0; i < items.length; i++) {
      const value = pick(items[i]!, i);
      if (value === null) {
        message.int32(-1);
      } else {
        message.int32(value.length);
        message.add(value);
      }
    }
  });
}

function begin(message: MessageWriter, type: number, count: number): void {
  message.makeRoom(HEAD + count * 12); // about what numbers take
  message.int32(1); // dimensions
  message.int32(1); // may hold nulls
  message.int32(type);
  message.int32(count);
  message.int32(1); // lower bound
}

type PickNumber<T> = (item: T, i: number) => number | null;
type NumberWriter = (message: MessageWriter, value: number) => void;

function numberArray<T>(
  type: number,
  size: number,
  items: readonly T[],
  pick: PickNumber<T>,
  write: NumberWriter,
) {
  return new BinaryParameter((message) => {
    begin(message, type, items.length);
    for (let i = 0; i < items.length; i++) {
      const value = pick(items[i]!, i);
      message.int32(value === null ? -1 : size);
      if (value !== null) write(message, value);
    }
  });
}

/** int2[] */
export function int2Array<T>(items: readonly T[], pick: PickNumber<T>) {
  return numberArray(INT2, 2, items, pick, (m, value) => m.int16(inRange(value, (value << 16) >> 16)));
}

/** int4[] */
export function int4Array<T>(items: readonly T[], pick: PickNumber<T>) {
  return numberArray(INT4, 4, items, pick, (m, value) => m.int32(inRange(value, value | 0)));
}

/** A number, if it is what is left of it in its type. */
function inRange(value: number, kept: number): number {
  if (value !== kept) throw new RangeError(`${value} is not a number of its column's type`);
  return value;
}

/** int8[], from integers that a double holds exactly. */
export function int8Array<T>(items: readonly T[], pick: PickNumber<T>) {
  return numberArray(INT8, 8, items, pick, (m, value) => m.int64(value));
}

/** float8[] */
export function float8Array<T>(items: readonly T[], pick: PickNumber<T>) {
  return numberArray(FLOAT8, 8, items, pick, (m, value) => m.float64(value));
}

/** bool[] */
export function boolArray<T>(items: readonly T[], pick: (item: T, i: number) => boolean) {
  return numberArray(
    BOOL,
    1,
    items,
    (item, i) => (pick(item, i) ? 1 : 0),
    (m, value) => m.int8(value),
  );
}
