// Every fault scenario, in the order in which they run.
import type { Scenario } from './scenario.ts';
import { clockSteps } from './scenarios/clock-steps.ts';
import { listenHalfOpen } from './scenarios/listen-half-open.ts';
import { longSnapshot } from './scenarios/long-snapshot.ts';
import { migration } from './scenarios/migration.ts';
import { partitionBorder } from './scenarios/partition-border.ts';
import { pgbouncer } from './scenarios/pgbouncer.ts';
import { workerKill } from './scenarios/worker-kill.ts';

export const SCENARIOS: readonly Scenario[] = [
  workerKill,
  pgbouncer,
  listenHalfOpen,
  longSnapshot,
  clockSteps,
  migration,
  partitionBorder,
];
