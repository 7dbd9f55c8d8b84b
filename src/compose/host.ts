// The host that this process shares with others, as its kernel tells of it.
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import type { CoreTicks } from '../delivery/seat.ts';

export type Host = {
  /** All processes of the host see it, those in containers, too, and no other host has it. */
  readonly id: string;
  readonly coreCount: number;
  /** What all its cores did since it came up; undefined: it does not say. */
  readonly coreTicks: () => CoreTicks | undefined;
};

/**
 * Undefined where this process cannot know how busy the cores are that it may use: on others than Linux, in a container that is shown a
 * `/proc/stat` of its own, and with a quota or a choice of cores that leaves it fewer than there are.
 */
export function readHost(): Host | undefined {
  const id = readText('/proc/sys/kernel/random/boot_id').trim();
  const coreCount = coresIn(readText('/proc/stat'));
  const isShownAnother = / \/proc\/stat /.test(readText('/proc/self/mountinfo'));
  if (id === '' || coreCount === 0 || isShownAnother || availableParallelism() < coreCount) return undefined;
  return { id, coreCount, coreTicks: () => ticksIn(readText('/proc/stat')) };
}

/** Of the text of /proc/stat (proc_stat(5)): a line for each core. */
export const coresIn = (text: string): number => text.match(/^cpu\d/gm)?.length ?? 0;

/** Of the same: user, nice, system, idle, iowait, irq, softirq, steal, of all cores; what guests use is in user. */
export function ticksIn(text: string): CoreTicks | undefined {
  const found = /^cpu +(\d+(?: \d+){7})/.exec(text);
  if (found === null) return undefined;
  const ticks = found[1]!.split(' ').map(Number);
  return { all: ticks.reduce((sum, n) => sum + n, 0), free: ticks[3]! + ticks[4]! };
}

/** Empty if there is no such file, or it may not be read. */
function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
