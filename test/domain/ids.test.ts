import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  createIdSource,
  deliveryIdOf,
  encodeId,
  eventIdOf,
  idBytes,
  idFromUuid,
  MAX_ORDINAL,
  parseEventId,
  parseTenantId,
  timeOfId,
  uuidOf,
} from '../../src/domain/ids.ts';

describe('TypeIDs', () => {
  // From the TypeID specification's valid.yml.
  test.each([
    ['00000000-0000-0000-0000-000000000000', 'prefix_00000000000000000000000000'],
    ['00000000-0000-0000-0000-000000000001', 'prefix_00000000000000000000000001'],
    ['ffffffff-ffff-ffff-ffff-ffffffffffff', 'prefix_7zzzzzzzzzzzzzzzzzzzzzzzzz'],
    ['0110c853-1d09-52d8-d73e-1194e95b5f19', 'prefix_0123456789abcdefghjkmnpqrs'],
    ['01890a5d-ac96-774b-bcce-b302099a8057', 'prefix_01h455vb4pex5vsknk084sn02q'],
  ])('%s is %s, both ways', (uuid, typeId) => {
    expect(idFromUuid('prefix', uuid)).toBe(typeId);
    expect(uuidOf(typeId)).toBe(uuid);
  });

  test('any 16 bytes survive the way there and back, in the same order', () => {
    const bytes = fc.uint8Array({ minLength: 16, maxLength: 16 });
    fc.assert(
      fc.property(bytes, bytes, (a, b) => {
        const textA = encodeId('evt', a);
        expect(Buffer.compare(idBytes(textA), Buffer.from(a))).toBe(0);
        expect(Math.sign(textA < encodeId('evt', b) ? -1 : textA > encodeId('evt', b) ? 1 : 0)).toBe(
          Math.sign(Buffer.compare(Buffer.from(a), Buffer.from(b))),
        );
      }),
    );
  });

  test.each([
    '',
    'evt_',
    'sub_01h455vb4pex5vsknk084sn02q',
    'evt_01H455VB4PEX5VSKNK084SN02Q',
    'evt_81h455vb4pex5vsknk084sn02q',
    'evt_01h455vb4pex5vsknk084sn02l',
    'evt_01h455vb4pex5vsknk084sn02',
    'evt_01h455vb4pex5vsknk084sn02qq',
    "evt_'; DROP TABLE events; --xx",
  ])('refuses %j as an event id, naming the field', (text) => {
    expect(() => parseEventId(text)).toThrow(/^event_id: .*evt_ followed by 26 characters/);
  });
});

describe('event and delivery ids', () => {
  const ids = createIdSource(() => 1_795_000_000_000, randomBytes);

  test('a delivery id leads to its event and back, for every ordinal', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: MAX_ORDINAL }), (ordinal) => {
        const event = ids.eventBytes();
        const delivery = deliveryIdOf(event, ordinal);
        expect(eventIdOf(delivery)).toEqual(event);
        expect(delivery).not.toEqual(event);
      }),
    );
  });

  test('of one millisecond ascend, in the order in which they were made', () => {
    for (const make of [ids.eventBytes, ids.bytes]) {
      const made = Array.from({ length: 10_000 }, make);
      expect(made).toEqual(made.toSorted(Buffer.compare));
      expect(new Set(made.map((id) => id.toString('hex'))).size).toBe(10_000);
    }
  });

  test('are version 7, variant 2, with the time in front', () => {
    const id = ids.eventBytes();
    expect(id[6]! >> 4).toBe(7);
    expect(id[8]! >> 6).toBe(2);
    expect(timeOfId(id)).toBe(1_795_000_000_000);
  });

  test('100,000 of one millisecond are all different', () => {
    expect(new Set(Array.from({ length: 100_000 }, () => ids.eventBytes().toString('hex'))).size).toBe(
      100_000,
    );
  });
});

test.each(['', '-a', '_a', 'A', 'a b', 'a.b', 'ü', 'a'.repeat(64)])('refuses the tenant id %j', (text) => {
  expect(() => parseTenantId(text)).toThrow(/^tenant_id: /);
});
test.each(['a', '0', 'acme', 'a_b-c', 'a'.repeat(63)])('takes the tenant id %j', (text) => {
  expect(parseTenantId(text)).toBe(text);
});
