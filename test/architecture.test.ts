import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';

const SRC = resolve(import.meta.dirname, '../src');

/** Lower layers first; a folder may import lower layers and itself, never a neighbour. */
const LAYERS: readonly (readonly string[])[] = [
  ['domain', 'heap.ts'],
  ['telemetry', 'config.ts'],
  ['storage', 'limits', 'egress'],
  ['publishing', 'delivery', 'maintenance'],
  ['rpc'],
  ['compose', 'install.ts'],
  ['quick-start.ts'],
  ['processes.ts'],
  ['main.ts'],
];
/** Neighbours that may meet: the log's settings are configuration. */
const NEIGHBOURS = new Set(['telemetry → config.ts']);

const unitOf = (file: string) => relative(SRC, file).split('/')[0]!;
const layerOf = (unit: string) => LAYERS.findIndex((units) => units.includes(unit));

const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .map((name) => join(SRC, name));

function importsOf(file: string): string[] {
  const text = readFileSync(file, 'utf8');
  const statements = /^(?:(?:import|export)\b[^'"]*?from\s+|import\s+)'([^']+)'|\bimport\('([^']+)'\)/gms;
  return [...text.matchAll(statements)].map((match) => (match[1] ?? match[2])!);
}

/** Why an import is not allowed, or undefined. */
function problemOf(file: string, target: string): string | undefined {
  const from = unitOf(file);
  if (target.startsWith('.')) {
    const path = resolve(dirname(file), target);
    if (path.startsWith(resolve(SRC, '../gen'))) {
      return from === 'rpc' ? undefined : 'generated code is the wire: only rpc/ may know it';
    }
    if (!path.startsWith(SRC)) return 'it leads out of src/';
    const to = unitOf(path);
    if (from === to || NEIGHBOURS.has(`${from} → ${to}`)) return undefined;
    if (layerOf(to) === layerOf(from))
      return 'folders of one layer never import each other: compose/ joins them';
    return layerOf(to) < layerOf(from) ? undefined : 'a lower layer must not know a higher one';
  }
  if (from === 'domain' && !['node:crypto', 'node:buffer', 'node:zlib'].includes(target)) {
    return 'domain/ is pure: no I/O, clock, randomness or library';
  }
  return undefined;
}

describe('the import rule', () => {
  test('main.ts says how V8 shall work before it loads anything else', () => {
    expect(importsOf(join(SRC, 'main.ts'))[0]).toBe('./heap.ts');
  });

  test('every file of src/ lies in a known layer', () => {
    expect(files.filter((file) => layerOf(unitOf(file)) < 0)).toEqual([]);
  });

  test('imports go from higher layers to lower ones only', () => {
    const broken = files.flatMap((file) =>
      importsOf(file).flatMap((target) => {
        const problem = problemOf(file, target);
        return problem === undefined ? [] : [`${relative(SRC, file)} imports ${target}: ${problem}`];
      }),
    );
    expect(broken).toEqual([]);
  });

  test('the rule catches an import that breaks it', () => {
    expect(problemOf(join(SRC, 'domain/ids.ts'), '../storage/claims.ts')).toMatch('must not know a higher');
    expect(problemOf(join(SRC, 'publishing/replay.ts'), '../delivery/worker.ts')).toMatch('one layer');
    expect(problemOf(join(SRC, 'domain/ids.ts'), 'node:fs')).toMatch('pure');
    expect(problemOf(join(SRC, 'storage/claims.ts'), '../../gen/dispatch/v1/event_pb.ts')).toMatch(
      'only rpc/',
    );
  });

  test('only config.ts reads the environment', () => {
    const readers = files.filter((file) => /process\.env\b/.test(readFileSync(file, 'utf8')));
    expect(readers.map(unitOf)).toEqual(['config.ts']);
  });

  test('domain/ has no clock and no randomness', () => {
    const impure = files
      .filter((file) => unitOf(file) === 'domain')
      .filter((file) =>
        /Date\.now|Math\.random|performance\.now|randomBytes\(\)|new Date\(\)/.test(
          readFileSync(file, 'utf8'),
        ),
      );
    expect(impure).toEqual([]);
  });
});

describe('what a process loads', () => {
  /** Imports of values that are loaded with a file, not later by `import()`. */
  const loadedWith = (file: string) => {
    const text = readFileSync(file, 'utf8');
    const statements = /^(?:import|export)\s(?!type\b)(?:[^'"]*?from\s+)?'([^']+)'/gms;
    return [...text.matchAll(statements)].map((match) => match[1]!);
  };

  function allLoadedWith(file: string, seen = new Set<string>()): Set<string> {
    for (const target of loadedWith(file)) {
      const name = target.startsWith('.') ? resolve(dirname(file), target) : target;
      if (seen.has(name)) continue;
      seen.add(name);
      if (name.startsWith(SRC)) allLoadedWith(name, seen);
    }
    return seen;
  }
  const ofCalls = /^@grpc|^@connectrpc|^@bufbuild|\/gen\/|\/rpc\/\w+-service/;

  test('without the api role is nothing that serves calls', () => {
    const loaded = [...allLoadedWith(join(SRC, 'compose/instance.ts'))];
    expect(loaded).toContain(join(SRC, 'delivery/worker.ts'));
    expect(loaded.filter((name) => ofCalls.test(name))).toEqual([]);
  });

  test('with it is all of that', () => {
    const loaded = [...allLoadedWith(join(SRC, 'compose/api.ts'))];
    expect(loaded.filter((name) => ofCalls.test(name))).toContain('@grpc/grpc-js');
    expect(loaded).toContain(join(SRC, 'rpc/publish-service.ts'));
  });
});

describe('rows of queries', () => {
  /** zod compiles a schema at the first row that it parses: one made for each query is compiled for each. */
  const MADE_IN_A_FUNCTION = /^[ \t]+(?:const \w+ =\s+|return |.*sql\.type\(\s*)z\./gm;

  test('are parsed by schemas that were made once', () => {
    const made = files.flatMap((file) => {
      const found = readFileSync(file, 'utf8').match(MADE_IN_A_FUNCTION) ?? [];
      return found.map((line) => `${relative(SRC, file)}: ${line.trim()}`);
    });
    expect(made).toEqual([]);
  });

  test('and the rule sees one that is made in a function', () => {
    expect('  const rows = await db.any(sql.type(z.object({}))`'.match(MADE_IN_A_FUNCTION)).not.toBeNull();
    expect('  return db.any(sql.type(\n    z.object({}),\n  )`'.match(MADE_IN_A_FUNCTION)).not.toBeNull();
    expect('    const row = z.object({});'.match(MADE_IN_A_FUNCTION)).not.toBeNull();
    expect('const row = z.object({});'.match(MADE_IN_A_FUNCTION)).toBeNull();
  });
});
