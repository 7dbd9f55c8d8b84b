// Latencies from what was sent when and what a sink with times got when.
import { askSink } from './processes.ts';

/** Waits until a sink has all of these webhook-ids; how long each took, in ms, sorted. Empties `sentAt`. */
export async function latencies(sinkPort: number, sentAt: Map<string, number>): Promise<number[]> {
  const found: number[] = [];
  while (sentAt.size > 0) {
    for (const line of (await askSink(sinkPort, 'times')).split('\n')) {
      const [id = '', at] = line.split(' ');
      const sent = sentAt.get(id);
      if (sent === undefined) continue;
      sentAt.delete(id);
      found.push(Number(at) - sent);
    }
    await new Promise((done) => setTimeout(done, 20));
  }
  return found.sort((a, b) => a - b);
}

export function percentiles(sorted: readonly number[]): Record<string, number> {
  const at = (share: number) =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
  return { p50: at(0.5), p99: at(0.99), max: at(1), count: sorted.length };
}
