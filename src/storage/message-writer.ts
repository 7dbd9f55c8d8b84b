// Messages to Postgres, written into memory that is used again, and parameters that are written right into them.

/** Memory that a new one has. */
const ROOM = 16 * 1024;
/** Text up to this length is copied character by character, as long as it is ASCII: a call of Node's encoder takes longer. */
const SHORT_TEXT = 48;

/** Bytes that grow. All numbers are big-endian. */
export class MessageWriter {
  /** What was written is from 0 to `end`. */
  bytes = Buffer.allocUnsafeSlow(ROOM);
  end = 0;

  /** Sees to it that so many bytes may be written. */
  makeRoom(size: number): void {
    const needed = this.end + size;
    if (needed <= this.bytes.length) return;
    const larger = Buffer.allocUnsafeSlow(Math.max(needed, this.bytes.length * 2));
    this.bytes.copy(larger, 0, 0, this.end);
    this.bytes = larger;
  }

  int8(value: number): void {
    this.makeRoom(1);
    this.bytes[this.end++] = value;
  }

  int16(value: number): void {
    this.makeRoom(2);
    const { bytes, end } = this;
    bytes[end] = value >> 8;
    bytes[end + 1] = value;
    this.end = end + 2;
  }

  int32(value: number): void {
    this.makeRoom(4);
    this.int32At(this.end, value);
    this.end += 4;
  }

  /** Over what was written there. */
  int32At(at: number, value: number): void {
    const { bytes } = this;
    bytes[at] = value >> 24;
    bytes[at + 1] = value >> 16;
    bytes[at + 2] = value >> 8;
    bytes[at + 3] = value;
  }

  /** An integer that a double holds exactly. Two halves: a BigInt for each number would be allocated. */
  int64(value: number): void {
    const high = Math.floor(value / 0x1_0000_0000);
    this.int32(high);
    this.int32(value - high * 0x1_0000_0000);
  }

  float64(value: number): void {
    this.makeRoom(8);
    this.end = this.bytes.writeDoubleBE(value, this.end);
  }

  add(bytes: Uint8Array): void {
    this.makeRoom(bytes.length);
    this.bytes.set(bytes, this.end);
    this.end += bytes.length;
  }

  /** Text with a zero behind it. */
  zeroEnded(text: string): void {
    this.#text(text);
    this.int8(0);
  }

  /** Text behind its length in bytes, in 4 of them. */
  sizedText(text: string): void {
    this.makeRoom(4);
    const start = this.end;
    this.end += 4;
    this.#text(text);
    this.int32At(start, this.end - start - 4);
  }

  #text(text: string): void {
    const { length } = text;
    this.makeRoom(length * 3); // bytes that a UTF-16 unit may take
    const { bytes, end } = this;
    let at = 0;
    if (length <= SHORT_TEXT) {
      for (; at < length; at++) {
        const unit = text.charCodeAt(at);
        if (unit > 0x7f) break;
        bytes[end + at] = unit;
      }
    }
    this.end += at === length ? length : bytes.write(text, end);
  }
}

/** A parameter in binary, written when its statement is sent. */
export class BinaryParameter {
  readonly write: (message: MessageWriter) => void;

  constructor(write: (message: MessageWriter) => void) {
    this.write = write;
  }

  /** For connections that do not know of it: pg asks each value that is an object. */
  toPostgres(): Buffer {
    const message = new MessageWriter();
    this.write(message);
    return message.bytes.subarray(0, message.end);
  }
}
