// What is told of a run: rows and a page for people; the JSON report has the same.
import type { Verdict } from '../support/ledger.ts';
import { FULL_MINUTES, type Report } from './runner.ts';
import type { Figure } from './scenario.ts';

const ROUNDED = 3;

/** `duplicates ÷ claimed 0.81 (≤ 1)` */
function tell({ name, value, atMost, atLeast }: Figure): string {
  const bound = atMost !== undefined ? ` (≤ ${atMost})` : atLeast !== undefined ? ` (≥ ${atLeast})` : '';
  return `${name} ${Number(value.toFixed(ROUNDED))}${bound}`;
}

const tellVerdict = ({ acked, lost, unexpected, duplicated }: Verdict) =>
  `${acked} acked, ${lost} lost, ${unexpected} unexpected, ${duplicated} duplicated`;

/** A line, and one more for each broken promise and for how to run it again. */
export function rowOf({ scenario, seed, seconds, verdict, figures, broken }: Report, scale: number): string {
  const parts = [
    broken.length === 0 ? 'held  ' : 'BROKEN',
    scenario.padEnd(20),
    `${seconds.toFixed(0)} s`.padStart(6),
    verdict === undefined ? '' : tellVerdict(verdict),
    ...figures.map(tell),
  ];
  const lines = [parts.filter((part) => part !== '').join('  ')];
  for (const sentence of broken) lines.push(`       broken: ${sentence}`);
  if (broken.length > 0) {
    const minutes = scale * FULL_MINUTES;
    lines.push(`       again: npm run faults -- --only=${scenario} --seed=${seed} --minutes=${minutes}`);
  }
  return lines.join('\n');
}

/** A page in Markdown with a picture of each run beside it. `about` is a line on the run as a whole. */
export function pageOf(reports: readonly Report[], about: string): string {
  const parts = reports.map(
    ({ scenario, about: fault, promises, seed, seconds, verdict, figures, broken }) => {
      const told = [...(verdict === undefined ? [] : [tellVerdict(verdict)]), ...figures.map(tell)];
      return [
        `## ${scenario}: ${broken.length === 0 ? 'held' : 'BROKEN'}`,
        '',
        `${fault}. ${promises.join(', ')}; seed ${seed}, ${seconds.toFixed(0)} s.`,
        '',
        ...told.map((line) => `- ${line}`),
        ...broken.map((line) => `- **broken: ${line.split('\n')[0]}**`),
        '',
        `![${scenario}](${scenario}.svg)`,
        '',
      ].join('\n');
    },
  );
  return `# A run of the fault scenarios\n\n${about}\n\n${parts.join('\n')}`;
}
