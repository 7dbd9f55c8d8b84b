// Arrays of the floor programs' statements in Postgres's binary format, as plain parameters of pg.

const TEXT = 25;
const UUID = 2950;
const BYTEA = 17;

export function textArray(values: readonly string[]): Buffer {
  return arrayOf(
    TEXT,
    values.map((value) => Buffer.byteLength(value)),
    (bytes, at, i) => bytes.write(values[i]!, at),
  );
}

/** From 16 bytes each. */
export const uuidArray = (values: readonly Uint8Array[]): Buffer => bytesArray(UUID, values);

export const byteaArray = (values: readonly Uint8Array[]): Buffer => bytesArray(BYTEA, values);

const bytesArray = (type: number, values: readonly Uint8Array[]) =>
  arrayOf(
    type,
    values.map((value) => value.length),
    (bytes, at, i) => bytes.set(values[i]!, at),
  );

function arrayOf(
  type: number,
  sizes: readonly number[],
  write: (bytes: Buffer, at: number, i: number) => void,
): Buffer {
  const bytes = Buffer.allocUnsafe(20 + sizes.reduce((sum, size) => sum + 4 + size, 0));
  // One dimension, no nulls, the type, how many, and the number of the first.
  let at = 0;
  for (const value of [1, 0, type, sizes.length, 1]) at = bytes.writeInt32BE(value, at);
  for (let i = 0; i < sizes.length; i++) {
    at = bytes.writeInt32BE(sizes[i]!, at);
    write(bytes, at, i);
    at += sizes[i]!;
  }
  return bytes;
}
