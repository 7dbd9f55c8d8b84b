import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

// `unit` needs nothing but Node. The others run against a real PostgreSQL, which globalSetup finds or starts.
const onPostgres = {
  globalSetup: ['test/support/postgres.ts'],
  testTimeout: 120_000,
  hookTimeout: 120_000,
};

/** Files that take minutes begin first, so that none of them is left alone at the end. */
const LONGEST = [
  'e2e/limits',
  'faults/untimed',
  'e2e/service',
  'e2e/replays',
  'e2e/order',
  'e2e/endpoint-life',
  'faults/mutants',
  'e2e/hardening',
  'e2e/tenancy',
];
const rankOf = ({ moduleId }: TestSpecification) => {
  const rank = LONGEST.findIndex((name) => moduleId.endsWith(`test/${name}.test.ts`));
  return rank < 0 ? LONGEST.length : rank;
};

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return (await super.sort(files)).sort((a, b) => rankOf(a) - rankOf(b));
  }
}

export default defineConfig({
  test: {
    reporters: ['default'],
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/e2e/**', 'test/storage/**', 'test/limits/**', 'test/faults/**'],
          maxWorkers: 2, // of two cores one would be left idle
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          ...onPostgres,
          name: 'service',
          include: ['test/{e2e,storage,limits,faults}/**/*.test.ts'],
          exclude: ['test/faults/timed.test.ts'],
          // Most of these tests wait for a span of time most of the time: two at a time leave a quarter of two cores idle.
          maxWorkers: 3,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          ...onPostgres,
          name: 'timed',
          include: ['test/faults/timed.test.ts'],
          fileParallelism: false,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
