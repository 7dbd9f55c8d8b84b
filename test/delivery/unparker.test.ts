import { afterEach, expect, test, vi } from 'vitest';
import { startUnparker } from '../../src/delivery/unparker.ts';
import { type ParkedPosition, parkedFrom, type Unparked } from '../../src/storage/parking.ts';

afterEach(() => void vi.useRealTimers());

const EVERY_MS = 20_000;
/** Where a look that goes on begins, from the beginning of the one before the last. */
const ON_MS = 55_000;
const NOTHING = { count: 0, next: undefined };
const NEXT: ParkedPosition = { atUs: 7, uuid: '00000000-0000-7000-8000-000000000001' };
const MORE = { count: 5_000, next: NEXT };
type Look = Omit<Unparked, 'nowUs'> | Error;
type Took = { readonly front: number; readonly other: number };

/** One whose looks find `found`, one after the other and the last from then on; those that begin at the front find `inFront`. */
function setup(found: readonly Look[], inFront: Look = NOTHING, tookMs: Took = { front: 0, other: 0 }) {
  vi.useFakeTimers({ now: 0 });
  const fronts: number[] = [];
  const looks: { atMs: number; after: ParkedPosition | undefined }[] = [];
  const errors: unknown[] = [];
  const unparker = startUnparker({
    async unpark(after) {
      const isFront = after?.atUs === 0;
      const next = isFront ? inFront : found[Math.min(looks.length, found.length - 1)]!;
      const nowUs = Date.now() * 1000;
      if (isFront) fronts.push(Date.now());
      else looks.push({ atMs: Date.now(), after });
      const ms = isFront ? tookMs.front : tookMs.other;
      if (ms > 0) await new Promise((done) => setTimeout(done, ms));
      if (next instanceof Error) throw next;
      return { ...next, nowUs };
    },
    onError: (error) => errors.push(error),
  });
  return { unparker, fronts, looks, errors, times: () => looks.map(({ atMs }) => atMs) };
}

/** Ends it beside statements that take up to `ms`. */
async function end(unparker: AsyncDisposable, ms = 0): Promise<void> {
  const ended = unparker[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(ms);
  await ended;
}

test('a look comes every twenty seconds and goes on shortly before where the one before the last came to', async () => {
  const { unparker, looks } = setup([NOTHING]);
  await vi.advanceTimersByTimeAsync(5 * EVERY_MS);
  const after = [0, 0, 1, 2, 3].map((i) => parkedFrom((i * EVERY_MS + ON_MS) * 1000));
  expect(looks).toEqual([undefined, ...after].map((from, i) => ({ atMs: i * EVERY_MS, after: from })));
  await end(unparker);
});

test('one begins at the front each minute, beside the others, and seldom where that takes long', async () => {
  const { unparker, fronts, times } = setup([NOTHING], NOTHING, { front: 10_000, other: 0 });
  await vi.advanceTimersByTimeAsync(60_000);
  expect(times()).toEqual([0, 1, 2, 3].map((i) => i * EVERY_MS));
  await vi.advanceTimersByTimeAsync(150_000);
  expect(fronts).toEqual([0, 210_000]);
  await end(unparker, 10_000);
  const quick = setup([NOTHING]);
  await vi.advanceTimersByTimeAsync(120_000);
  expect(quick.fronts).toEqual([0, 60_000, 120_000]);
  await end(quick.unparker);
});

test('while there is more it is taken out from where the last call ended, in half of the time', async () => {
  const { unparker, looks } = setup([MORE, MORE, MORE, NOTHING], NOTHING, { front: 0, other: 400 });
  await vi.advanceTimersByTimeAsync(2_400);
  expect(looks).toEqual([
    { atMs: 0, after: undefined },
    { atMs: 400, after: NEXT },
    { atMs: 1_200, after: NEXT },
    { atMs: 2_000, after: NEXT },
  ]);
  await vi.advanceTimersByTimeAsync(EVERY_MS);
  // From when the first call of the look began: what is committed since lies behind.
  expect(looks[4]).toEqual({ atMs: 22_400, after: parkedFrom(ON_MS * 1000) });
  await end(unparker, 400);
});

test('what there is more at the front is taken out in the same way, and does not make the next look there come later', async () => {
  const { unparker, looks, fronts } = setup([NOTHING, MORE, NOTHING], MORE, { front: 0, other: 5_000 });
  await vi.advanceTimersByTimeAsync(80_000);
  expect(looks.slice(0, 3)).toEqual([
    { atMs: 0, after: undefined },
    { atMs: 0, after: NEXT },
    { atMs: 10_000, after: NEXT },
  ]);
  expect(fronts).toEqual([0, 75_000]);
  await end(unparker, 10_000);
});

test('after the end nothing more is taken out, also where it comes between two calls', async () => {
  const { unparker, looks } = setup([MORE], NOTHING, { front: 0, other: 400 });
  await vi.advanceTimersByTimeAsync(900);
  expect(looks).toHaveLength(2);
  await end(unparker, 400);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(looks).toHaveLength(2);
});

test('the end waits for the call that is under way', async () => {
  const { unparker } = setup([NOTHING], NOTHING, { front: 0, other: 400 });
  let isEnded = false;
  const ended = unparker[Symbol.asyncDispose]().then(() => {
    isEnded = true;
  });
  await vi.advanceTimersByTimeAsync(399);
  expect(isEnded).toBe(false);
  await vi.advanceTimersByTimeAsync(1);
  await ended;
});

test('a look that fails is told of and comes again a second later from where it was to begin', async () => {
  const away = new Error('away');
  const { unparker, looks, errors } = setup([NOTHING, MORE, away, NOTHING]);
  await vi.advanceTimersByTimeAsync(EVERY_MS + 2_000);
  expect(errors).toEqual([away]);
  const on = parkedFrom(ON_MS * 1000);
  expect(looks).toEqual([
    { atMs: 0, after: undefined },
    { atMs: 20_000, after: on },
    { atMs: 20_000, after: NEXT },
    { atMs: 21_000, after: on },
  ]);
  await end(unparker);
});

test('where the front cannot be looked at in time, the other looks go on meanwhile, and it is tried seldom', async () => {
  const tooLong = new Error('statement timeout');
  const { unparker, fronts, times, errors } = setup([NOTHING], tooLong, { front: 30_000, other: 0 });
  await vi.advanceTimersByTimeAsync(62_000);
  expect([errors, fronts]).toEqual([[tooLong], [0]]);
  expect(times()).toEqual([0, 1, 2, 3].map((i) => i * EVERY_MS));
  await vi.advanceTimersByTimeAsync(568_000);
  expect(fronts).toEqual([0, 630_000]);
  await end(unparker, 30_000);
});

test('however long a look from the front took, the next comes ten minutes later', async () => {
  const { unparker, fronts } = setup([NOTHING], NOTHING, { front: 3_600_000, other: 0 });
  await vi.advanceTimersByTimeAsync(4_200_000);
  expect(fronts).toEqual([0, 4_200_000]);
  await end(unparker, 3_600_000);
});

test('a look from the front that fails at once, or later, comes again a second later', async () => {
  const { unparker, fronts, errors } = setup([NOTHING], new Error('away'));
  await vi.advanceTimersByTimeAsync(2_500);
  expect([fronts, errors.length]).toEqual([[0, 1_000, 2_000], 3]);
  await end(unparker);
  const later = setup([NOTHING, new Error('away'), NOTHING], MORE);
  await vi.advanceTimersByTimeAsync(2_500);
  expect([later.fronts, later.errors.length]).toEqual([[0, 1_000], 1]);
  await end(later.unparker);
  const slow = setup([NOTHING, new Error('away'), NOTHING], MORE, { front: 10_000, other: 0 });
  await vi.advanceTimersByTimeAsync(200_000);
  expect([slow.fronts, slow.errors.length]).toEqual([[0], 1]);
  await end(slow.unparker, 10_000);
});
