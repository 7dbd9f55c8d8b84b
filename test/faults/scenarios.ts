// Every fault scenario, in the order in which they run.
import type { Scenario } from './scenario.ts';
import { redis } from './scenarios/redis.ts';
import { workerKill } from './scenarios/worker-kill.ts';

export const SCENARIOS: readonly Scenario[] = [workerKill, redis];
