// Receivers that do what a receiver should not: every attempt ends in time, with the right reason, and leaves nothing.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { BEHAVIOURS } from '../support/hostile.ts';
import type { HostileReport } from '../support/hostile-run.ts';

const DEADLINE_MS = 1_000;
const ATTEMPTS = 100;
const RUN = new URL('../support/hostile-run.ts', import.meta.url).pathname;

test(`there are at least 40 behaviours (${BEHAVIOURS.length}), of different names`, () => {
  expect(BEHAVIOURS.length).toBeGreaterThanOrEqual(40);
  expect(new Set(BEHAVIOURS.map((b) => b.name)).size).toBe(BEHAVIOURS.length);
});

describe(`each of them, ${ATTEMPTS} times`, () => {
  test('ends by the deadline, with its error class, once; memory and descriptors come back', async () => {
    const args = [RUN, String(DEADLINE_MS), String(ATTEMPTS)];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    const report = JSON.parse(stdout) as HostileReport;
    const { latestMs, addedMb, descriptorsBefore, descriptorsAfter } = report;
    console.log(
      `hostile receivers: ${BEHAVIOURS.length} × ${ATTEMPTS}, latest ${latestMs} ms (deadline ${DEADLINE_MS}), ` +
        `memory +${addedMb} MB at most, descriptors ${descriptorsBefore} → ${descriptorsAfter}`,
    );
    expect(report.wrong).toEqual([]);
    expect(latestMs).toBeLessThanOrEqual(DEADLINE_MS + 1_000);
    expect(addedMb).toBeLessThanOrEqual(100);
    // Of thousands of connections none is left; one or two may be what the process itself opened meanwhile.
    expect(descriptorsAfter).toBeLessThanOrEqual(descriptorsBefore + 2);
  }, 180_000);
});
