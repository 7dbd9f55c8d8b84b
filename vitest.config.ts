import { defineConfig } from 'vitest/config';

// `unit` needs nothing but Node. The others run against a real PostgreSQL, which globalSetup finds or starts.
const onPostgres = {
  globalSetup: ['test/support/postgres.ts'],
  testTimeout: 120_000,
  hookTimeout: 120_000,
};

export default defineConfig({
  test: {
    reporters: ['default'],
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/e2e/**', 'test/storage/**', 'test/limits/**', 'test/faults/**'],
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          ...onPostgres,
          name: 'service',
          include: ['test/{e2e,storage,limits,faults}/**/*.test.ts'],
          exclude: ['test/faults/timed.test.ts'],
          // Two cores are shared by the databases, the services and their receivers. Most of these tests wait for a span
          // of time most of the time.
          maxWorkers: 2,
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
