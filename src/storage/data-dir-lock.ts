// One dispatch a data directory: a second one would take over the embedded database and stop it under the first.
import { readFileSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** Takes the directory, or throws one line that names the process that has it. A lock of a dead process is stale. */
export async function lockDataDir(dataDir: string): Promise<AsyncDisposable> {
  await mkdir(dataDir, { recursive: true });
  const file = join(dataDir, 'lock');
  const mine = `${process.pid} ${startOf(process.pid) ?? ''}`;
  for (let tries = 0; tries < 3; tries++) {
    try {
      await writeFile(file, mine, { flag: 'wx' });
      return { [Symbol.asyncDispose]: () => rm(file, { force: true }) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const [pid = '', start = ''] = (await readFile(file, 'utf8').catch(() => '')).split(' ');
    if (isSameProcess(Number(pid), start)) {
      throw new Error(
        `${dataDir} is in use by the dispatch with pid ${pid}; stop it, or set DISPATCH_DATA_DIR`,
      );
    }
    await rm(file, { force: true });
  }
  throw new Error(`${file} could not be taken; is another dispatch starting?`);
}

/** Whether the process that wrote a lock still runs: pids are used again, start times are not. */
function isSameProcess(pid: number, start: string): boolean {
  if (!(pid > 0) || pid === process.pid) return false;
  const now = startOf(pid);
  if (now !== undefined) return now === start;
  try {
    process.kill(pid, 0);
    return start === '';
  } catch {
    return false; // there is no such process
  }
}

/**
 * When a process started, in clock ticks since boot, where /proc tells; undefined elsewhere. One that has ended, and whose
 * parent has not asked for it yet, did not start: what it had is free.
 */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? 'ended' : fields[19];
  } catch {
    return undefined;
  }
}
