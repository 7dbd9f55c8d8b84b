// Names of endpoints to addresses. By c-ares and not getaddrinfo: that one runs on four threads that all tenants share,
// and a tenant whose name server is slow would hold them. Only names without a dot, which no tenant's name server
// answers for, may be left to the system.
import { lookup } from 'node:dns';
import { Resolver } from 'node:dns/promises';
import { readFileSync } from 'node:fs';

export const RESOLVE_TIMEOUT_MS = 2_000;

/** All addresses of a name. Rejects with a code of getaddrinfo: ENOTFOUND, or EAI_AGAIN for one that may pass. */
export type Resolve = (host: string) => Promise<readonly string[]>;

/** `servers`: `address` or `address:port`; empty means the system's. */
export function createResolver(servers: readonly string[]): Resolve {
  const resolver = new Resolver({ timeout: RESOLVE_TIMEOUT_MS, tries: 1 });
  if (servers.length > 0) resolver.setServers(servers);
  const hosts = readHosts();
  return async (host) => {
    const name = host.endsWith('.') ? host.slice(0, -1) : host;
    if (name === 'localhost' || name.endsWith('.localhost')) return ['127.0.0.1', '::1'];
    const known = hosts.get(name);
    if (known !== undefined) return known;
    if (!name.includes('.') && servers.length === 0) return bySystem(name);
    const found = await Promise.allSettled([resolver.resolve4(name), resolver.resolve6(name)]);
    const addresses = found.flatMap((f) => (f.status === 'fulfilled' ? f.value : []));
    if (addresses.length > 0) return addresses;
    const absent = found.every(
      (f) => f.status === 'rejected' && /^E(?:NOTFOUND|NODATA)$/.test(f.reason.code),
    );
    throw Object.assign(new Error('the name has no address'), { code: absent ? 'ENOTFOUND' : 'EAI_AGAIN' });
  };
}

function bySystem(name: string): Promise<string[]> {
  return new Promise((done, fail) => {
    const late = () => Object.assign(new Error('the name was not resolved in time'), { code: 'EAI_AGAIN' });
    const timer = setTimeout(() => fail(late()), RESOLVE_TIMEOUT_MS);
    lookup(name, { all: true }, (error, found) => {
      clearTimeout(timer);
      if (error !== null) fail(error);
      else done(found.map((f) => f.address));
    });
  });
}

/** The hosts file, which c-ares does not read. Read once: a change needs a restart. */
function readHosts(): ReadonlyMap<string, readonly string[]> {
  const hosts = new Map<string, string[]>();
  let text = '';
  try {
    text = readFileSync('/etc/hosts', 'utf8');
  } catch {
    // There is none: names are resolved by DNS alone.
  }
  for (const line of text.split('\n')) {
    const [address = '', ...names] = (line.split('#', 1)[0] ?? '').trim().split(/\s+/);
    for (const name of names)
      hosts.set(name.toLowerCase(), [...(hosts.get(name.toLowerCase()) ?? []), address]);
  }
  return hosts;
}
