// The contract may grow and not break: compared with the last commit of main (with the parent, when on main itself
// and clean). Says so when there is nothing to compare with.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const git = (...args: string[]) =>
  execFileSync('git', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });

function base(): string | undefined {
  for (const name of ['origin/main', 'main', 'HEAD']) {
    try {
      const commit = git('rev-parse', '--verify', `${name}^{commit}`).trim();
      const isHere = commit === git('rev-parse', 'HEAD').trim();
      const changed = isHere && git('status', '--porcelain', 'proto').trim() !== '';
      return isHere && !changed ? git('rev-parse', '--verify', 'HEAD~1^{commit}').trim() : commit;
    } catch {
      // There is no such name here: the next one may do.
    }
  }
  return undefined;
}

const against = base();
if (against === undefined) {
  process.stdout.write('buf breaking: no earlier commit to compare with\n');
} else if (git('ls-tree', '-r', '--name-only', against, 'proto').trim() === '') {
  process.stdout.write(`buf breaking: ${against.slice(0, 12)} has no contract to compare with\n`);
} else {
  const before = mkdtempSync(join(tmpdir(), 'dispatch-proto-'));
  try {
    const archive = execFileSync('git', ['archive', against, 'proto']);
    execFileSync('tar', ['-x', '-C', before], { input: archive });
    cpSync('proto', join(before, 'now'), { recursive: true });
    // From outside the checkout, so that each side is a module of its own and buf's default rules (FILE) hold.
    const options = { cwd: before, stdio: 'inherit' } as const;
    execFileSync('buf', ['breaking', 'now', '--against', 'proto'], options);
    process.stdout.write(`buf breaking: nothing breaks against ${against.slice(0, 12)}\n`);
  } catch {
    process.stderr.write(`buf breaking: the contract breaks clients of ${against.slice(0, 12)}\n`);
    process.exitCode = 1;
  } finally {
    rmSync(before, { recursive: true, force: true });
  }
}
