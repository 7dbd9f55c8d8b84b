// Builds of dispatch that break a promise on purpose: a copy of the source with one text replaced.
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export type Mutation = {
  /** From the root of the repository. */
  readonly file: string;
  /** Must occur exactly once, so that a change of the source does not make a mutant harmless unseen. */
  readonly find: string;
  readonly replace: string;
};

export type Checkout = AsyncDisposable & { readonly path: string };

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const COPIED = ['src', 'gen', 'proto', 'migrations', 'package.json'];

/** A copy of what runs, in a folder of its own, with the mutation. */
export async function mutated({ file, find, replace }: Mutation): Promise<Checkout> {
  const path = await mkdtemp(join(tmpdir(), 'dispatch-mutant-'));
  for (const part of COPIED) await cp(join(ROOT, part), join(path, part), { recursive: true });
  await symlink(join(ROOT, 'node_modules'), join(path, 'node_modules'));
  const source = await readFile(join(path, file), 'utf8');
  const parts = source.split(find);
  if (parts.length !== 2) {
    await rm(path, { recursive: true });
    throw new Error(`${file} has ${parts.length - 1} times, and should have once: ${find}`);
  }
  await writeFile(join(path, file), parts.join(replace));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
}
