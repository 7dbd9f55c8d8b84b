// Wrong clocks for real processes: libfaketime, preloaded, with a file that says how far off the clock is and that may be
// changed while they run. From the system, else Debian's package as root. The monotonic clock stays as it is.
import { execFileSync } from 'node:child_process';
import { existsSync, globSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export type FakeClock = AsyncDisposable & {
  /** For the process whose clock it is. */
  readonly environment: Readonly<Record<string, string>>;
  /** Sets the clock by so many seconds ahead of the real one; at once, for whoever runs with it. */
  readonly set: (aheadSeconds: number) => void;
};

const PLACES = '/usr/{lib,lib64,local/lib}/**/faketime/libfaketime.so.1';
/** Where Debian has it on this machine's kind: searching all of /usr/lib takes a second. */
const DEBIAN = `/usr/lib/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu/faketime/libfaketime.so.1`;

function library(): string {
  const find = () => (existsSync(DEBIAN) ? DEBIAN : globSync(PLACES)[0]);
  const found = find();
  if (found !== undefined) return found;
  if (process.getuid?.() !== 0) {
    throw new Error('libfaketime is not there, and installing it needs root: apt-get install libfaketime');
  }
  execFileSync('apt-get', ['update', '-qq'], { stdio: 'ignore' });
  execFileSync('apt-get', ['install', '-y', '-qq', 'libfaketime'], { stdio: 'ignore' });
  const installed = find();
  if (installed === undefined) throw new Error('libfaketime was installed and is not there');
  return installed;
}

export function createFakeClock(aheadSeconds: number): FakeClock {
  const dir = mkdtempSync(join(tmpdir(), 'dispatch-clock-'));
  const file = join(dir, 'offset');
  const set = (seconds: number) => {
    writeFileSync(`${file}.new`, `${seconds < 0 ? '-' : '+'}${Math.abs(seconds)}\n`);
    renameSync(`${file}.new`, file); // never half a number
  };
  set(aheadSeconds);
  return {
    environment: {
      LD_PRELOAD: library(),
      FAKETIME_TIMESTAMP_FILE: file,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      NO_FAKE_STAT: '1',
    },
    set,
    async [Symbol.asyncDispose]() {
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
