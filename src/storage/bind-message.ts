// How hot statements are sent: their parameters are written into memory that earlier statements used.
//
// pg makes each message in memory that begins with 256 bytes and grows by half: a megabyte for a statement of 350 KB. All of that
// is garbage outside of V8's heap, and after each 64 MiB of it V8 collects all of its heap (ADR 0041).
import pg from 'pg';
import { BinaryParameter, MessageWriter } from './message-writer.ts';

const BIND = 0x42; // 'B'
const IS_TEXT = 0;
const IS_BINARY = 1;
/** Memory that is kept between statements, in bytes: a few commits of the largest size. */
const MAX_KEPT = 24 * 1024 * 1024;

type Plain = Buffer | string | null;

/** What pg gives to its connection to be sent. */
export type Bind = {
  readonly portal?: string;
  readonly statement?: string;
  readonly binary?: boolean;
  readonly values?: readonly unknown[];
  readonly valueMapper?: (value: unknown, i: number) => Plain;
};

/** Of pg's connection, whose types say less. */
export type BindingConnection = {
  readonly stream: { readonly writable: boolean; readonly write: (bytes: Uint8Array) => boolean };
  readonly on: (event: 'readyForQuery', heard: () => void) => void;
  bind: (message: Bind) => void;
};

/** Memory for the messages of some connections: as much as they use at once. */
export type MessageMemory = {
  readonly take: () => MessageWriter;
  readonly giveBack: (used: MessageWriter) => void;
};

export function createMessageMemory(): MessageMemory {
  const free: MessageWriter[] = [];
  let kept = 0;
  return {
    take() {
      const message = free.pop();
      if (message === undefined) return new MessageWriter();
      kept -= message.bytes.length;
      message.end = 0;
      return message;
    },
    giveBack(used) {
      if (kept + used.bytes.length > MAX_KEPT) return;
      kept += used.bytes.length;
      free.push(used);
    },
  };
}

/** Clients whose statements are written into `memory`, one at a time: pg's pipeline mode is not for them. */
export function clientsWith(memory: MessageMemory): new (config?: pg.ClientConfig) => pg.Client {
  return class extends pg.Client {
    constructor(config?: pg.ClientConfig) {
      super(config);
      bindInto(memory, (this as unknown as { readonly connection: BindingConnection }).connection);
    }
  };
}

/** Replaces how a connection sends parameters. */
export function bindInto(memory: MessageMemory, connection: BindingConnection): void {
  const bindPlain = connection.bind.bind(connection);
  /** What was sent and not answered: the socket may have to read it still. */
  let held: MessageWriter | undefined;
  connection.on('readyForQuery', () => {
    if (held !== undefined) memory.giveBack(held);
    held = undefined;
  });
  connection.bind = (bind) => {
    if (held !== undefined || !bind.values?.some((value) => value instanceof BinaryParameter)) {
      bindPlain(bind);
      return;
    }
    const message = memory.take();
    try {
      writeBind(message, bind);
    } catch (error) {
      memory.giveBack(message);
      throw error;
    }
    held = message;
    if (connection.stream.writable) connection.stream.write(message.bytes.subarray(0, message.end));
  };
}

/** Format: Bind in https://www.postgresql.org/docs/current/protocol-message-formats.html */
function writeBind(
  message: MessageWriter,
  { portal = '', statement = '', values = [], ...bind }: Bind,
): void {
  message.int8(BIND);
  message.int32(0); // its length, which is not known yet
  message.zeroEnded(portal);
  message.zeroEnded(statement);
  const mapped = bind.valueMapper ?? ((value: unknown) => value as Plain | undefined);
  const given = values.map((value, i) =>
    value instanceof BinaryParameter ? value : (mapped(value, i) ?? null),
  );
  message.int16(given.length);
  for (const value of given) message.int16(typeof value === 'string' || value === null ? IS_TEXT : IS_BINARY);
  message.int16(given.length);
  for (const value of given) writeValue(message, value);
  message.int16(1); // one format for all results
  message.int16(bind.binary === true ? IS_BINARY : IS_TEXT);
  message.int32At(1, message.end - 1);
}

function writeValue(message: MessageWriter, value: BinaryParameter | Plain): void {
  if (value === null) {
    message.int32(-1);
  } else if (typeof value === 'string') {
    message.sizedText(value);
  } else if (value instanceof BinaryParameter) {
    message.int32(0);
    const start = message.end;
    value.write(message);
    message.int32At(start - 4, message.end - start);
  } else {
    message.int32(value.length);
    message.add(value);
  }
}
