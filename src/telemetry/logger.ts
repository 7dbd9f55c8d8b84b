// The log: JSON lines by pino. Secrets never get here; what could carry one is redacted by key all the same.
import { pino } from 'pino';
import type { LogLevel } from '../config.ts';
import type { AttemptEvent } from './events.ts';

/** What the rest of the program may log: one function for each thing that happens. */
export type Log = {
  readonly info: (fields: object, message: string) => void;
  readonly warn: (fields: object, message: string) => void;
  readonly error: (error: unknown, message: string, fields?: object) => void;
  /** The one wide line of an attempt. */
  readonly attempt: (event: AttemptEvent) => void;
  /** One line a call: debug when it went well or was the caller's fault, error when it was ours. */
  readonly rpc: (fields: object, failed: boolean) => void;
  readonly flush: () => void;
};

/** Writes to standard output, buffered (up to 4 KiB or 200 ms), and flushed at exit. */
export function createLog(level: LogLevel): Log {
  const destination = pino.destination({ fd: 1, sync: false, minLength: 4096, periodicFlush: 200 });
  const options = {
    level,
    base: { pid: process.pid },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  };
  // Attempts are ids and figures and nothing else: redaction, a third of the cost of such a line, has nothing to find.
  const attempts = pino(options, destination);
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
  return {
    info: (fields, message) => log.info(fields, message),
    warn: (fields, message) => log.warn(fields, message),
    error: (error, message, fields) => log.error({ err: error, ...fields }, message),
    attempt: (event) => attempts.info(event, 'attempt'),
    rpc: (fields, failed) => (failed ? log.error(fields, 'rpc') : log.debug(fields, 'rpc')),
    flush: () => {
      try {
        destination.flushSync();
      } catch {
        // The stream is not open yet or closed already: there is nothing to flush.
      }
    },
  };
}
