// Runs a load program to its end and reads the last line that it prints.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

export async function runLoad(
  file: string,
  args: readonly (string | number)[],
): Promise<{ perSecond: number }> {
  const path = new URL(`../${file}`, import.meta.url).pathname;
  const { stdout } = await run(process.execPath, [path, ...args.map(String)], { maxBuffer: 1 << 20 });
  return JSON.parse(stdout.trimEnd().split('\n').pop() ?? '');
}
