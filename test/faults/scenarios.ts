// Every fault scenario, in the order in which they run.
import type { Scenario } from './scenario.ts';
import { allInOne } from './scenarios/all-in-one.ts';
import { allInOneRestart } from './scenarios/all-in-one-restart.ts';
import { apiKill } from './scenarios/api-kill.ts';
import { backendKill } from './scenarios/backend-kill.ts';
import { clockSteps } from './scenarios/clock-steps.ts';
import { endpointReturns } from './scenarios/endpoint-returns.ts';
import { goneEndpoints } from './scenarios/gone-endpoints.ts';
import { hostile } from './scenarios/hostile.ts';
import { listenHalfOpen } from './scenarios/listen-half-open.ts';
import { longSnapshot } from './scenarios/long-snapshot.ts';
import { migration } from './scenarios/migration.ts';
import { partitionBorder } from './scenarios/partition-border.ts';
import { pgbouncer } from './scenarios/pgbouncer.ts';
import { postgresRestart } from './scenarios/postgres-restart.ts';
import { promotion } from './scenarios/promotion.ts';
import { publishCut } from './scenarios/publish-cut.ts';
import { readOnlyAndFull } from './scenarios/read-only-and-full.ts';
import { redis } from './scenarios/redis.ts';
import { retryAfter } from './scenarios/retry-after.ts';
import { rollingRestart } from './scenarios/rolling-restart.ts';
import { scale } from './scenarios/scale.ts';
import { soak } from './scenarios/soak.ts';
import { ssrf } from './scenarios/ssrf.ts';
import { workerKill } from './scenarios/worker-kill.ts';
import { workerPoints } from './scenarios/worker-points.ts';
import { zombie } from './scenarios/zombie.ts';

export const SCENARIOS: readonly Scenario[] = [
  workerKill,
  workerPoints,
  zombie,
  apiKill,
  publishCut,
  allInOne,
  postgresRestart,
  backendKill,
  promotion,
  readOnlyAndFull,
  pgbouncer,
  listenHalfOpen,
  longSnapshot,
  clockSteps,
  migration,
  partitionBorder,
  redis,
  rollingRestart,
  endpointReturns,
  goneEndpoints,
  scale,
  hostile,
  ssrf,
  soak,
  allInOneRestart,
  retryAfter,
];
