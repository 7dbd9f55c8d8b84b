// A worker is stopped by SIGSTOP for longer than its leases and then goes on, with results of requests that were taken over
// meanwhile: every one of them must match no row. Half of its requests are answered by a failure and half by a success,
// under statuses that no other request gets, while who took over is still waiting for an answer.
import type pg from 'pg';
import { eventually } from '../../support/eventually.ts';
import { numbered, publishAll } from '../publish.ts';
import { type Endpoint, startEndpoint } from '../receiver.ts';
import type { Scenario } from '../scenario.ts';
import { adminOf, subscribe } from '../world.ts';

const LEASE_S = 10;
/** Fewer attempts at each than a breaker opens after. */
const SUBSCRIPTIONS = 25;
const EVENTS = 4;
const PER_STOP = SUBSCRIPTIONS * EVENTS;
/** What only zombies are told: a failure, and a success. */
const LATE_FAILURE = 418;
const LATE_SUCCESS = 218;

export const zombie: Scenario = {
  name: 'zombie',
  about: '500 deliveries taken over from workers that were stopped for longer than their leases and wake up',
  promises: ['P2', 'P3'],
  seconds: 75,
  async run(world) {
    const { url, owner } = await world.database();
    const endpoint = await startEndpoint(world);
    // What it publishes it holds itself, under leases, from the start.
    const sleeper = await world.dispatch(url, 'api,worker', {
      DISPATCH_LEASE_SECONDS: String(LEASE_S),
      DISPATCH_LOG_LEVEL: 'warn',
    });
    await world.dispatch(url, 'worker,maintenance', { DISPATCH_LEASE_SECONDS: String(LEASE_S) });
    const admin = adminOf(sleeper);
    const stops = Math.ceil(world.sized(500, PER_STOP) / PER_STOP);
    let takeovers = 0;
    let stale = 0;
    for (let stop = 0; stop < stops; stop++) {
      const tenantId = `z${stop}`;
      for (let i = 0; i < SUBSCRIPTIONS; i++) await subscribe(admin, tenantId, endpoint.url);
      const requests = holdRequests(endpoint);
      await publishAll(world, admin, tenantId, numbered(EVENTS, stop));
      await eventually(() => atLeast(requests.first.size, PER_STOP, 'deliveries are under way'));
      sleeper.child.kill('SIGSTOP');
      world.timeline.fault('SIGSTOP');
      await eventually(() => atLeast(requests.second.size, PER_STOP, 'deliveries were taken over'));
      takeovers += requests.second.size;
      const before = await rowsOf(owner);
      requests.answerFirst((i) => (i % 2 === 0 ? LATE_FAILURE : LATE_SUCCESS));
      const droppedBefore = droppedBy(sleeper.output());
      sleeper.child.kill('SIGCONT');
      world.timeline.fault('SIGCONT');
      // Each of its results is dropped, or has changed a row.
      await eventually(async () => {
        const changed = changedRows(before, await rowsOf(owner));
        const dropped = droppedBy(sleeper.output()) - droppedBefore;
        atLeast(dropped + changed, PER_STOP, 'late results were dropped or written');
      });
      stale += changedRows(before, await rowsOf(owner));
      requests.answerSecond(() => 204);
    }
    const verdict = await world.judge(url);
    return {
      verdict,
      figures: [
        { name: 'takeovers', value: takeovers, atLeast: world.sized(500) },
        { name: 'late results dropped', value: droppedBy(sleeper.output()), atLeast: takeovers },
        { name: 'stale writes', value: stale, atMost: 0 },
        { name: 'stale attempts', value: await staleAttempts(owner), atMost: 0 },
        { name: 'duplicates ÷ takeovers', value: verdict.duplicated / takeovers, atMost: 1 },
      ],
    };
  },
};

function atLeast(count: number, wanted: number, what: string): void {
  if (count < wanted) throw new Error(`${count} of ${wanted} ${what}`);
}

/** Holds the first two requests of each delivery until they are told what to answer; others get 204 at once. */
function holdRequests(endpoint: Endpoint) {
  const first = new Map<string, (status: number) => void>();
  const second = new Map<string, (status: number) => void>();
  endpoint.answer = ({ deliveryId }) => {
    const held = !first.has(deliveryId) ? first : !second.has(deliveryId) ? second : undefined;
    if (held === undefined) return 204;
    return new Promise((answer) => held.set(deliveryId, answer));
  };
  const answerAll = (held: typeof first) => (statusOf: (i: number) => number) => {
    for (const [i, answer] of [...held.values()].entries()) answer(statusOf(i));
  };
  return { first, second, answerFirst: answerAll(first), answerSecond: answerAll(second) };
}

/** Every unfinished delivery: all that a write would change of it. */
async function rowsOf(owner: pg.Client): Promise<Map<string, string>> {
  const { rows } = await owner.query<{ id: string; state: string }>(
    "SELECT id, concat_ws(' ', lease, run_at, attempt_count) AS state FROM deliveries",
  );
  return new Map(rows.map((row) => [row.id, row.state]));
}

const changedRows = (before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): number =>
  [...before].filter(([id, state]) => after.get(id) !== state).length;

/** Attempts that were stored and are not of those who took over. */
async function staleAttempts(owner: pg.Client): Promise<number> {
  const { rows } = await owner.query<{ n: string }>(
    'SELECT count(*) AS n FROM attempts WHERE status IS DISTINCT FROM 204',
  );
  return Number(rows[0]?.n ?? Number.NaN);
}

/** How many results a process says it dropped. */
const droppedBy = (output: string): number =>
  output
    .split('\n')
    .filter((line) => line.includes('their leases were lost') && line.endsWith('}'))
    .reduce((sum, line) => sum + (JSON.parse(line) as { count: number }).count, 0);
