// Prometheus metrics: one function for each thing that happens. No tenant labels here: their number is not bounded.
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { AttemptEvent } from './events.ts';

const LATENCY_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** The outcome of publishing one event. */
export type PublishOutcome = 'stored' | 'duplicate' | 'refused' | 'failed';

/** Connections to Postgres of the hot statements: in use, idle, and callers waiting for one. */
export type PoolReading = { readonly used: number; readonly idle: number; readonly waiting: number };

/** Readings of a worker, taken when /metrics is asked for. */
export type WorkerGauges = {
  /** Deliveries leased to this process and waiting in its memory. */
  readonly queueDepth: () => number;
  readonly inFlight: () => number;
  /** Results of attempts that are not recorded yet. */
  readonly recordBacklog: () => number;
  readonly endpointPools: () => number;
  /** 1 or 0. */
  readonly steppedBack: () => number;
};

export type Metrics = ReturnType<typeof createMetrics>;

/** How often the event loop's lag is looked at: every 10 ms, as usual, is most of what an idle process does. */
const LOOK_AT_LOOP_MS = 100;

/** Registers everything on a registry of its own. */
export function createMetrics() {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: LOOK_AT_LOOP_MS });
  const registers = [registry];
  // What happens once or more for each event is counted in plain numbers, and handed over when it is asked for.
  const published = { stored: 0, duplicate: 0, refused: 0, failed: 0 };
  new Counter({
    name: 'dispatch_publishes_total',
    help: 'Events that callers published, by outcome.',
    labelNames: ['outcome'],
    registers,
    collect() {
      for (const outcome of Object.keys(published) as PublishOutcome[]) {
        this.inc({ outcome }, published[outcome]);
        published[outcome] = 0;
      }
    },
  });
  const commitSize = new Histogram({
    name: 'dispatch_group_commit_events',
    help: 'Events in one group commit.',
    buckets: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
    registers,
  });
  const commitSeconds = new Histogram({
    name: 'dispatch_group_commit_seconds',
    help: 'Duration of one group commit.',
    buckets: LATENCY_SECONDS,
    registers,
  });
  let succeeded = 0;
  const attempts = new Counter({
    name: 'dispatch_attempts_total',
    help: 'Attempts, by outcome and error class.',
    labelNames: ['outcome', 'error_class'],
    registers,
    collect() {
      this.inc({ outcome: 'succeeded', error_class: '' }, succeeded);
      succeeded = 0;
    },
  });
  const attemptSeconds = new Histogram({
    name: 'dispatch_attempt_seconds',
    help: 'Duration of attempts.',
    buckets: LATENCY_SECONDS,
    registers,
  });
  const lagSeconds = new Histogram({
    name: 'dispatch_delivery_lag_seconds',
    help: 'From a delivery being due to its request being sent.',
    buckets: LATENCY_SECONDS,
    registers,
  });
  const leasesLost = new Counter({
    name: 'dispatch_leases_lost_total',
    help: 'Results that were dropped because another worker had taken the delivery over.',
    registers,
  });
  const claims = new Counter({
    name: 'dispatch_claimed_total',
    help: 'Deliveries claimed from the database.',
    registers,
  });
  const claimSeconds = new Histogram({
    name: 'dispatch_claim_seconds',
    help: 'Duration of claims, with the reading of their events.',
    // With an edge at what they may take: a quantile between 10 and 25 ms would be a guess.
    buckets: [...LATENCY_SECONDS, 0.015, 0.02].sort((a, b) => a - b),
    registers,
  });
  /** Undefined: another instance looks. */
  let oldestSnapshotSeconds: number | undefined;
  new Gauge({
    name: 'dispatch_database_oldest_snapshot_seconds',
    help: 'Age of the oldest snapshot in the database, read each minute by the instance that leads maintenance.',
    aggregator: 'max',
    registers,
    collect() {
      if (oldestSnapshotSeconds === undefined) this.remove();
      else this.set(oldestSnapshotSeconds);
    },
  });
  const rpcSeconds = new Histogram({
    name: 'dispatch_rpc_seconds',
    help: 'Duration of calls, by method and code.',
    labelNames: ['method', 'code'],
    buckets: LATENCY_SECONDS,
    registers,
  });
  /** By method, by code: finding a label's place anew costs more than the rest. */
  const calls = new Map<string, Map<string, Histogram.Internal<'method' | 'code'>>>();
  const removed = new Counter({
    name: 'dispatch_maintenance_rows_total',
    help: 'What maintenance did, by kind.',
    labelNames: ['kind'],
    registers,
  });
  const refusals = new Counter({
    name: 'dispatch_credentials_refused_total',
    help: 'Credentials and permissions that were refused, by reason.',
    labelNames: ['reason'],
    registers,
  });
  const breakers = new Counter({
    name: 'dispatch_breaker_transitions_total',
    help: 'Circuit breakers that this process opened or closed.',
    labelNames: ['phase'],
    registers,
  });
  return {
    registry,
    published: (outcome: PublishOutcome) => {
      published[outcome]++;
    },
    groupCommitted: (eventCount: number, seconds: number) => {
      commitSize.observe(eventCount);
      commitSeconds.observe(seconds);
    },
    attempted: (event: AttemptEvent) => {
      if (event.outcome === 'succeeded') succeeded++;
      else attempts.inc({ outcome: event.outcome, error_class: event.errorClass ?? '' });
      attemptSeconds.observe(event.durationMs / 1000);
      lagSeconds.observe(Math.max(0, event.lagMs) / 1000);
    },
    refused: (reason: string) => refusals.inc({ reason }),
    breakerChanged: (phase: string) => breakers.inc({ phase }),
    /** Registers whether limits are shared; call once. */
    observeLimits: (health: () => 'shared' | 'degraded' | 'local') => {
      new Gauge({
        name: 'dispatch_limits_degraded',
        help: '1 while Redis is configured and away.',
        aggregator: 'max',
        registers,
        collect() {
          this.set(health() === 'degraded' ? 1 : 0);
        },
      });
    },
    leaseLost: (count: number) => leasesLost.inc(count),
    claimed: (count: number) => claims.inc(count),
    /** Registers by how much the host's clock is ahead of the database's; call once. */
    observeClock: (skewSeconds: () => number) => {
      new Gauge({
        name: 'dispatch_clock_skew_seconds',
        help: 'By how much the clock of this host is ahead of the database’s; negative: behind.',
        aggregator: 'average',
        registers,
        collect() {
          this.set(skewSeconds());
        },
      });
    },
    claimTook: (seconds: number) => claimSeconds.observe(seconds),
    oldestSnapshot: (seconds: number | undefined) => {
      oldestSnapshotSeconds = seconds;
    },
    called: (method: string, code: string, seconds: number) => {
      let byCode = calls.get(method);
      if (byCode === undefined) {
        byCode = new Map();
        calls.set(method, byCode);
      }
      let labelled = byCode.get(code);
      if (labelled === undefined) {
        labelled = rpcSeconds.labels(method, code);
        byCode.set(code, labelled);
      }
      labelled.observe(seconds);
    },
    maintained: (kind: string, count: number) => removed.inc({ kind }, count),
    /** Registers the readings of the worker; call once. */
    observeWorker: (gauges: WorkerGauges) => {
      const gauge = (name: string, help: string, read: () => number) =>
        new Gauge({
          name,
          help,
          registers,
          collect() {
            this.set(read());
          },
        });
      gauge(
        'dispatch_queue_depth',
        'Deliveries leased to this process and waiting in its memory.',
        gauges.queueDepth,
      );
      gauge('dispatch_in_flight', 'Requests to endpoints under way.', gauges.inFlight);
      gauge('dispatch_record_backlog', 'Results that are not recorded yet.', gauges.recordBacklog);
      gauge('dispatch_endpoint_pools', 'Origins with open connections.', gauges.endpointPools);
      gauge(
        'dispatch_worker_stepped_back',
        'Workers that leave the cores of their host, which are full, to others: 1 or 0, and with --processes how many.',
        gauges.steppedBack,
      );
    },
    /** Registers the readings of the database's pool; call once. */
    observePool: (read: () => PoolReading) => {
      new Gauge({
        name: 'dispatch_database_connections',
        help: 'Connections of the hot statements, by state; waiting are callers without one.',
        labelNames: ['state'],
        registers,
        collect() {
          const pool = read();
          this.set({ state: 'used' }, pool.used);
          this.set({ state: 'idle' }, pool.idle);
          this.set({ state: 'waiting' }, pool.waiting);
        },
      });
    },
  };
}
