// Messages about tenants and their history: quotas, policies, usage, filters.
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import {
  DeadLetterFilterSchema,
  EventReplayFilterSchema,
} from '../../../gen/dispatch/v1/dead_letter_service_pb.ts';
import {
  GetUsageRequestSchema,
  QuotaSchema,
  TenantPolicySchema,
} from '../../../gen/dispatch/v1/tenant_service_pb.ts';
import { Violations } from '../../../src/domain/errors.ts';
import { checkPolicy, DEFAULT_POLICY } from '../../../src/domain/policy.ts';
import { checkQuota, DEFAULT_QUOTA, QUOTA_FIELDS } from '../../../src/domain/quota.ts';
import { filterToWire, toFilter } from '../../../src/rpc/dead-letter-messages.ts';
import { toEventFilter } from '../../../src/rpc/replay-messages.ts';
import {
  mergeQuota,
  parseUsageRequest,
  policyFromWire,
  quotaAnswer,
  quotaFromWire,
} from '../../../src/rpc/tenant-messages.ts';
import { assertStorable, JSON_WORDS, read, same, seedsOf, TIME_WORDS } from '../messages.ts';
import { decoded, ensure, type Target } from '../target.ts';

const NOW = Date.UTC(2026, 10, 24, 10);
const ID = '01h455vb4pex5vsknk084sn02q';

const quota: Target = {
  name: 'quota',
  about: 'quotas that are taken are shown as they were given',
  seeds: seedsOf(
    QuotaSchema,
    { publishPerSecond: 0.5, publishBurst: 7n, eventsPerDay: 1_000_000n, maxPayloadBytes: 1024, weight: 3 },
    { allowHttpEndpoints: true, maxBacklog: 9_007_199_254_740_993n, historyDays: 30, maxInFlight: 1 },
  ),
  words: [
    ...JSON_WORDS,
    'publishPerSecond',
    'eventsPerMonth',
    'weight',
    'maxSubscriptions',
    '"9007199254740993"',
  ],
  run(input) {
    const message = read(QuotaSchema, input);
    if (message === undefined) return;
    const given = quotaFromWire(message);
    const taken = decoded(() => {
      const wrong = new Violations();
      checkQuota(given, 'quota', wrong);
      wrong.throwIfAny();
      return mergeQuota({}, given, QUOTA_FIELDS);
    });
    if (taken === undefined) return;
    const { own } = quotaAnswer(taken, DEFAULT_QUOTA);
    const again = fromBinary(QuotaSchema, toBinary(QuotaSchema, create(QuotaSchema, own)));
    ensure(same(quotaFromWire(again), taken), 'what is shown means something else');
  },
};

const policy: Target = {
  name: 'policy',
  about: 'policies that are taken are numbers that can be stored and added to a time',
  seeds: seedsOf(
    TenantPolicySchema,
    { requireVerification: true, autoDisableAfter: { seconds: 86_400n }, autoDisableFailures: 5 },
    { probeInterval: { seconds: 60n }, deadLetterDays: 7, deadLetterExpiry: 1 },
  ),
  words: [
    ...JSON_WORDS,
    ...TIME_WORDS,
    'autoDisableAfter',
    'probeInterval',
    'deadLetterDays',
    'deadLetterExpiry',
  ],
  run(input) {
    const message = read(TenantPolicySchema, input);
    if (message === undefined) return;
    const given = policyFromWire(message);
    decoded(() => {
      const wrong = new Violations();
      checkPolicy(given, 'policy', wrong);
      wrong.throwIfAny();
      const inForce = { ...DEFAULT_POLICY, ...given };
      for (const value of Object.values(inForce))
        if (typeof value === 'number') ensure(Number.isFinite(value) && value >= 0, `a value is ${value}`);
    });
  },
};

const usage: Target = {
  name: 'usage',
  about: 'a time that is asked for begins, ends, and has at most 1,000 intervals',
  seeds: seedsOf(
    GetUsageRequestSchema,
    {
      tenantId: 'acme',
      interval: 1,
      startTime: { seconds: 1_795_000_000n },
      endTime: { seconds: 1_795_100_000n },
    },
    { interval: 2 },
  ),
  words: [...JSON_WORDS, ...TIME_WORDS, 'startTime', 'endTime', 'interval', 'USAGE_INTERVAL_DAY'],
  run(input) {
    const message = read(GetUsageRequestSchema, input);
    if (message === undefined) return;
    const asked = decoded(() => parseUsageRequest(message, NOW));
    if (asked === undefined) return;
    const { startMs, endMs, interval } = asked;
    ensure(startMs < endMs, 'it ends before it begins');
    const width = interval === 'hour' ? 3_600_000 : 86_400_000;
    ensure((endMs - startMs) / width <= 1_000, 'there are more intervals');
    new Date(startMs).toISOString();
    new Date(endMs).toISOString();
  },
};

const deadLetterFilter: Target = {
  name: 'dead-letter-filter',
  about: 'a filter that is taken is shown as it was given',
  seeds: seedsOf(
    DeadLetterFilterSchema,
    { subscriptionId: `sub_${ID}`, eventType: 'order.*', reason: 1, lastStatus: 500, archived: true },
    {
      startTime: { seconds: 1_795_000_000n, nanos: 1_000_000 },
      endTime: { seconds: 1_795_000_001n },
      lastStatus: -1,
    },
    { lastErrorClass: 'timeout' },
  ),
  words: [
    ...JSON_WORDS,
    ...TIME_WORDS,
    'startTime',
    'endTime',
    'lastStatus',
    'eventType',
    '"a.**"',
    `"sub_${ID}"`,
  ],
  run(input) {
    const message = read(DeadLetterFilterSchema, input);
    if (message === undefined) return;
    const filter = decoded(() => toFilter(message));
    if (filter === undefined) return;
    assertStorable(filter);
    const again = fromBinary(DeadLetterFilterSchema, toBinary(DeadLetterFilterSchema, filterToWire(filter)));
    ensure(same(toFilter(again), filter), 'what is shown means something else');
  },
};

const eventFilter: Target = {
  name: 'event-filter',
  about: 'a filter that is taken can be stored, and says from when',
  seeds: seedsOf(
    EventReplayFilterSchema,
    {
      startTime: { seconds: 1_795_000_000n },
      endTime: { seconds: 1_795_000_001n },
      eventType: 'a.*',
      missing: true,
    },
    { eventIds: [`evt_${ID}`, `evt_${ID}`] },
  ),
  words: [...JSON_WORDS, ...TIME_WORDS, 'startTime', 'eventIds', `"evt_${ID}"`, 'missing'],
  run(input) {
    const message = read(EventReplayFilterSchema, input);
    if (message === undefined) return;
    const filter = decoded(() => toEventFilter(message));
    if (filter === undefined) return;
    assertStorable(filter);
    ensure(filter.startMs !== undefined || (filter.eventIds?.length ?? 0) > 0, 'it has no beginning');
  },
};

export const FILTER_TARGETS: readonly Target[] = [quota, policy, usage, deadLetterFilter, eventFilter];
