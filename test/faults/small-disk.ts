// A disk of a few megabytes that can be filled for real: a tmpfs, which only root may mount.
import { execFile } from 'node:child_process';
import { mkdtemp, open, rm, rmdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Place } from '../../src/storage/embedded.ts';

const run = promisify(execFile);

export type SmallDisk = AsyncDisposable & {
  readonly path: string;
  /** Writes until there is no space left. */
  readonly fill: () => Promise<void>;
  /** Gives back what was filled. */
  readonly free: () => Promise<void>;
};

/** Mounts one for a user; a string says why that cannot be done here. */
export async function mountSmallDisk(megabytes: number, user: Place['user']): Promise<SmallDisk | string> {
  if (process.getuid?.() !== 0) return 'only root may mount a tmpfs';
  const path = await mkdtemp(join(tmpdir(), 'dispatch-disk-'));
  const owner = user === undefined ? '' : `,uid=${user.uid},gid=${user.gid}`;
  try {
    await run('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m,mode=0700${owner}`, 'tmpfs', path]);
  } catch (error) {
    await rmdir(path);
    return `a tmpfs could not be mounted: ${String((error as { stderr?: string }).stderr ?? error).trim()}`;
  }
  const filler = join(path, 'filler');
  return {
    path,
    fill: () => fill(filler),
    free: () => rm(filler, { force: true }),
    async [Symbol.asyncDispose]() {
      await run('umount', [path]);
      await rmdir(path);
    },
  };
}

async function fill(path: string): Promise<void> {
  const file = await open(path, 'w');
  try {
    // Ever smaller pieces, down to a page: then nothing has room any more.
    for (
      let piece = Buffer.alloc(1024 * 1024, 1);
      piece.length >= 4096;
      piece = piece.subarray(piece.length / 2)
    ) {
      while (await writes(file, piece));
    }
  } finally {
    await file.close();
  }
}

async function writes(file: Awaited<ReturnType<typeof open>>, piece: Buffer): Promise<boolean> {
  try {
    return (await file.write(piece)).bytesWritten === piece.length;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC') return false;
    throw error;
  }
}
