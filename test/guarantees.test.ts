// docs/guarantees.md and the fault scenarios belong together: none is forgotten, none is made up.
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { SCENARIOS } from './faults/scenarios.ts';

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), 'utf8');
const page = read('docs/guarantees.md');

test.each(SCENARIOS.map(({ name }) => name))('the page says what %s is for', (name) => {
  expect(page).toContain(`\`${name}\``);
});

test('every promise has a section, and every file that is named is there', () => {
  for (const promise of ['P1', 'P2', 'P3', 'P4', 'P5', 'P6', 'P7', 'P8']) {
    expect(page).toMatch(new RegExp(`^## ${promise} `, 'm'));
    expect(SCENARIOS.some(({ promises }) => promises.includes(promise)) || promise === 'P4').toBe(true);
  }
  for (const [, path] of page.matchAll(/`((?:test|docs|src)\/[\w/.-]+\.(?:ts|md))`/g)) {
    expect(() => read(path!), path).not.toThrow();
  }
});
