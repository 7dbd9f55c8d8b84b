// Which addresses endpoints may have. Everything that is not plainly public is refused; exceptions come from
// DISPATCH_ALLOW_ENDPOINT_CIDRS only. Lists: IANA special-purpose registries, and the metadata address of one cloud.
import { BlockList, isIP, isIPv4, isIPv6 } from 'node:net';

const DENIED_IPV4 = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.0.2.0/24',
  '192.88.99.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/4',
  '240.0.0.0/4',
  '168.63.129.16/32',
];
const PUBLIC_IPV6 = ['2000::/3'];
const DENIED_IPV6 = ['2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20'];

/** Ports of well-known services that do not speak HTTP to strangers: mail, shells, databases, queues, orchestrators. */
const DENIED_PORTS: ReadonlySet<number> = new Set(
  (
    '1 7 9 11 13 15 17 19 20 21 22 23 25 37 42 43 53 69 77 79 87 95 101 102 103 104 109 110 111 113 115 117 119 123 ' +
    '135 137 138 139 143 161 179 389 427 445 465 512 513 514 515 526 530 531 532 540 548 554 556 563 587 601 631 636 ' +
    '873 989 990 993 995 1080 1433 1434 1521 1719 1720 1723 2049 2181 2375 2376 2377 2379 2380 3128 3306 3389 3659 ' +
    '4045 4190 4369 4646 5060 5061 5432 5671 5672 5900 5984 6000 6379 6380 6443 6566 6665 6666 6667 6668 6669 6697 ' +
    '7000 7001 7199 8086 8500 8600 9042 9092 9100 9160 9200 9300 10080 10250 10255 10256 11211 15672 16379 25672 ' +
    '26257 26379 27017 27018 27019 28017 33060 50070'
  )
    .split(' ')
    .map(Number),
);

/** Judges addresses and literal hosts. */
export type AddressGuard = {
  /** Whether a connection to this IP address may be made. */
  readonly allows: (address: string) => boolean;
  /** Whether a connection to this port may be made; exceptions by address are exceptions here too. */
  readonly allowsPort: (address: string, port: string) => boolean;
  /**
   * What is wrong with a URL as an endpoint without resolving its name, or undefined. `allowHttp`: whether the tenant
   * may have http endpoints; where an exception allows the address, http is allowed.
   */
  readonly urlProblem: (url: URL, allowHttp: boolean) => string | undefined;
};

/** `exceptions` are CIDRs that are allowed whatever the lists say. */
export function createAddressGuard(exceptions: readonly string[]): AddressGuard {
  const excepted = blockList(exceptions);
  const denied4 = blockList(DENIED_IPV4);
  const public6 = blockList(PUBLIC_IPV6);
  const denied6 = blockList(DENIED_IPV6);
  const allows = (address: string): boolean => {
    const plain = unmapped(address);
    if (plain === undefined) return false;
    if (isIPv4(plain)) return excepted.check(plain, 'ipv4') || !denied4.check(plain, 'ipv4');
    return excepted.check(plain, 'ipv6') || (public6.check(plain, 'ipv6') && !denied6.check(plain, 'ipv6'));
  };
  const isExcepted = (address: string): boolean => {
    const plain = unmapped(address);
    return plain !== undefined && excepted.check(plain, isIPv4(plain) ? 'ipv4' : 'ipv6');
  };
  return {
    allows,
    allowsPort: (address, port) => !DENIED_PORTS.has(Number(port)) || isExcepted(address),
    urlProblem(url, allowHttp) {
      const host = hostOf(url);
      const name = host.endsWith('.') ? host.slice(0, -1) : host;
      const isLoopback = name === 'localhost' || name.endsWith('.localhost') || name === '';
      const addresses = isIP(host) !== 0 ? [host] : isLoopback ? ['127.0.0.1', '::1'] : [];
      if (addresses.length > 0 && addresses.every(isExcepted)) return undefined;
      if (isLoopback || addresses.some((address) => !allows(address))) {
        return 'leads to an address that endpoints may not have';
      }
      if (DENIED_PORTS.has(Number(url.port))) return `has port ${url.port}, which is not one of web servers`;
      if (url.protocol === 'http:' && !allowHttp)
        return 'must be an https URL: the tenant’s quota allows no http';
      return undefined;
    },
  };
}

/** The host of a URL as connect wants it: without the brackets of IPv6. `new URL` has normalised spellings already. */
export function hostOf(url: URL): string {
  const { hostname } = url;
  return hostname.startsWith('[') ? hostname.slice(1, -1) : hostname;
}

function blockList(cidrs: readonly string[]): BlockList {
  const list = new BlockList();
  for (const cidr of cidrs) {
    const [address = '', bits] = cidr.split('/');
    list.addSubnet(address, Number(bits), address.includes(':') ? 'ipv6' : 'ipv4');
  }
  return list;
}

/** An IPv4 address as itself also when it is mapped into IPv6; undefined for text that is no address. */
function unmapped(address: string): string | undefined {
  if (isIPv4(address)) return address;
  if (!isIPv6(address) || address.includes('%')) return undefined;
  const canonical = new URL(`http://[${address}]/`).hostname.slice(1, -1);
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(canonical);
  if (mapped === null) return canonical;
  const high = Number.parseInt(mapped[1]!, 16);
  const low = Number.parseInt(mapped[2]!, 16);
  return `${high >> 8}.${high & 255}.${low >> 8}.${low & 255}`;
}
