// Redis is stopped, killed, paused, flushed and replaced by its replica under load. Publishing and deliveries go on,
// limits are looser by their stated bound (docs/limits.md), and all is as before within 5 s of its return (promise P5).
import { setTimeout as wait } from 'node:timers/promises';
import pg from 'pg';
import { attemptsAtMs } from '../../support/attempts.ts';
import { eventually } from '../../support/eventually.ts';
import type { DispatchProcess } from '../../support/processes.ts';
import { startBareWrites } from '../bare-writes.ts';
import { fullest, quantile, type Span } from '../figures.ts';
import { type HandOver, handOversOf, looserBySeconds } from '../hands.ts';
import { type RedisFault, startMovingRedis } from '../moving-redis.ts';
import { startProducer } from '../producer.ts';
import { startEndpoint } from '../receiver.ts';
import type { Figure, Scenario } from '../scenario.ts';
import { adminOf, subscribe, type World } from '../world.ts';

const TENANT = 'acme';
const PER_SECOND = 200;
/** Of the subscription that is slower than what is published. */
const LIMIT = 100;
const WARM_MS = 2_000;
/** What is published in peace between two faults is what publishes under faults are compared with. */
const CALM_MS = 400;
/** Ready for this long without a break means back. */
const STABLE_MS = 400;
const BACK_WITHIN_MS = 5_000;
/** Publishes may take so much longer under faults, p99. */
const MORE_MS = 60;
const POLL_MS = 50;
/** Rates hold over windows of all these lengths. */
const WINDOWS_MS = [1_000, 2_000, 5_000, 10_000];

export const redis: Scenario = {
  name: 'redis',
  about: 'Redis stopped, killed, paused, flushed and failed over 20 times each at 200 publishes/s',
  promises: ['P1', 'P2', 'P5'],
  seconds: 180,
  isTimed: true,
  async run(world) {
    const { url } = await world.database();
    const { url: redisUrl, faults } = await startMovingRedis(world);
    const endpoint = await startEndpoint(world);
    // Everything in each process: each publishes, delivers and keeps limits, and logs in whose hands they are.
    const settings = { DISPATCH_REDIS_URL: redisUrl, DISPATCH_LOG_LEVEL: 'info' };
    const start = () => world.dispatch(url, 'api,worker,maintenance', settings);
    const processes = await Promise.all([start(), start()]);
    const clients = processes.map(adminOf);
    const admin = clients[0]!;
    await subscribe(admin, TENANT, endpoint.url);
    const limited = await subscribe(admin, TENANT, `${endpoint.url}/limited`, { maxPerSecond: LIMIT });
    // Far above the load: each process has to ask for tokens, and none is refused.
    const quota = { publishPerSecond: 50_000, eventsPerDay: 100_000_000n };
    await admin.tenants.setQuota({ tenantId: TENANT, quota });

    // From the first delivery on: calls of a process that is not compiled yet may take more than 50 ms, too.
    const watch = world.use(watchReadiness(processes));
    const producer = startProducer(world, {
      tenantIds: [TENANT],
      clients: () => clients,
      perSecond: PER_SECOND,
      batch: 1,
      concurrency: 64, // a stall of 300 ms is measured by as many calls as it meets
    });
    const bareWrites = await startBareWrites(url, { asCalled: true });
    const latencies = new Map<string, number[]>();
    const measure = async (name: string, work: () => Promise<unknown>): Promise<void> => {
      const from = producer.latencies.length;
      await work();
      latencies.set(name, [...(latencies.get(name) ?? []), ...producer.latencies.slice(from)]);
    };
    await wait(WARM_MS); // connections are made, code is compiled
    const run: Run = { world, watch, forgottenAtMs: [], backMs: 0 };
    const rounds = world.sized(20);
    for (let round = 0; round < rounds; round++) {
      for (const fault of faults) {
        await measure('calm', () => wait(CALM_MS));
        await measure(fault.name, () => suffer(run, fault));
      }
    }
    const bareMs = await bareWrites.stop();
    await producer.stop();
    const stoppedAtMs = Date.now();
    await admin.subscriptions.updateSubscription({
      tenantId: TENANT,
      subscription: { subscriptionId: limited },
      updateMask: { paths: ['max_per_second'] },
    });
    const verdict = await world.judge(url);
    const atMs = (await attemptsOf(url, limited)).filter((at) => at <= stoppedAtMs);
    const away = rounds * faults.filter(({ isAway }) => isAway).length;
    const calm = quantile(latencies.get('calm')!, 0.99);
    const suffered = faults.flatMap(({ name }) => latencies.get(name)!);
    const handOvers = processes.map((process) => handOversOf(process.output()));
    return {
      verdict,
      figures: [
        { name: 'faults', value: rounds * faults.length },
        { name: 'failed publishes', value: sumOf(producer.failures.values()), atMost: 0 },
        { name: 'duplicates', value: verdict.duplicated, atMost: 0 },
        { name: 'p99 of publishes, ms', value: calm },
        ...faults.map(({ name }) => ({ name, value: quantile(latencies.get(name)!, 0.99) })),
        ...moreFigures(quantile(suffered, 0.99), calm, bareMs, world.scale === 1),
        ...WINDOWS_MS.map((windowMs) => rateFigure(atMs, windowMs, handOvers, run.forgottenAtMs)),
        { name: 'changes of hands', value: handOvers.flat().length, atLeast: 2 * processes.length * away },
        { name: 'ready again after, ms', value: run.backMs, atMost: BACK_WITHIN_MS },
      ],
    };
  },
};

const sumOf = (counts: Iterable<number>) => [...counts].reduce((sum, n) => sum + n, 0);

type Run = {
  readonly world: World;
  readonly watch: ReturnType<typeof watchReadiness>;
  /** When Redis was made to forget what had been taken; Unix ms. */
  readonly forgottenAtMs: number[];
  /** The longest time that it took to be ready again. */
  backMs: number;
};

/** One fault, until all is as before. */
async function suffer(run: Run, { name, isAway, begin, end }: RedisFault): Promise<void> {
  const { world, watch } = run;
  // Killed it is away for longer: most of a window then holds the parts of a rate that each process has by itself.
  const awayMs = name === 'killed' ? world.between(1_500, 2_500) : world.between(400, 800);
  world.timeline.fault(name);
  await begin();
  if (name === 'flushed') run.forgottenAtMs.push(Date.now());
  if (isAway) {
    const awayUntil = performance.now() + awayMs;
    await eventually(() => {
      if (!watch.texts.every((text) => text.startsWith('degraded'))) {
        throw new Error(`Redis is ${name}, and /readyz says ${watch.texts}`);
      }
    }, BACK_WITHIN_MS);
    await wait(Math.max(0, awayUntil - performance.now()));
    await end();
    world.timeline.fault('back');
  }
  const endedAt = performance.now();
  await watch.polled(); // what is known is younger than the end of the fault
  let notReadyAt = endedAt;
  while (performance.now() - notReadyAt < STABLE_MS) {
    if (watch.texts.some((text) => text !== 'ready\n')) notReadyAt = performance.now();
    if (notReadyAt - endedAt > 2 * BACK_WITHIN_MS) throw new Error(`${name}, back, and never ready again`);
    await wait(10);
  }
  run.backMs = Math.max(run.backMs, notReadyAt - endedAt);
}

/** What /readyz says, asked again and again. */
function watchReadiness(processes: readonly DispatchProcess[]) {
  const texts = processes.map(() => 'ready\n');
  const stopping = new AbortController();
  let polls = 0;
  const polling = (async () => {
    while (!stopping.signal.aborted) {
      await Promise.all(
        processes.map(async ({ httpPort }, i) => {
          texts[i] = await (await fetch(`http://127.0.0.1:${httpPort}/readyz`)).text();
        }),
      );
      polls++;
      await wait(POLL_MS);
    }
  })();
  polling.catch(() => {}); // the processes live: whoever waits for the next poll hears of it
  const watch = {
    /** The last answers. */
    texts: texts as readonly string[],
    /** Resolves when all were asked and answered from now on. */
    async polled(): Promise<void> {
      const until = polls + 2;
      await Promise.race([
        polling.then(() => {
          throw new Error('/readyz is not asked any more');
        }),
        eventually(() => {
          if (polls < until) throw new Error('/readyz does not answer');
        }),
      ]);
    },
    async [Symbol.asyncDispose]() {
      stopping.abort();
      await polling.catch(() => {});
    },
  };
  return watch;
}

/**
 * How much more publishes take under faults than in peace, which must keep its bound as it is at full size. Of a tenth of
 * it, a machine that stands still for half a second is more than a hundredth: there bare writes are what is compared with,
 * if they take longer than publishes in peace.
 */
function moreFigures(
  sufferedMs: number,
  calmMs: number,
  bareMs: readonly number[],
  isFullSize: boolean,
): Figure[] {
  const bareP99Ms = quantile(bareMs, 0.99);
  return [
    { name: 'more under faults, ms', value: sufferedMs - calmMs, ...(isFullSize && { atMost: MORE_MS }) },
    { name: 'bare write p99, ms', value: bareP99Ms },
    { name: 'more than both, ms', value: sufferedMs - Math.max(calmMs, bareP99Ms), atMost: MORE_MS },
  ];
}

async function attemptsOf(ownerUrl: string, subscriptionId: string): Promise<number[]> {
  const owner = new pg.Client({ connectionString: ownerUrl });
  await owner.connect();
  try {
    return await attemptsAtMs(owner, subscriptionId);
  } finally {
    await owner.end();
  }
}

/**
 * How full the fullest window was, as a share of its bound: the rate; what a slot may be late and what may be caught up
 * (0.4 s, 4 % of 10 s); what limits that changed hands let pass; and each time that Redis forgot, what had been taken
 * ahead and what may be caught up (0.3 s).
 */
function rateFigure(
  atMs: readonly number[],
  windowMs: number,
  handOvers: readonly (readonly HandOver[])[],
  forgottenAtMs: readonly number[],
): Figure {
  const boundOf = (window: Span) => {
    const forgotten = forgottenAtMs.filter((at) => at > window.fromMs - 300 && at <= window.toMs).length;
    return LIMIT * (windowMs / 1000 + 0.4 + 0.3 * forgotten + looserBySeconds(handOvers, window));
  };
  const { share } = fullest(atMs, windowMs, boundOf);
  return { name: `fullest ${windowMs / 1000} s ÷ its bound`, value: share, atMost: 1 };
}
