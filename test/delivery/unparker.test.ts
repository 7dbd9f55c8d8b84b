import { afterEach, expect, test, vi } from 'vitest';
import { startUnparker } from '../../src/delivery/unparker.ts';
import { type ParkedPosition, parkedFrom, type Unparked } from '../../src/storage/parking.ts';

afterEach(() => void vi.useRealTimers());

const EVERY_MS = 15_000;
/** Where looks begin that go on: half a minute from the last, so half a minute before where it came to. */
const ON_MS = 30_000;
const NOTHING = { count: 0, next: undefined };
type Look = Omit<Unparked, 'nowUs'> | Error;

/** One whose looks find `found`, one after the other and the last from then on; those from the front take some time. */
function setup(found: readonly Look[], frontMs = 0) {
  vi.useFakeTimers({ now: 0 });
  const looks: { atMs: number; after: ParkedPosition | undefined }[] = [];
  const errors: unknown[] = [];
  const unparker = startUnparker({
    async unpark(after) {
      const next = found[Math.min(looks.length, found.length - 1)]!;
      const nowUs = Date.now() * 1000;
      looks.push({ atMs: Date.now(), after });
      if (isFront(after) && frontMs > 0) await new Promise((done) => setTimeout(done, frontMs));
      if (next instanceof Error) throw next;
      return { ...next, nowUs };
    },
    onError: (error) => errors.push(error),
  });
  const fronts = () => looks.filter(({ after }) => isFront(after)).map(({ atMs }) => atMs);
  return { unparker, looks, errors, fronts, times: () => looks.map(({ atMs }) => atMs) };
}

const isFront = (after: ParkedPosition | undefined) => after?.atUs === 0;

test('a look comes every fifteen seconds, begins well before where the last one came to, and each minute at the front', async () => {
  const { unparker, looks, fronts } = setup([NOTHING]);
  await vi.advanceTimersByTimeAsync(5 * EVERY_MS);
  expect(fronts()).toEqual([0, 60_000]);
  expect(looks).toEqual(
    [0, 1, 2, 3, 4, 5].map((i) => ({
      atMs: i * EVERY_MS,
      after: parkedFrom(i % 4 === 0 ? 0 : ((i - 1) * EVERY_MS + ON_MS) * 1000),
    })),
  );
  await unparker[Symbol.asyncDispose]();
});

test('while there is more it is taken out from where the last call ended, in half of the time', async () => {
  const next = { atUs: 7, uuid: '00000000-0000-7000-8000-000000000001' };
  const { unparker, looks } = setup([{ count: 5_000, next }, NOTHING], 400);
  await vi.advanceTimersByTimeAsync(799);
  expect(looks).toHaveLength(1);
  await vi.advanceTimersByTimeAsync(1);
  expect(looks).toEqual([
    { atMs: 0, after: parkedFrom(0) },
    { atMs: 800, after: next },
  ]);
  await vi.advanceTimersByTimeAsync(EVERY_MS);
  // From when the first call of the round began: what is committed since lies behind.
  expect(looks[2]).toEqual({ atMs: 15_800, after: parkedFrom(ON_MS * 1000) });
  await unparker[Symbol.asyncDispose]();
});

test('none begins while the last one is under way, and none follows after the end', async () => {
  const next = { atUs: 7, uuid: '00000000-0000-7000-8000-000000000001' };
  const { unparker, looks } = setup([{ count: 5_000, next }], 40_000);
  await vi.advanceTimersByTimeAsync(39_000);
  const ended = unparker[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(200_000);
  await ended;
  expect(looks).toHaveLength(1);
});

test('a look that fails is told of and comes again a second later from where it was to begin', async () => {
  const away = new Error('away');
  const { unparker, looks, errors } = setup([away, NOTHING, away, NOTHING]);
  await vi.advanceTimersByTimeAsync(EVERY_MS + 2_000);
  expect(errors).toEqual([away, away]);
  const on = parkedFrom((1_000 + ON_MS) * 1000);
  expect(looks).toEqual([
    { atMs: 0, after: parkedFrom(0) },
    { atMs: 1_000, after: parkedFrom(0) },
    { atMs: 16_000, after: on },
    { atMs: 17_000, after: on },
  ]);
  await unparker[Symbol.asyncDispose]();
});

test('where the front cannot be looked at in time, looks go on from ten minutes ago and after, and it is tried seldom', async () => {
  const tooLong = new Error('statement timeout');
  const { unparker, looks, errors, fronts } = setup([tooLong, NOTHING], 30_000);
  await vi.advanceTimersByTimeAsync(46_000);
  expect(errors).toEqual([tooLong]);
  expect(looks).toEqual([
    { atMs: 0, after: parkedFrom(0) },
    { atMs: 31_000, after: undefined },
    { atMs: 46_000, after: parkedFrom((31_000 + ON_MS) * 1000) },
  ]);
  await vi.advanceTimersByTimeAsync(600_000);
  expect(fronts()).toEqual([0, 631_000]);
  const ended = unparker[Symbol.asyncDispose]();
  await vi.advanceTimersByTimeAsync(30_000);
  await ended;
});
