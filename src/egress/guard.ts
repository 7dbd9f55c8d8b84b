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

/** Judges addresses and literal hosts. */
export type AddressGuard = {
  /** Whether a connection to this IP address may be made. */
  readonly allows: (address: string) => boolean;
  /** What is wrong with a URL as an endpoint without resolving its name, or undefined. */
  readonly urlProblem: (url: URL) => string | undefined;
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
  return {
    allows,
    urlProblem(url) {
      const host = hostOf(url);
      const refused = 'leads to an address that endpoints may not have';
      if (isIP(host) !== 0) return allows(host) ? undefined : refused;
      const name = host.endsWith('.') ? host.slice(0, -1) : host;
      const loopback = name === 'localhost' || name.endsWith('.localhost') || name === '';
      return loopback && !allows('127.0.0.1') && !allows('::1') ? refused : undefined;
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
