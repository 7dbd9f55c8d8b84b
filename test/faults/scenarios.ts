// Every fault scenario, in the order in which they run.
import type { Scenario } from './scenario.ts';
import { allInOneRestart } from './scenarios/all-in-one-restart.ts';
import { endpointReturns } from './scenarios/endpoint-returns.ts';
import { goneEndpoints } from './scenarios/gone-endpoints.ts';
import { redis } from './scenarios/redis.ts';
import { retryAfter } from './scenarios/retry-after.ts';
import { rollingRestart } from './scenarios/rolling-restart.ts';
import { workerKill } from './scenarios/worker-kill.ts';

export const SCENARIOS: readonly Scenario[] = [
  workerKill,
  redis,
  rollingRestart,
  allInOneRestart,
  endpointReturns,
  goneEndpoints,
  retryAfter,
];
