import { setImmediate as turn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { type CoreTicks, createSeat } from '../../src/delivery/seat.ts';

/** The host counts no ticks at all. */
const NOTHING = -1;

/** One host with `free` seats; looks() passes a second in which `part` of its cores was free, and says whether one is back. */
function setup(free: number | undefined) {
  let nowMs = 0;
  let ticks: CoreTicks | undefined = { all: 0, free: 0 };
  let isHeld = false;
  const host = { free, asked: 0, givenBack: 0, utilization: 0.95 };
  const seat = createSeat({
    coreTicks: () => ticks,
    utilization: () => host.utilization,
    holds: () => isHeld,
    take: async () => {
      host.asked++;
      if (host.free === undefined) return undefined;
      if (host.free === 0) return false;
      host.free--;
      isHeld = true;
      return true;
    },
    giveBack: async () => {
      host.givenBack++;
      host.free = (host.free ?? 0) + 1;
      isHeld = false;
    },
    now: () => nowMs,
  });
  seat.stepsBack();
  const looks = async (part: number | undefined, afterMs = 1_000): Promise<boolean> => {
    nowMs += afterMs;
    const { all, free: was } = ticks ?? { all: 0, free: 0 };
    const passed = part === NOTHING ? 0 : 1_000;
    ticks = part === undefined ? undefined : { all: all + passed, free: was + passed * part };
    seat.stepsBack();
    await turn(); // the answer about a seat
    return seat.stepsBack();
  };
  return { host, looks, isBack: seat.isBack, hasSeat: () => isHeld };
}

test('a worker steps back while the cores are full and all seats taken, and comes back when cores are free', async () => {
  const { host, looks, isBack } = setup(0);
  expect(await looks(0.01)).toBe(true);
  expect(isBack()).toBe(true);
  host.utilization = 0; // as it has stepped back
  expect(await looks(0.02)).toBe(true);
  expect(await looks(0.09)).toBe(true); // a little is free because it has stepped back
  expect(host.asked).toBe(3);
  expect(await looks(0.2)).toBe(true); // a moment
  expect(await looks(0.02)).toBe(true);
  expect(await looks(0.2)).toBe(true);
  expect(await looks(0.2)).toBe(false);
  expect(isBack()).toBe(false);
});

test('one that came back because cores were free stays for ten seconds: the others do not fill them alone', async () => {
  const { host, looks } = setup(0);
  await looks(0.01);
  await looks(0.2);
  expect(await looks(0.2)).toBe(false);
  const { asked } = host;
  for (let s = 0; s < 9; s++) expect(await looks(0.01)).toBe(false);
  expect(host.asked).toBe(asked);
  expect(await looks(0.01)).toBe(true);
});

test('a little that is free for a moment does not take the seat of one that has it', async () => {
  const { host, looks, hasSeat } = setup(1);
  await looks(0.01);
  await looks(0.09);
  expect(hasSeat()).toBe(true);
  expect(host.givenBack).toBe(0);
});

test('a timer that is early is a second, too', async () => {
  const { looks } = setup(0);
  expect(await looks(0.01, 999)).toBe(true);
});

test('one with a seat goes on while the cores are full', async () => {
  const { host, looks, hasSeat } = setup(1);
  for (let i = 0; i < 5; i++) expect(await looks(0.01)).toBe(false);
  expect(hasSeat()).toBe(true);
  expect(host).toMatchObject({ asked: 1, givenBack: 0 });
});

test('one that has stepped back takes a seat as soon as one is left, and keeps it though it had little to do', async () => {
  const { host, looks, hasSeat } = setup(0);
  await looks(0.01);
  host.utilization = 0;
  host.free = 1;
  expect(await looks(0.01)).toBe(false);
  expect(hasSeat()).toBe(true);
  expect(await looks(0.01)).toBe(false);
  host.utilization = 0.95;
  expect(await looks(0.01)).toBe(false);
  expect(host.givenBack).toBe(0);
});

test('cores of which some are free need no seats, and one that is held is given back', async () => {
  const { host, looks, hasSeat } = setup(1);
  expect(await looks(0.06)).toBe(false);
  expect(host.asked).toBe(0);
  await looks(0.01);
  expect(hasSeat()).toBe(true);
  await looks(0.3);
  expect(hasSeat()).toBe(false);
});

test('one whose endpoints are what is slow needs no seat, and never steps back', async () => {
  const { host, looks, hasSeat } = setup(1);
  await looks(0.01);
  expect(hasSeat()).toBe(true);
  host.utilization = 0.3;
  expect(await looks(0.01)).toBe(false);
  expect(hasSeat()).toBe(false);
  host.free = 0;
  expect(await looks(0.01)).toBe(false);
  expect(host.asked).toBe(1);
});

test.each([
  ['nobody can be asked for a seat', undefined, 0.01, 1_000],
  ['the host does not tell of its cores', 0, undefined, 1_000],
  ['the host says nothing but zeros of them', 0, NOTHING, 1_000],
  ['it has not looked for long', 0, 0.01, 60_000],
] as const)('none steps back when %s', async (_, seats, part, afterMs) => {
  const { looks } = setup(seats);
  for (let i = 0; i < 3; i++) expect(await looks(part, afterMs)).toBe(false);
});

test('it looks once a second, however often it is asked', async () => {
  const { host, looks } = setup(0);
  for (let i = 0; i < 90; i++) expect(await looks(0, 10)).toBe(false);
  expect(host.asked).toBe(0);
  for (let i = 0; i < 10; i++) await looks(0, 10);
  expect(host.asked).toBe(1);
  for (let i = 0; i < 80; i++) await looks(0, 10);
  expect(host.asked).toBe(1);
});
