// The embedded database of an all-in-one process, seen from outside: a test asks it, and kills it.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { removeEmbedded } from '../../src/storage/embedded.ts';

/** Where its files are: elsewhere when its user cannot enter the data directory; a note there says where. */
async function homeOf(dataDir: string): Promise<string> {
  const home = join(dataDir, 'postgres');
  const isHere = await readFile(join(home, 'password')).then(
    () => true,
    () => false,
  );
  if (isHere) return home;
  const note = await readFile(join(home, 'README'), 'utf8');
  return note.trim().split(' ').pop() ?? '';
}

/** The URL of its database, as the owner. */
export async function embeddedUrl(dataDir: string): Promise<string> {
  const home = await homeOf(dataDir);
  const password = (await readFile(join(home, 'password'), 'utf8')).trim();
  const port = (await readFile(join(home, 'port'), 'utf8')).trim();
  return `postgres://dispatch:${password}@127.0.0.1:${port}/dispatch`;
}

/** Sends a signal to its server, which may outlive the process that started it. False: there is none. */
export async function signalEmbedded(dataDir: string, signal: NodeJS.Signals): Promise<boolean> {
  try {
    const lock = await readFile(join(await homeOf(dataDir), 'data', 'postmaster.pid'), 'utf8');
    return process.kill(Number(lock.split('\n')[0]), signal);
  } catch {
    return false; // no lock, or nobody who holds it
  }
}

/** Stops its server if it still runs, and removes the data directory. */
export async function removeWithServer(dataDir: string): Promise<void> {
  for (let tries = 0; tries < 100 && (await signalEmbedded(dataDir, 'SIGINT')); tries++) await wait(100);
  await removeEmbedded(dataDir);
}
