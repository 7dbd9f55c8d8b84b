// The log line of an attempt, spelled out. It is the one line that every delivery writes: in pino's general way it took a
// tenth of a delivery's CPU and a quarter of all that was allocated (profile of end to end, docs/benchmarks.md). What
// comes out is the same JSON, with the same first fields as every other line.
import type { AttemptEvent } from './events.ts';

/** Anything but the printable ASCII that stands for itself in a JSON string. */
const NEEDS_ESCAPING = /[^ !#-[\]-~]/;

const quoted = (text: string) => (NEEDS_ESCAPING.test(text) ? JSON.stringify(text) : `"${text}"`);

/** Spells lines of one process; `now` is in ms since 1970. Ids and tenants are letters, digits, `_` and `-`. */
export function createAttemptLine(pid: number, now: () => number): (event: AttemptEvent) => string {
  let timeMs = Number.NaN;
  let head = '';
  return (e) => {
    const nowMs = now();
    if (nowMs !== timeMs) {
      timeMs = nowMs;
      head = `{"level":"info","time":"${new Date(nowMs).toISOString()}","pid":${pid},"tenantId":"`;
    }
    const errorClass = e.errorClass === undefined ? '' : `,"errorClass":"${e.errorClass}"`;
    const retryInMs = e.retryInMs === undefined ? '' : `,"retryInMs":${e.retryInMs}`;
    const batchSize = e.batchSize === undefined ? '' : `,"batchSize":${e.batchSize}`;
    return `${head}${e.tenantId}","eventId":"${e.eventId}","eventType":${quoted(e.eventType)},"subscriptionId":"${e.subscriptionId}","deliveryId":"${e.deliveryId}","attempt":${e.attempt},"outcome":"${e.outcome}","status":${e.status}${errorClass},"origin":${quoted(e.origin)},"durationMs":${e.durationMs},"lagMs":${e.lagMs}${retryInMs},"payloadBytes":${e.payloadBytes}${batchSize},"msg":"attempt"}\n`;
  };
}
