// Generates the code again, elsewhere, and compares: what is committed in gen/ must be what the contract says.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

function filesOf(directory: string): Map<string, string> {
  const names = readdirSync(directory, { recursive: true, encoding: 'utf8' }).filter((n) =>
    n.endsWith('.ts'),
  );
  return new Map(names.sort().map((name) => [name, readFileSync(join(directory, name), 'utf8')]));
}

const fresh = mkdtempSync(join(tmpdir(), 'dispatch-gen-'));
try {
  execFileSync('buf', ['generate', '--output', fresh], { stdio: 'inherit' });
  const expected = filesOf(join(fresh, 'gen'));
  const actual = filesOf('gen');
  const names = new Set([...expected.keys(), ...actual.keys()]);
  const different = [...names].filter((name) => expected.get(name) !== actual.get(name));
  if (different.length > 0) {
    process.stderr.write(`gen/ is not what proto/ says; run "npm run gen": ${different.join(', ')}\n`);
    process.exitCode = 1;
  }
} finally {
  rmSync(fresh, { recursive: true, force: true });
}
