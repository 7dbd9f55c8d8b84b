// The environment of a process.
import { Resolver } from 'node:dns';
import pg from 'pg';
import { parseConfig } from '../../../src/config.ts';
import { createAddressGuard } from '../../../src/egress/guard.ts';
import { ensure, type Target } from '../target.ts';

const MASTER = Buffer.alloc(32, 3).toString('base64');
const ISSUER = '{"issuer":"https://i.example","audience":"dispatch","jwksUrl":"https://i.example/keys"}';

const config: Target = {
  name: 'config',
  about: 'settings are taken and work, or refused with one line for each problem',
  seeds: [
    `DISPATCH_DATABASE_URL=postgres://u:p@db/x\nDISPATCH_ADMIN_KEY=0123456789abcdef\nDISPATCH_MASTER_KEYS=k1:${MASTER}`,
    'DISPATCH_ALLOW_ENDPOINT_CIDRS=127.0.0.0/8,::1/128\nDISPATCH_DNS_SERVERS=10.0.0.2,[fd00::2]:5353',
    'DISPATCH_REDIS_URL=redis://u:p%40@h:6380/2\nDISPATCH_MAX_IN_FLIGHT=12',
    'DISPATCH_REDIS_URL=redis+sentinel://u:p@h1,h2:26379/name/0\nDISPATCH_ROLES=api,worker',
    'DISPATCH_REDIS_URL=rediss://h1,rediss://[::1]:7\nDISPATCH_LOG_LEVEL=warn',
    'DISPATCH_DEFAULT_QUOTA={"publishPerSecond":5,"weight":2}\nDISPATCH_DEFAULT_POLICY={"deadLetterDays":3}',
    `DISPATCH_JWT_ISSUERS=[${ISSUER}]\nDISPATCH_TLS_CERT_FILE=a\nDISPATCH_TLS_KEY_FILE=b`,
  ],
  words: [
    '\n',
    '\\n',
    'DISPATCH_',
    '=',
    ',',
    '://',
    '@',
    '%',
    '%zz',
    '[',
    ']',
    '/',
    ':',
    '/33',
    '/129',
    '::',
    '{"',
    '__proto__',
    'null',
    '65536',
    ':0',
    '1e9',
  ],
  run(input) {
    const lines = input.toString('utf8').replaceAll('\0', '').split('\n');
    const env = Object.fromEntries(
      lines.map((line) => {
        const [name = '', ...value] = line.split('=');
        return [name, value.join('=').replaceAll('\\n', '\n')];
      }),
    );
    const parsed = parseConfig(env, '/');
    if (!parsed.ok) {
      for (const problem of parsed.problems) {
        ensure(/^DISPATCH_/.test(problem), `it names no setting: ${problem.slice(0, 80)}`);
        ensure(!problem.includes('\n') && problem.length <= 1_000, 'it is no line');
      }
      return;
    }
    const { allowEndpointCidrs, dnsServers, databaseUrl, redis, jwtIssuers, masterKeys } = parsed.config;
    createAddressGuard(allowEndpointCidrs);
    if (dnsServers.length > 0) new Resolver().setServers(dnsServers);
    // Certificates in it are read from files.
    if (databaseUrl?.includes('ssl') === false) new pg.Client({ connectionString: databaseUrl });
    for (const { host, port } of redis?.nodes ?? [])
      ensure(host !== '' && port >= 0 && port <= 65_535, 'no node');
    for (const { jwksUrl } of jwtIssuers) new URL(jwksUrl);
    for (const { key } of masterKeys) ensure(key.length === 32, 'a master key has another length');
  },
};

export const SETTING_TARGETS: readonly Target[] = [config];
