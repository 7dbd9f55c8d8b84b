// The pure models: rates as slots, breakers, quotas, and the parts of caps.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { shareOfCap } from '../../src/delivery/gates.ts';
import {
  askProbe,
  type BreakerState,
  endProbe,
  PRISTINE,
  rampPerSecond,
  reportAttempts,
} from '../../src/domain/breaker.ts';
import { pace, shareOf, takeSlots, tokenBucket } from '../../src/domain/bucket.ts';
import { Violations } from '../../src/domain/errors.ts';
import { checkQuota, DEFAULT_QUOTA, QUOTA_FIELDS, quotaProblem } from '../../src/domain/quota.ts';

describe('a rate', () => {
  test('never gives more than rate × time + burst, whenever and however much is asked for', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0.1, max: 10_000, noNaN: true }),
        fc.integer({ min: 1, max: 500 }),
        fc.array(fc.tuple(fc.integer({ min: 0, max: 2_000_000 }), fc.integer({ min: 0, max: 1_000 })), {
          maxLength: 60,
        }),
        (perSecond, burst, asks) => {
          const spec = tokenBucket(perSecond, burst);
          let nextUs = 0;
          let nowUs = 1e15;
          const startUs = nowUs;
          let granted = 0;
          for (const [later, want] of asks) {
            nowUs += later;
            const step = takeSlots(nextUs, spec, nowUs, want);
            nextUs = step.nextUs;
            granted += step.taken.granted;
            expect(granted).toBeLessThanOrEqual(
              burst + ((nowUs - startUs) / 1e6) * perSecond + 1e-3 * perSecond + 1,
            );
            if (step.taken.granted < want) {
              // What it says to wait is enough, and no more than a hair too much.
              const after = takeSlots(nextUs, spec, nowUs + step.taken.waitUs + 1, 1);
              expect(after.taken.granted).toBe(1);
            }
          }
        },
      ),
    );
  });

  test('paced slots are used at their interval, and parts of a rate add up to it', () => {
    const spec = pace(50);
    const first = takeSlots(0, spec, 1e15, 100).taken;
    expect(first).toMatchObject({ granted: 16, startInUs: -100_000, intervalUs: 20_000 }); // 0.1 s back, 0.2 s ahead
    const quarter = shareOf(spec, 1 / 4);
    expect(quarter.intervalUs).toBe(80_000);
  });
});

describe('parts of a cap', () => {
  test('add up to the cap over all workers, whatever its size', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1_000 }),
        fc.integer({ min: 1, max: 50 }),
        fc.string(),
        (cap, count, seed) => {
          let sum = 0;
          for (let rank = 0; rank < count; rank++)
            sum += shareOfCap(cap, { count, rank, isSettled: true }, seed);
          expect(sum).toBe(cap);
        },
      ),
    );
  });

  test('of a worker that others may not know of yet is none', () => {
    expect(shareOfCap(100, { count: 2, rank: 1, isSettled: false }, 'x')).toBe(0);
  });
});

describe('a breaker', () => {
  const fail = (state: BreakerState, times: number, nowMs: number) =>
    reportAttempts(state, { attempts: times, failures: times, trailing: times }, nowMs);
  const now = 1_790_000_000_000;

  test('opens at the fifth failure in a row and not before, a success in between starts anew', () => {
    expect(fail(PRISTINE, 4, now).phase).toBe('closed');
    expect(fail(fail(PRISTINE, 4, now), 1, now)).toMatchObject({
      phase: 'open',
      reason: 'consecutive_failures',
    });
    const mixed = reportAttempts(fail(PRISTINE, 4, now), { attempts: 2, failures: 1, trailing: 1 }, now);
    expect(mixed).toMatchObject({ phase: 'closed', consecutive: 1 });
  });

  test('opens at half of 20 attempts in 60 s, and forgets what is older', () => {
    const report = { attempts: 2, failures: 1, trailing: 0 };
    let state = PRISTINE;
    for (let i = 0; i < 9; i++) state = reportAttempts(state, report, now);
    expect(state.phase).toBe('closed');
    expect(reportAttempts(state, report, now)).toMatchObject({ phase: 'open', reason: 'failure_rate' });
    expect(reportAttempts(state, report, now + 60_000).phase).toBe('closed');
  });

  test('lets one probe out at a time, doubles its time at each failure up to 10 min, and closes after three successes', () => {
    let state = fail(PRISTINE, 5, now);
    let at = now;
    const waits: number[] = [];
    for (let i = 0; i < 7; i++) {
      waits.push(state.openUntilMs - at);
      expect(askProbe(state, 'a', 10_000, 0, state.openUntilMs - 1).granted).toBe(false);
      at = state.openUntilMs;
      const asked = askProbe(state, 'a', 10_000, 0, at);
      expect(asked.granted).toBe(true);
      expect(askProbe(asked.state, 'b', 10_000, 0, at)).toMatchObject({ granted: false, waitMs: 10_000 });
      expect(endProbe(asked.state, 'b', 'succeeded', at)).toBe(asked.state); // not its holder
      state = endProbe(asked.state, 'a', 'failed', at);
    }
    expect(waits).toEqual([30_000, 60_000, 120_000, 240_000, 480_000, 600_000, 600_000]);
    at = state.openUntilMs;
    for (let i = 0; i < 3; i++) {
      expect(state.phase).not.toBe('closed');
      state = endProbe(askProbe(state, 'a', 10_000, 0, at).state, 'a', 'succeeded', at);
    }
    expect(state).toMatchObject({ phase: 'closed', closedAtMs: at });
    expect(fail(state, 5, at + 599_999).openCount).toBe(9);
    expect(fail(state, 5, at + 600_000).openCount).toBe(1);
  });

  test('never sticks: a probe whose holder vanished goes to another once its lease has run out', () => {
    const open = fail(PRISTINE, 5, now);
    const asked = askProbe(open, 'a', 10_000, 0, open.openUntilMs).state;
    expect(askProbe(asked, 'b', 10_000, 0, open.openUntilMs + 9_999).granted).toBe(false);
    expect(askProbe(asked, 'b', 10_000, 0, open.openUntilMs + 10_000).granted).toBe(true);
  });

  test('ramps up from 10 a second, twice as many every 5 s, for a minute', () => {
    expect([0, 4_999, 5_000, 10_000, 59_999].map(rampPerSecond)).toEqual([10, 10, 20, 40, 20_480]);
    expect(rampPerSecond(60_000)).toBeUndefined();
  });
});

describe('quotas', () => {
  test('the defaults are within their own limits', () => {
    for (const field of QUOTA_FIELDS) expect(quotaProblem(field, DEFAULT_QUOTA[field])).toBeUndefined();
  });

  test.each([
    ['publishPerSecond', -1],
    ['publishPerSecond', 0.0001],
    ['publishPerSecond', Number.NaN],
    ['eventsPerDay', 1.5],
    ['maxPayloadBytes', 0],
    ['maxPayloadBytes', 2 ** 20 + 1],
    ['maxSubscriptions', 10_001],
    ['historyDays', 3_651],
  ] as const)('%s of %s is refused, with what would be right', (field, value) => {
    const wrong = new Violations();
    checkQuota({ [field]: value }, 'quota', wrong);
    expect(wrong.list[0]!.field).toMatch(/^quota\.[a-z_]+$/);
    expect(wrong.list[0]!.description).toMatch(/must be/);
  });
});
