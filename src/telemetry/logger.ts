// The log: JSON lines by pino. Secrets never get here; what could carry one is redacted by key all the same.
import { pino } from 'pino';
import type { LogLevel } from '../config.ts';
import { createAttemptLine } from './attempt-line.ts';
import type { AttemptEvent } from './events.ts';

/** What the rest of the program may log: one function for each thing that happens. */
export type Log = {
  readonly info: (fields: object, message: string) => void;
  readonly warn: (fields: object, message: string) => void;
  readonly error: (error: unknown, message: string, fields?: object) => void;
  /** The one wide line of an attempt. */
  readonly attempt: (event: AttemptEvent) => void;
  /** One line a call: debug when it went well or was the caller's fault, error when it was ours. */
  readonly rpc: (fields: () => object, failed: boolean) => void;
  readonly flush: () => void;
};

/** A write costs this process 50 µs whatever its length (a thread is woken for it), and a line has some 450 bytes. */
const GATHER_BYTES = 32 * 1024;
const GATHER_MS = 200;

/** Writes to standard output; the lines of attempts are gathered (up to 32 KiB or 200 ms). All is flushed at exit. */
export function createLog(level: LogLevel): Log {
  const destination = pino.destination({ fd: 1, sync: false });
  const options = {
    level,
    base: { pid: process.pid },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  };
  const log = pino(
    {
      ...options,
      redact: {
        paths: ['*.authorization', '*.secret', '*.key', 'authorization', 'secret', 'key'],
        censor: '[redacted]',
      },
    },
    destination,
  );
  const lineOf = createAttemptLine(process.pid, Date.now);
  /** Lines of attempts that are not with the destination yet. */
  let lines = '';
  let timer: NodeJS.Timeout | undefined;
  const handOver = () => {
    clearTimeout(timer);
    timer = undefined;
    if (lines === '') return;
    destination.write(lines);
    lines = '';
  };
  /** Lines are in the order in which things happened. */
  const inOrder =
    <A extends readonly unknown[]>(write: (...args: A) => void) =>
    (...args: A) => {
      handOver();
      write(...args);
    };
  const failedRpc = inOrder((fields: object) => log.error(fields, 'rpc'));
  const wellRpc = inOrder((fields: object) => log.debug(fields, 'rpc'));
  return {
    info: inOrder((fields, message) => log.info(fields, message)),
    warn: inOrder((fields, message) => log.warn(fields, message)),
    error: inOrder((error, message, fields) => log.error({ err: error, ...fields }, message)),
    attempt: (event) => {
      if (!log.isLevelEnabled('info')) return;
      lines += lineOf(event);
      if (lines.length >= GATHER_BYTES) handOver();
      else timer ??= setTimeout(handOver, GATHER_MS).unref();
    },
    rpc: (fields, failed) => {
      if (failed) failedRpc(fields());
      else if (log.isLevelEnabled('debug')) wellRpc(fields());
    },
    flush: () => {
      handOver();
      try {
        destination.flushSync();
      } catch {
        // The stream is not open yet or closed already: there is nothing to flush.
      }
    },
  };
}
