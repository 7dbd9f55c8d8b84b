// Postgres arrays in the binary wire format. Parameters that are Buffers go out as they are: a batch of bodies is
// copied once, instead of being spelled in hexadecimal (2 × the bytes, and the server's parse).
// Format: src/backend/utils/adt/arrayfuncs.c, array_recv.

const TEXT = 25;
const UUID = 2950;
const BYTEA = 17;
const INT2 = 21;
const INT4 = 23;
const INT8 = 20;
const FLOAT8 = 701;
const BOOL = 16;

function begin(type: number, count: number, dataBytes: number): Buffer {
  const buffer = Buffer.allocUnsafe(20 + count * 4 + dataBytes);
  buffer.writeInt32BE(1, 0); // dimensions
  buffer.writeInt32BE(1, 4); // may hold nulls
  buffer.writeInt32BE(type, 8);
  buffer.writeInt32BE(count, 12);
  buffer.writeInt32BE(1, 16); // lower bound
  return buffer;
}

// Loops by index: these arrays are the largest part of what a statement costs here, and an iterator is allocated garbage.

/** text[] */
export function textArray(values: readonly (string | null)[]): Buffer {
  const count = values.length;
  let bytes = 0;
  for (let i = 0; i < count; i++) {
    const value = values[i]!;
    if (value !== null) bytes += Buffer.byteLength(value);
  }
  const buffer = begin(TEXT, count, bytes);
  let at = 20;
  for (let i = 0; i < count; i++) {
    const value = values[i]!;
    if (value === null) {
      at = buffer.writeInt32BE(-1, at);
    } else {
      const written = buffer.write(value, at + 4);
      buffer.writeInt32BE(written, at);
      at += 4 + written;
    }
  }
  return buffer;
}

/** uuid[], from 16 bytes each. */
export function uuidArray(values: readonly (Uint8Array | null)[]): Buffer {
  return bytesArray(UUID, values);
}

/** bytea[] */
export function byteaArray(values: readonly (Uint8Array | null)[]): Buffer {
  return bytesArray(BYTEA, values);
}

function bytesArray(type: number, values: readonly (Uint8Array | null)[]): Buffer {
  const count = values.length;
  let bytes = 0;
  for (let i = 0; i < count; i++) bytes += values[i]?.length ?? 0;
  const buffer = begin(type, count, bytes);
  let at = 20;
  for (let i = 0; i < count; i++) {
    const value = values[i]!;
    if (value === null) {
      at = buffer.writeInt32BE(-1, at);
    } else {
      at = buffer.writeInt32BE(value.length, at);
      buffer.set(value, at);
      at += value.length;
    }
  }
  return buffer;
}

type FixedWriter = (buffer: Buffer, value: number, at: number) => void;

function fixedArray(
  type: number,
  size: number,
  values: readonly (number | null)[],
  write: FixedWriter,
): Buffer {
  const count = values.length;
  let present = 0;
  for (let i = 0; i < count; i++) if (values[i] !== null) present++;
  const buffer = begin(type, count, present * size);
  let at = 20;
  for (let i = 0; i < count; i++) {
    const value = values[i]!;
    at = buffer.writeInt32BE(value === null ? -1 : size, at);
    if (value === null) continue;
    write(buffer, value, at);
    at += size;
  }
  return buffer;
}

/** int2[] */
export function int2Array(values: readonly (number | null)[]): Buffer {
  return fixedArray(INT2, 2, values, (b, v, at) => b.writeInt16BE(v, at));
}

/** int4[] */
export function int4Array(values: readonly (number | null)[]): Buffer {
  return fixedArray(INT4, 4, values, (b, v, at) => b.writeInt32BE(v, at));
}

/** Two halves: a BigInt for each number would be allocated. */
function writeInt64(buffer: Buffer, value: number, at: number): void {
  const high = Math.floor(value / 0x1_0000_0000);
  buffer.writeInt32BE(high, at);
  buffer.writeUInt32BE(value - high * 0x1_0000_0000, at + 4);
}

/** int8[], from integers that a double holds exactly. */
export function int8Array(values: readonly (number | null)[]): Buffer {
  return fixedArray(INT8, 8, values, writeInt64);
}

/** float8[] */
export function float8Array(values: readonly (number | null)[]): Buffer {
  return fixedArray(FLOAT8, 8, values, (b, v, at) => b.writeDoubleBE(v, at));
}

/** bool[] */
export function boolArray(values: readonly boolean[]): Buffer {
  return fixedArray(
    BOOL,
    1,
    values.map((v) => (v ? 1 : 0)),
    (b, v, at) => b.writeUInt8(v, at),
  );
}
