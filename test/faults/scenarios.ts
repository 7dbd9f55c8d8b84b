// Every fault scenario, in the order in which they run.
import type { Scenario } from './scenario.ts';
import { backendKill } from './scenarios/backend-kill.ts';
import { postgresRestart } from './scenarios/postgres-restart.ts';
import { promotion } from './scenarios/promotion.ts';
import { readOnlyAndFull } from './scenarios/read-only-and-full.ts';
import { workerKill } from './scenarios/worker-kill.ts';

export const SCENARIOS: readonly Scenario[] = [
  workerKill,
  postgresRestart,
  backendKill,
  promotion,
  readOnlyAndFull,
];
