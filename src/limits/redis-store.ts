// The store in Redis: two scripts, each on one key of its tenant's hash slot. A script that Redis does not know (it
// was restarted, or a replica took over) is sent again by the client.
import { readFileSync } from 'node:fs';
import type { BreakerState } from '../domain/breaker.ts';
import type { LimitsClient } from './redis-client.ts';
import { type BreakerKey, type BreakerView, breakerName, bucketName, type LimitStore } from './store.ts';

const BUCKET = readFileSync(new URL('./bucket.lua', import.meta.url), 'utf8');
const BREAKER = readFileSync(new URL('./breaker.lua', import.meta.url), 'utf8');

type Answer = [BreakerState['phase'], number, number, number, number, BreakerState['reason'], number, number];

/** `nowMs` replaces Redis's own clock; for tests. */
export function createRedisStore(client: LimitsClient, nowMs?: () => number): LimitStore {
  const bucket = client.script('dispatchBucket', BUCKET);
  const breaker = client.script('dispatchBreaker', BREAKER);

  async function ask(key: BreakerKey, ...call: (string | number)[]): Promise<Answer> {
    const now = nowMs === undefined ? '' : Math.floor(nowMs());
    return (await breaker(breakerName(key), [now, ...call])) as Answer;
  }

  return {
    async take(key, spec, want) {
      const now = nowMs === undefined ? '' : Math.floor(nowMs() * 1000);
      const { intervalUs, toleranceUs, horizonUs } = spec;
      const answer = await bucket(bucketName(key), [now, intervalUs, toleranceUs, horizonUs, want]);
      const [granted, start, wait] = answer as [string, string, string];
      return { granted: Number(granted), startInUs: Number(start), waitUs: Number(wait), intervalUs };
    },
    async report(key, { attempts, failures, trailing }) {
      return viewOf(await ask(key, 'report', attempts, failures, trailing));
    },
    async askProbe(key, holder, leaseMs, knownOpenCount) {
      const answer = await ask(key, 'ask', holder, leaseMs, knownOpenCount);
      return { ...viewOf(answer), granted: answer[6] === 1, waitMs: answer[7] };
    },
    async endProbe(key, holder, outcome) {
      return viewOf(await ask(key, 'finish', holder, outcome));
    },
  };
}

function viewOf([phase, changed, openForMs, openCount, closedAgoMs, reason]: Answer): BreakerView {
  return { phase, changed: changed === 1, openForMs, openCount, closedAgoMs, reason };
}
