import { randomBytes } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { apiKeyMatches, formatApiKey, hashApiKey, keyIdOf } from '../../src/domain/api-key.ts';
import { createIdSource, type KeyId } from '../../src/domain/ids.ts';
import { seal, unseal, unsealerOf } from '../../src/domain/sealing.ts';

describe('sealed secrets', () => {
  const keys = [
    { id: 'k2', key: randomBytes(32) },
    { id: 'k1', key: randomBytes(32) },
  ];
  const context = { tenantId: 'acme', resourceId: 'sub_1', column: 'secret' };
  const sealed = seal(keys, context, Buffer.from('hello'), randomBytes(12));

  test('open with the same context, also when the sealing key is not the first any more', () => {
    expect(unseal([...keys].reverse(), context, sealed).toString()).toBe('hello');
  });
  test.each([{ tenantId: 'other' }, { resourceId: 'sub_2' }, { column: 'x' }])(
    'do not open when moved: %j',
    (moved) => {
      expect(() => unseal(keys, { ...context, ...moved }, sealed)).toThrow();
    },
  );
  test('open many at once, each under the key of its own tenant and master key', () => {
    const unsealMany = unsealerOf(keys);
    const places = ['acme', 'other'].flatMap((tenantId) =>
      [keys, [...keys].reverse()].map((under) => ({ context: { ...context, tenantId }, under })),
    );
    for (const place of [...places, ...places]) {
      const of = seal(place.under, place.context, Buffer.from(place.context.tenantId), randomBytes(12));
      expect(unsealMany(place.context, of).toString()).toBe(place.context.tenantId);
      expect(() => unsealMany({ ...place.context, tenantId: 'third' }, of)).toThrow();
      expect(() => unsealMany(place.context, { ...of, masterKeyId: 'k3' })).toThrow('"k3"');
    }
  });
  test('do not open when a bit was changed', () => {
    for (let i = 0; i < sealed.bytes.length; i++) {
      const bytes = Buffer.from(sealed.bytes);
      bytes[i]! ^= 1;
      expect(() => unseal(keys, context, { ...sealed, bytes })).toThrow();
    }
  });
  test('name the master key that is missing', () => {
    expect(() => unseal(keys.slice(1), context, sealed)).toThrow(
      'master key "k2" is not in DISPATCH_MASTER_KEYS',
    );
  });
  test('do not contain the secret', () => {
    expect(sealed.bytes.includes('hello')).toBe(false);
  });
});

describe('API keys', () => {
  const keyId = createIdSource(Date.now, randomBytes).next<KeyId>('key');
  const key = formatApiKey(keyId, randomBytes(32));

  test('have the documented form and lead to their id', () => {
    expect(key).toMatch(/^dsp_live_[0-9a-z]{26}_[0-9A-Za-z]{49}$/);
    expect(keyIdOf(key)).toBe(keyId);
  });
  test('are refused with any character changed', () => {
    for (let i = 0; i < key.length; i++) {
      const other = key.slice(0, i) + (key[i] === 'A' ? 'B' : 'A') + key.slice(i + 1);
      expect(keyIdOf(other)).toBeUndefined();
      expect(apiKeyMatches(other, hashApiKey(key))).toBe(false);
    }
    expect(apiKeyMatches(key, hashApiKey(key))).toBe(true);
  });
});
