// What is told of a run: a row for people; the JSON report has the same.
import { FULL_MINUTES, type Report } from './runner.ts';

const ROUNDED = 3;

/** A line, and one more for each broken promise and for how to run it again. */
export function rowOf({ scenario, seed, seconds, verdict, figures, broken }: Report, scale: number): string {
  const parts = [
    broken.length === 0 ? 'held  ' : 'BROKEN',
    scenario.padEnd(20),
    `${seconds.toFixed(0)} s`.padStart(6),
    verdict === undefined
      ? ''
      : `${verdict.acked} acked, ${verdict.lost} lost, ${verdict.unexpected} unexpected, ${verdict.duplicated} duplicated`,
    ...figures.map(({ name, value, atMost, atLeast }) => {
      const bound = atMost !== undefined ? ` (≤ ${atMost})` : atLeast !== undefined ? ` (≥ ${atLeast})` : '';
      return `${name} ${Number(value.toFixed(ROUNDED))}${bound}`;
    }),
  ];
  const lines = [parts.filter((part) => part !== '').join('  ')];
  for (const sentence of broken) lines.push(`       broken: ${sentence}`);
  if (broken.length > 0) {
    const minutes = scale * FULL_MINUTES;
    lines.push(`       again: npm run faults -- --only=${scenario} --seed=${seed} --minutes=${minutes}`);
  }
  return lines.join('\n');
}
