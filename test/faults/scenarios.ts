// Every fault scenario, in the order in which they run.
import type { Scenario } from './scenario.ts';
import { hostile } from './scenarios/hostile.ts';
import { ssrf } from './scenarios/ssrf.ts';
import { workerKill } from './scenarios/worker-kill.ts';

export const SCENARIOS: readonly Scenario[] = [workerKill, hostile, ssrf];
