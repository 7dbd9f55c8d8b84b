// The product's own figures, as anybody reads them: from /metrics.
import type { DispatchProcess } from '../support/processes.ts';

/** The text of a process's /metrics; only processes with the api role have the page. */
export async function readMetrics({ httpPort }: Pick<DispatchProcess, 'httpPort'>): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${httpPort}/metrics`);
  return response.text();
}

/** A gauge or counter without labels; NaN: it is not there. */
export function gaugeOf(metrics: string, name: string): number {
  const line = metrics.split('\n').find((each) => each.startsWith(`${name} `));
  return line === undefined ? Number.NaN : Number(line.slice(name.length + 1));
}

/** Counts of a histogram without labels: observations up to each bound. */
export type Histogram = ReadonlyMap<number, number>;

export function histogramOf(metrics: string, name: string): Histogram {
  const found = metrics.matchAll(new RegExp(`^${name}_bucket\\{le="([^"]+)"\\} (\\d+)$`, 'gm'));
  return new Map(
    [...found].map(([, bound, count]) => [Number(bound?.replace('+Inf', 'Infinity')), Number(count)]),
  );
}

/** What came between two readings. */
export const since = (before: Histogram, after: Histogram): Histogram =>
  new Map([...after].map(([bound, count]) => [bound, count - (before.get(bound) ?? 0)]));

export const countOf = (histogram: Histogram): number => histogram.get(Number.POSITIVE_INFINITY) ?? 0;

/** A quantile in seconds, evenly within its bucket, as Prometheus has it; NaN without observations. */
export function quantileOf(histogram: Histogram, quantile: number): number {
  const rank = countOf(histogram) * quantile;
  let lower = 0;
  let below = 0;
  for (const [bound, count] of histogram) {
    if (count >= rank && count > below) {
      return bound === Number.POSITIVE_INFINITY
        ? bound
        : lower + ((bound - lower) * (rank - below)) / (count - below);
    }
    lower = bound;
    below = count;
  }
  return Number.NaN;
}
