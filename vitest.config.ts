import { defineConfig } from 'vitest/config';

// `unit` needs nothing but Node; `service` runs against a real PostgreSQL, which globalSetup finds or starts.
export default defineConfig({
  test: {
    reporters: ['default'],
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/e2e/**', 'test/storage/**', 'test/limits/**', 'test/faults/**'],
        },
      },
      {
        test: {
          name: 'service',
          include: [
            'test/e2e/**/*.test.ts',
            'test/storage/**/*.test.ts',
            'test/limits/**/*.test.ts',
            'test/faults/**/*.test.ts',
          ],
          globalSetup: ['test/support/postgres.ts'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
          // Two cores are shared by the database, the service and its receivers: one file at a time.
          fileParallelism: false,
        },
      },
    ],
  },
});
