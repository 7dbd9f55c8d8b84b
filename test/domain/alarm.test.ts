import { expect, test } from 'vitest';
import { createAlarm } from '../../src/domain/alarm.ts';

test('tells each change of state once', () => {
  const told: (readonly [boolean, number])[] = [];
  const alarm = createAlarm(30, (isPassed, value) => told.push([isPassed, value]));
  for (const value of [0, 30, 30.1, 3_600, 31, 30, 0, 40]) alarm(value);
  expect(told).toEqual([
    [true, 30.1],
    [false, 30],
    [true, 40],
  ]);
});
