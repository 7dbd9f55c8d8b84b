import { setTimeout as wait } from 'node:timers/promises';

/**
 * Asks until the answer is right: resolves with the first value that `check` returns without throwing. Fails with
 * the last error after `withinMs`, which is generous: it bounds a hang, it does not measure.
 */
export async function eventually<T>(check: () => T | Promise<T>, withinMs = 30_000): Promise<T> {
  const deadline = performance.now() + withinMs;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await wait(20);
    }
  }
}
