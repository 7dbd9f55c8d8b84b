import { expect, test } from 'vitest';
import { createGone } from '../../src/delivery/gone.ts';
import type { SubscriptionId, TenantId } from '../../src/domain/ids.ts';

const [a, b] = ['a', 'b'] as TenantId[] as [TenantId, TenantId];
const sub = (name: string) => `sub_${name}` as SubscriptionId;

/** Writes that are done when the test says so. */
function setup() {
  const writes: { tenantId: TenantId; ids: SubscriptionId[]; end: (error?: Error) => void }[] = [];
  const errors: unknown[] = [];
  const gone = createGone({
    disable: (tenantId, reasons) =>
      new Promise((done, fail) => {
        const end = (error?: Error) => (error === undefined ? done() : fail(error));
        writes.push({ tenantId, ids: [...reasons.keys()], end });
      }),
    onError: (error) => errors.push(error),
  });
  const ended = async (i: number, error?: Error) => {
    writes[i]!.end(error);
    await new Promise((done) => setImmediate(done));
  };
  return { gone, errors, ended, written: () => writes.map(({ tenantId, ids }) => [tenantId, ...ids]) };
}

test('a subscription is gone at once, and until its tenant’s configuration says so', async () => {
  const { gone, ended } = setup();
  gone.add(a, sub('1'), 'gone');
  expect(gone.has(sub('1'))).toBe(true);
  expect(gone.has(sub('2'))).toBe(false);
  await ended(0);
  expect(gone.has(sub('1'))).toBe(false);
});

test('those of a tenant that go while it is written to are written together, and each once', async () => {
  const { gone, ended, written } = setup();
  for (const name of ['1', '2', '2', '3', '1']) gone.add(a, sub(name), 'gone');
  gone.add(b, sub('4'), 'gone');
  expect(written()).toEqual([
    [a, sub('1')],
    [b, sub('4')],
  ]);
  await ended(0);
  expect(written().at(-1)).toEqual([a, sub('2'), sub('3')]);
  expect([sub('1'), sub('2'), sub('3')].map(gone.has)).toEqual([false, true, true]);
  await ended(2);
  expect(written()).toHaveLength(3);
  expect([sub('2'), sub('3')].map(gone.has)).toEqual([false, false]);
});

test('one that could not be written is not gone: its next answer says it again', async () => {
  const { gone, errors, ended, written } = setup();
  gone.add(a, sub('1'), 'gone');
  await ended(0, new Error('the database is away'));
  expect(errors).toEqual([new Error('the database is away')]);
  expect(gone.has(sub('1'))).toBe(false);
  gone.add(a, sub('1'), 'gone');
  expect(written()).toEqual([
    [a, sub('1')],
    [a, sub('1')],
  ]);
});
