// A socket for connections to Postgres that reads into the same memory all the time.
import { Socket } from 'node:net';

/** Memory that is read into at first: as much as Node reads at once. */
const ROOM = 64 * 1024;
/** Memory that was needed for larger messages and is kept. */
const MAX_ROOM = 1024 * 1024;
/** A message is a byte that says what it is, and its length without that byte, in 4 bytes. */
const HEADER = 5;
/** Postgres sends none that is larger. */
const MAX_MESSAGE = 1024 * 1024 * 1024;

/**
 * A socket whose 'data' are whole messages of Postgres's protocol, good until the listener returns, which must keep nothing of
 * them: pg reads texts and numbers out of them, and bytes only for COPY, which is not for this socket, nor is TLS.
 *
 * Node gives each read 64 KiB of its own, and pg joins what is cut into pieces in memory that doubles. All of that is garbage
 * outside of V8's heap, and after each 64 MiB of it V8 collects all of its heap: beside bodies of 250 KB after each 130 of them.
 */
export function createMessageSocket(): Socket {
  let room = Buffer.allocUnsafeSlow(ROOM);
  let end = 0; // of what was read into it

  /** Where what is read next goes to. What is in the room then is the beginning of one message. */
  function free(): Buffer {
    const needed = end < HEADER ? HEADER : lengthAt(room, 0);
    if (needed > room.length || (end === 0 && room.length > MAX_ROOM)) {
      const larger = Buffer.allocUnsafeSlow(Math.max(ROOM, 2 ** Math.ceil(Math.log2(needed))));
      room.copy(larger, 0, 0, end);
      room = larger;
    }
    return room.subarray(end);
  }

  const socket = new Socket({
    onread: {
      buffer: free,
      callback(byteCount) {
        end += byteCount;
        let whole = 0;
        while (whole + HEADER <= end) {
          const length = lengthAt(room, whole);
          if (length < HEADER || length > MAX_MESSAGE) {
            end = 0; // Node asks for room once more
            socket.destroy(new Error('what came is not the protocol of Postgres'));
            return false;
          }
          if (whole + length > end) break;
          whole += length;
        }
        try {
          if (whole > 0) socket.emit('data', room.subarray(0, whole));
        } finally {
          room.copyWithin(0, whole, end);
          end -= whole;
        }
        return true;
      },
    },
  });
  return socket;
}

const lengthAt = (bytes: Buffer, offset: number): number => 1 + bytes.readUInt32BE(offset + 1);
