// CPU that processes have used, from the system's books. Only on Linux; NaN elsewhere.
import { readdir, readFile } from 'node:fs/promises';

type Times = { readonly parent: number; readonly own: number; readonly children: number };

/** Seconds of user and system time of a process, and of its children that have ended. */
async function timesOf(pid: number | string): Promise<Times | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
  if (stat === undefined) return undefined;
  const fields = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
  // From the state on (field 3 of proc(5)): 11–14 are utime, stime, cutime and cstime in hundredths.
  const own = (fields[11]! + fields[12]!) / 100;
  return { parent: fields[1]!, own, children: (fields[13]! + fields[14]!) / 100 };
}

/** CPU seconds of one process. */
export async function cpuSeconds(pid: number | undefined): Promise<number> {
  return (await timesOf(pid ?? 0))?.own ?? Number.NaN;
}

/** CPU seconds of a process and of all that it started itself, ended or not: a PostgreSQL server's. */
export async function familySeconds(pid: number): Promise<number> {
  const root = await timesOf(pid);
  if (root === undefined) return Number.NaN;
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const all = await Promise.all(pids.map(timesOf));
  const children = all.reduce((sum, times) => sum + (times?.parent === pid ? times.own : 0), 0);
  return root.own + root.children + children;
}

/** Resident memory of a process in MB. */
export async function residentMb(pid: number | undefined): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) / 1_024;
}
