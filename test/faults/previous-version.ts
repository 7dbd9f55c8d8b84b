// The source as it was before the newest migration, from the repository's own history: what still serves while the next
// version is rolled out.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, realpathSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export type PreviousVersion = AsyncDisposable & {
  /** A directory for spawnDispatch(). */
  readonly checkout: string;
  /** The newest migration, which it does not have. */
  readonly without: string;
};

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

/** Undefined, with a reason to `say`, where there is no history: a copy of the files, or a shallow clone. */
export function previousVersion(say: (line: string) => void): PreviousVersion | undefined {
  const without = readdirSync(join(ROOT, 'migrations'))
    .filter((name) => name.endsWith('.sql'))
    .sort()
    .at(-1)!;
  const dir = mkdtempSync(join(tmpdir(), 'dispatch-previous-'));
  const remove = () => rmSync(dir, { recursive: true, force: true });
  try {
    const git = (...args: string[]) =>
      execFileSync('git', ['-C', ROOT, ...args], {
        maxBuffer: 2 ** 28,
        stdio: ['ignore', 'pipe', 'ignore'],
      });
    const added = git('log', '--diff-filter=A', '--format=%H', '--', `migrations/${without}`)
      .toString()
      .trim();
    execFileSync('tar', ['-x', '-C', dir], { input: git('archive', `${added}^`) });
    symlinkSync(realpathSync(join(ROOT, 'node_modules')), join(dir, 'node_modules'));
  } catch (error) {
    remove();
    say(
      `no history to take the version before ${without} from, so this version serves in its place (${error})`,
    );
    return undefined;
  }
  return { checkout: dir, without, [Symbol.asyncDispose]: async () => remove() };
}
