// Spellings of addresses that endpoints may not have: over 250, of every kind that a URL parser takes for one.

const v4 = (text: string): number[] => text.split('.').map(Number);

/** Ways to write one IPv4 address as a host. */
function spellingsOf(address: string): string[] {
  const [a = 0, b = 0, c = 0, d = 0] = v4(address);
  const number = ((a << 24) | (b << 16) | (c << 8) | d) >>> 0;
  const hex = (n: number) => n.toString(16);
  const oct = (n: number) => n.toString(8);
  const fullwidth = [...address].map((ch) =>
    ch === '.' ? '\u3002' : String.fromCodePoint((ch.codePointAt(0) ?? 0) + 0xfee0),
  );
  return [
    address,
    `${address}.`,
    String(number),
    `0x${hex(number)}`,
    `0X${hex(number).toUpperCase()}`,
    `0${oct(number)}`,
    `0x${hex(a)}.0x${hex(b)}.0x${hex(c)}.0x${hex(d)}`,
    `0${oct(a)}.0${oct(b)}.0${oct(c)}.0${oct(d)}`,
    `${a}.${(b << 16) | (c << 8) | d}`,
    `${a}.${b}.${(c << 8) | d}`,
    `0x${hex(a)}.${(b << 16) | (c << 8) | d}`,
    `000${oct(a)}.${b}.${c}.${d}`,
    [...address].map((ch) => `%${hex(ch.charCodeAt(0))}`).join(''),
    fullwidth.join(''),
    address.replaceAll('.', '%2e'),
    `[::ffff:${address}]`,
    `[::ffff:${hex((a << 8) | b)}:${hex((c << 8) | d)}]`,
    `[0:0:0:0:0:FFFF:${address}]`,
  ];
}

const V4 = [
  '127.0.0.1',
  '127.255.255.254',
  '10.0.0.1',
  '169.254.169.254',
  '192.168.1.1',
  '172.16.0.1',
  '100.64.0.1',
  '0.0.0.0',
  '198.18.0.1',
  '168.63.129.16',
  '224.0.0.1',
  '255.255.255.255',
];

const V6 = [
  '::1',
  '::',
  '0:0:0:0:0:0:0:1',
  '::127.0.0.1',
  'fe80::1',
  'fc00::1',
  'fd00:ec2::254',
  'ff02::1',
  '64:ff9b::7f00:1',
  '64:ff9b::a9fe:a9fe',
  '64:ff9b:1::1',
  '100::1',
  '2001::1',
  '2001:db8::1',
  '2002:7f00:1::',
  '3fff::1',
  '4000::1',
  '5f00::1',
  '::ffff:0:7f00:1',
];

const NAMES = [
  'localhost',
  'LOCALHOST',
  'localhost.',
  'a.localhost',
  'foo.bar.localhost.',
  'loc%61lhost',
  'ⓛocalhost',
];

/** Hosts, as they stand in a URL. */
export const REFUSED_HOSTS: readonly string[] = [
  ...V4.flatMap(spellingsOf),
  ...V6.map((address) => `[${address}]`),
  ...NAMES,
];

/** URLs, of those hosts and of kinds that no host makes good. */
export const REFUSED_URLS: readonly string[] = [
  ...REFUSED_HOSTS.map((host) => `https://${host}/hook`),
  'https://user:pass@example.com/',
  'https://user@example.com/',
  'https://127.0.0.1@example.com/',
  'https://example.com@127.0.0.1/',
  'https://example.com#@127.0.0.1/',
  'ftp://example.com/',
  'file:///etc/passwd',
  'gopher://127.0.0.1:6379/_INFO',
  'javascript:alert(1)',
  'data:text/plain,x',
  'ws://example.com/',
  'unix:///var/run/docker.sock',
  'http://example.com/hook',
  'https://example.com:22/',
  'https://example.com:25/',
  'https://example.com:2375/',
  'https://example.com:3306/',
  'https://example.com:5432/',
  'https://example.com:6379/',
  'https://example.com:9200/',
  'https://example.com:10250/',
  'https://example.com:11211/',
  'https://example.com:27017/',
  'https:///127.0.0.1/',
  'https:127.0.0.1',
  'https://127.0.0.1:443\\@example.com/',
  'https://[::1%25eth0]/',
  '//127.0.0.1/',
  'https://',
];

/** Hosts that anybody may have. */
export const PUBLIC_HOSTS: readonly string[] = [
  '1.1.1.1',
  '8.8.8.8',
  '9.255.255.255',
  '11.0.0.0',
  '100.63.255.255',
  '100.128.0.0',
  '126.255.255.255',
  '128.0.0.0',
  '169.253.255.255',
  '169.255.0.0',
  '172.15.255.255',
  '172.32.0.0',
  '192.0.1.0',
  '192.0.3.0',
  '192.88.98.255',
  '192.167.255.255',
  '192.169.0.0',
  '198.17.255.255',
  '198.20.0.0',
  '198.51.99.255',
  '203.0.112.255',
  '203.0.114.0',
  '223.255.255.255',
  '168.63.129.15',
  '168.63.129.17',
  '[2606:4700:4700::1111]',
  '[2001:4860:4860::8888]',
  '[2001:200::1]',
  '[2a00:1450:4001::1]',
  '[2003::1]',
  '[3ffe::1]',
  'example.com',
  'localhost.example.com',
];
