// The host that this process shares with others, as its kernel tells of it. On others than Linux nothing is known.
import { readFileSync } from 'node:fs';
import type { CoreTicks } from '../delivery/seat.ts';

/** An id that all processes of the host see, containers included, and those of no other host; undefined: not known. */
export function hostId(): string | undefined {
  return readText('/proc/sys/kernel/random/boot_id')?.trim() || undefined;
}

export const coreCount = (): number => (readText('/proc/stat') ?? '').match(/^cpu\d/gm)?.length ?? 0;

/** What all cores did since the host came up; undefined: not known. */
export const coreTicks = (): CoreTicks | undefined => ticksIn(readText('/proc/stat') ?? '');

/** Of the text of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5)); guests are in user. */
export function ticksIn(text: string): CoreTicks | undefined {
  const found = /^cpu +(\d+(?: \d+){7})/.exec(text);
  if (found === null) return undefined;
  const ticks = found[1]!.split(' ').map(Number);
  return { all: ticks.reduce((sum, n) => sum + n, 0), free: ticks[3]! + ticks[4]! };
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined; // another system, or one that does not let us look
  }
}
