import { randomBytes } from 'node:crypto';
import { isIPv6 } from 'node:net';
import { describe, expect, test } from 'vitest';
import { createAddressGuard } from '../../src/egress/guard.ts';

const guard = createAddressGuard([]);

describe('the address guard', () => {
  test.each([
    '0.0.0.0',
    '10.1.2.3',
    '100.64.0.1',
    '127.0.0.1',
    '127.255.255.254',
    '169.254.169.254',
    '172.16.0.1',
    '172.31.255.255',
    '192.0.0.1',
    '192.0.2.1',
    '192.88.99.1',
    '192.168.1.1',
    '198.18.0.1',
    '198.19.255.255',
    '198.51.100.1',
    '203.0.113.1',
    '224.0.0.1',
    '240.0.0.1',
    '255.255.255.255',
    '168.63.129.16',
    '::',
    '::1',
    'fe80::1',
    'fc00::1',
    'fd12::1',
    'ff02::1',
    '64:ff9b::1',
    '2001::1',
    '2001:db8::1',
    '2002::1',
    '3fff::1',
    '4000::1',
    '::ffff:127.0.0.1',
    '::ffff:10.0.0.1',
    '::ffff:7f00:1',
    '0:0:0:0:0:ffff:a00:1',
    'fe80::1%eth0',
    '',
    'x',
    '1.2.3',
    '1.2.3.4.5',
  ])('refuses %s', (address) => {
    expect(guard.allows(address)).toBe(false);
  });

  test.each([
    '1.1.1.1',
    '8.8.8.8',
    '100.63.255.255',
    '100.128.0.0',
    '172.15.0.1',
    '172.32.0.1',
    '192.167.0.1',
    '198.17.0.1',
    '223.255.255.255',
    '2606:4700::1111',
    '2a00:1450::1',
    '::ffff:8.8.8.8',
  ])('takes %s', (address) => {
    expect(guard.allows(address)).toBe(true);
  });

  test.each([
    'http://2130706433/',
    'http://0x7f.1/',
    'http://0177.0.0.1/',
    'http://127.1/',
    'http://１２７.0.0.1/',
    'http://%31%32%37.0.0.1/',
    'http://[::1]/',
    'http://[::ffff:127.0.0.1]/',
    'http://localhost/',
    'http://LOCALHOST./',
    'http://a.localhost/',
    'http://0/',
  ])('sees through the spelling %s', (text) => {
    expect(guard.urlProblem(new URL(text), true)).toBeTypeOf('string');
  });

  test('leaves names to be judged at every connection', () => {
    expect(guard.urlProblem(new URL('https://example.com/'), false)).toBeUndefined();
  });

  test('exceptions come from configuration only, and open just what they name', () => {
    const open = createAddressGuard(['127.0.0.0/8', '::1/128']);
    expect([open.allows('127.0.0.1'), open.allows('::1'), open.allows('::ffff:127.0.0.1')]).toEqual([
      true,
      true,
      true,
    ]);
    expect([open.allows('10.0.0.1'), open.allows('0.0.0.0'), open.allows('fd00::1')]).toEqual([
      false,
      false,
      false,
    ]);
    expect(open.urlProblem(new URL('http://localhost:9000/'), false)).toBeUndefined();
  });

  test('agrees with arithmetic on 100,000 random addresses', () => {
    const ranges4: [number, number][] = (
      [
        [0x00000000, 8],
        [0x0a000000, 8],
        [0x64400000, 10],
        [0x7f000000, 8],
        [0xa9fe0000, 16],
        [0xac100000, 12],
        [0xc0000000, 24],
        [0xc0000200, 24],
        [0xc0586300, 24],
        [0xc0a80000, 16],
        [0xc6120000, 15],
        [0xc6336400, 24],
        [0xcb007100, 24],
        [0xe0000000, 4],
        [0xf0000000, 4],
        [0xa83f8110, 32],
      ] as const
    ).map(([base, bits]) => [base, bits]);
    const inside4 = (value: number) =>
      ranges4.some(([base, bits]) => value >>> (32 - bits) === base >>> (32 - bits));
    const ranges6: [bigint, bigint][] = [
      [0x2001n << 112n, 23n],
      [0x20010db8n << 96n, 32n],
      [0x2002n << 112n, 16n],
      [0x3fffn << 112n, 20n],
    ];
    const inside6 = (value: bigint) =>
      ranges6.some(([base, bits]) => value >> (128n - bits) === base >> (128n - bits));
    for (let i = 0; i < 50_000; i++) {
      const bytes = randomBytes(4);
      // Half of them near the borders of the ranges.
      if (i % 2 === 0) bytes.writeUInt32BE((ranges4[i % ranges4.length]![0] + (i % 7) - 3) >>> 0);
      expect(guard.allows([...bytes].join('.')), [...bytes].join('.')).toBe(!inside4(bytes.readUInt32BE()));
    }
    for (let i = 0; i < 50_000; i++) {
      const bytes = randomBytes(16);
      if (i % 2 === 0) bytes[0] = 0x20 | (bytes[0]! & 0x1f);
      if (i % 8 === 0) bytes.writeUInt16BE([0x2001, 0x2002, 0x3fff, 0x2000][(i / 8) % 4]!);
      const value = BigInt(`0x${bytes.toString('hex')}`);
      const text = bytes.toString('hex').match(/.{4}/g)!.join(':');
      expect(isIPv6(text)).toBe(true);
      expect(guard.allows(text), text).toBe(value >> 125n === 1n && !inside6(value));
    }
  });
});
