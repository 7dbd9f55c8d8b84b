// Configuration: every DISPATCH_* variable, read once. parseConfig is pure; readConfig is the only reader of
// process.env.
import { accessSync, constants } from 'node:fs';
import { BlockList, isIP } from 'node:net';
import { resolve } from 'node:path';
import { z } from 'zod';
import { SHORTEST_LEASE_MS } from './domain/lease.ts';
import { DEFAULT_POLICY, POLICY_FIELDS, policyProblem, type TenantPolicy } from './domain/policy.ts';
import { DEFAULT_QUOTA, QUOTA_FIELDS, type Quota, quotaProblem } from './domain/quota.ts';
import type { MasterKeys } from './domain/sealing.ts';

export const ROLES = ['api', 'worker', 'maintenance'] as const;
export type Role = (typeof ROLES)[number];

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Where Redis is. */
export type RedisTarget = {
  readonly kind: 'single' | 'sentinel' | 'cluster';
  readonly nodes: readonly { readonly host: string; readonly port: number }[];
  readonly tls: boolean;
  readonly username: string | undefined;
  readonly password: string | undefined;
  readonly database: number;
  /** Of the master, with Sentinel. */
  readonly name: string;
};

/** Whose JWTs are accepted, and what their claims mean. */
export type JwtIssuer = {
  readonly issuer: string;
  readonly audience: string;
  readonly jwksUrl: string;
  readonly algorithms: readonly string[];
  readonly tenantClaim: string;
  readonly roleClaim: string;
};

/** Certificate files of the servers; the client CA, if given, makes client certificates required. */
export type TlsFiles = {
  readonly certFile: string;
  readonly keyFile: string;
  readonly clientCaFile: string | undefined;
};

/** The configuration of a process. Times in ms, sizes in bytes. */
export type Config = {
  /** Undefined: the embedded PostgreSQL in `dataDir`. */
  readonly databaseUrl: string | undefined;
  /** If given, `databaseUrl` may lead through a transaction pooler; LISTEN, migrations and DDL use this one. */
  readonly directDatabaseUrl: string | undefined;
  /** Connections for each of the two database roles, in each process. */
  readonly databasePoolSize: number;
  readonly host: string;
  readonly httpPort: number;
  readonly grpcPort: number;
  readonly dataDir: string;
  readonly roles: ReadonlySet<Role>;
  /** Undefined with an embedded database: generated and kept in `dataDir`. */
  readonly adminKey: string | undefined;
  /** Empty with an embedded database: generated and kept in `dataDir`. */
  readonly masterKeys: MasterKeys;
  /** Addresses that endpoints may have although the guard would refuse them. */
  readonly allowEndpointCidrs: readonly string[];
  /** Name servers for endpoints' names, as `address` or `address:port`; empty: the system's. */
  readonly dnsServers: readonly string[];
  /** Undefined: limits are kept in this process. */
  readonly redis: RedisTarget | undefined;
  /** What a tenant may use unless SetQuota says otherwise. */
  readonly defaultQuota: Quota;
  /** What tenants without a policy of their own have. */
  readonly defaultPolicy: TenantPolicy;
  readonly jwtIssuers: readonly JwtIssuer[];
  /** Undefined: the servers speak plain text. */
  readonly tls: TlsFiles | undefined;
  /** Open connections of callers, on each port. */
  readonly maxConnections: number;
  /** Credentials that one address may have refused a minute before it has to wait. */
  readonly refusalsPerMinute: number;
  /** How long the audit log is kept. */
  readonly auditDays: number;
  readonly logLevel: LogLevel;
  /** HTTP requests to endpoints at once, in each process. */
  readonly maxInFlight: number;
  /** How long a worker's claim lasts. */
  readonly leaseMs: number;
  /** How long SIGTERM waits for work in hand. */
  readonly shutdownGraceMs: number;
  /** How long events, attempts and dead letters are kept. */
  readonly historyDays: number;
  /** Hash partitions of each tenant table; fixed at install. */
  readonly hashPartitions: number;
  /** Days of history in one partition; fixed at install. */
  readonly partitionDays: number;
};

export type ConfigResult =
  | { readonly ok: true; readonly config: Config }
  | { readonly ok: false; readonly problems: readonly string[] };

type Env = Readonly<Record<string, string | undefined>>;

/** Reads the environment of this process. `flags` (from argv) win over it. Files that it names must be readable. */
export function readConfig(flags: Env, cwd: string): ConfigResult {
  const result = parseConfig({ ...process.env, ...flags }, cwd);
  if (!result.ok) return result;
  const { databaseUrl, directDatabaseUrl } = result.config;
  const problems = [
    ...unreadableFiles('DISPATCH_DATABASE_URL', databaseUrl),
    ...unreadableFiles('DISPATCH_DIRECT_DATABASE_URL', directDatabaseUrl),
  ];
  return problems.length === 0 ? result : { ok: false, problems };
}

/** Every variable that parseConfig knows. */
const KNOWN = [
  'DISPATCH_DATABASE_URL',
  'DISPATCH_DIRECT_DATABASE_URL',
  'DISPATCH_DATABASE_POOL_SIZE',
  'DISPATCH_HOST',
  'DISPATCH_HTTP_PORT',
  'DISPATCH_GRPC_PORT',
  'DISPATCH_DATA_DIR',
  'DISPATCH_ROLES',
  'DISPATCH_ADMIN_KEY',
  'DISPATCH_MASTER_KEYS',
  'DISPATCH_ALLOW_ENDPOINT_CIDRS',
  'DISPATCH_DNS_SERVERS',
  'DISPATCH_REDIS_URL',
  'DISPATCH_DEFAULT_QUOTA',
  'DISPATCH_DEFAULT_POLICY',
  'DISPATCH_JWT_ISSUERS',
  'DISPATCH_TLS_CERT_FILE',
  'DISPATCH_TLS_KEY_FILE',
  'DISPATCH_TLS_CLIENT_CA_FILE',
  'DISPATCH_MAX_CONNECTIONS',
  'DISPATCH_AUDIT_DAYS',
  'DISPATCH_REFUSALS_PER_MINUTE',
  'DISPATCH_LOG_LEVEL',
  'DISPATCH_MAX_IN_FLIGHT',
  'DISPATCH_LEASE_SECONDS',
  'DISPATCH_SHUTDOWN_GRACE_SECONDS',
  'DISPATCH_HISTORY_DAYS',
  'DISPATCH_HASH_PARTITIONS',
  'DISPATCH_PARTITION_DAYS',
];

/** Parses an environment. Reports every problem at once, each in one line that names the variable. */
export function parseConfig(env: Env, cwd: string): ConfigResult {
  const problems: string[] = [];
  const text = (name: string) => (env[name] === undefined || env[name] === '' ? undefined : env[name]);
  const integer = (name: string, fallback: number, min: number, max: number) => {
    const value = text(name);
    if (value === undefined) return fallback;
    const number = /^\d{1,9}$/.test(value) ? Number(value) : Number.NaN;
    if (number >= min && number <= max) return number;
    problems.push(`${name} is "${value}"; it must be a whole number from ${min} to ${max}`);
    return fallback;
  };
  for (const name of Object.keys(env)) {
    if (name.startsWith('DISPATCH_') && !name.startsWith('DISPATCH_TEST_') && !KNOWN.includes(name)) {
      problems.push(`${name} is not a setting of dispatch; see the README for those there are`);
    }
  }
  const databaseUrl = verified(text('DISPATCH_DATABASE_URL'));
  const directDatabaseUrl = verified(text('DISPATCH_DIRECT_DATABASE_URL'));
  for (const name of ['DISPATCH_DATABASE_URL', 'DISPATCH_DIRECT_DATABASE_URL']) {
    const url = text(name);
    if (url !== undefined && !/^postgres(ql)?:\/\//.test(url)) {
      problems.push(`${name} must begin with postgres:// or postgresql://`);
    } else if (url !== undefined && !isReadable(url)) {
      problems.push(
        `${name} must be postgres://user:password@host:port/database; what is special in them is ` +
          'percent-encoded ("%40" for "@")',
      );
    } else if (url !== undefined) {
      problems.push(...tlsProblems(name, new URL(url).searchParams));
    }
  }
  if (directDatabaseUrl !== undefined && databaseUrl === undefined) {
    problems.push(
      'DISPATCH_DIRECT_DATABASE_URL needs DISPATCH_DATABASE_URL, which may lead through a pooler then',
    );
  }
  const adminKey = text('DISPATCH_ADMIN_KEY');
  if (adminKey !== undefined && !/^[\x21-\x7e]{16,256}$/.test(adminKey)) {
    problems.push('DISPATCH_ADMIN_KEY must be 16–256 printable ASCII characters without spaces');
  }
  if (databaseUrl !== undefined && adminKey === undefined) {
    problems.push(
      'DISPATCH_ADMIN_KEY is required with DISPATCH_DATABASE_URL; for example `openssl rand -hex 32`',
    );
  }
  const masterKeys = parseMasterKeys(text('DISPATCH_MASTER_KEYS'), databaseUrl !== undefined, problems);
  const config: Config = {
    databaseUrl,
    directDatabaseUrl,
    databasePoolSize: integer('DISPATCH_DATABASE_POOL_SIZE', 8, 2, 200),
    host: text('DISPATCH_HOST') ?? '127.0.0.1',
    httpPort: integer('DISPATCH_HTTP_PORT', 7480, 0, 65_535),
    grpcPort: integer('DISPATCH_GRPC_PORT', 7481, 0, 65_535),
    dataDir: resolve(cwd, text('DISPATCH_DATA_DIR') ?? '.dispatch'),
    roles: parseRoles(text('DISPATCH_ROLES'), problems),
    adminKey,
    masterKeys,
    allowEndpointCidrs: parseCidrs(text('DISPATCH_ALLOW_ENDPOINT_CIDRS'), problems),
    dnsServers: parseDnsServers(text('DISPATCH_DNS_SERVERS'), problems),
    redis: parseRedisUrl(text('DISPATCH_REDIS_URL'), problems),
    defaultQuota: parseDefaultQuota(text('DISPATCH_DEFAULT_QUOTA'), problems),
    defaultPolicy: parseDefaultPolicy(text('DISPATCH_DEFAULT_POLICY'), problems),
    jwtIssuers: parseJwtIssuers(text('DISPATCH_JWT_ISSUERS'), problems),
    tls: parseTls(text, cwd, problems),
    maxConnections: integer('DISPATCH_MAX_CONNECTIONS', 10_000, 1, 1_000_000),
    refusalsPerMinute: integer('DISPATCH_REFUSALS_PER_MINUTE', 60, 1, 1_000_000),
    auditDays: integer('DISPATCH_AUDIT_DAYS', 365, 1, 3_650),
    logLevel: parseLogLevel(text('DISPATCH_LOG_LEVEL'), problems),
    maxInFlight: integer('DISPATCH_MAX_IN_FLIGHT', 512, 1, 10_000),
    leaseMs: integer('DISPATCH_LEASE_SECONDS', 60, SHORTEST_LEASE_MS / 1000, 3_600) * 1000,
    shutdownGraceMs: integer('DISPATCH_SHUTDOWN_GRACE_SECONDS', 20, 0, 3_600) * 1000,
    historyDays: integer('DISPATCH_HISTORY_DAYS', 30, 1, 3_650),
    hashPartitions: integer('DISPATCH_HASH_PARTITIONS', 4, 1, 64),
    partitionDays: integer('DISPATCH_PARTITION_DAYS', 7, 1, 90),
  };
  return problems.length === 0 ? { ok: true, config } : { ok: false, problems: problems.map(asLine) };
}

/** One line, whatever stood in a variable. */
const asLine = (problem: string): string =>
  problem.replace(/[\p{Cc}\p{Zl}\p{Zp}]/gu, (c) => JSON.stringify(c).slice(1, -1)).slice(0, 500);

/** Whether a URL and what is percent-encoded in it can be read: the drivers of the database would throw later. */
function isReadable(text: string): boolean {
  try {
    const { username, password, hostname, pathname } = new URL(text);
    for (const part of [username, password, hostname, pathname]) decodeURIComponent(part);
    return true;
  } catch {
    return false; // what URL and decodeURIComponent throw says no more
  }
}

const SSL_MODES = ['disable', 'no-verify', 'require', 'verify-full'];

/** What is wrong with what a database's URL says of TLS. */
function tlsProblems(name: string, asked: URLSearchParams): string[] {
  const problems: string[] = [];
  const mode = asked.get('sslmode');
  const modes = `it must be one of ${SSL_MODES.join(', ')}; require verifies the server, too`;
  if (mode !== null && !SSL_MODES.includes(mode)) problems.push(`${name} has sslmode=${mode}; ${modes}`);
  if (asked.has('ssl')) problems.push(`${name} has ssl=${asked.get('ssl')}; use sslmode: ${modes}`);
  if (asked.has('sslcert') !== asked.has('sslkey')) {
    problems.push(`${name} must have sslcert and sslkey, or neither`);
  }
  return problems;
}

/** Which of the files that a database's URL names cannot be read, and why. */
function unreadableFiles(name: string, url: string | undefined): string[] {
  if (url === undefined) return [];
  const asked = new URL(url).searchParams;
  return ['sslrootcert', 'sslcert', 'sslkey'].flatMap((parameter) => {
    const file = asked.get(parameter);
    if (file === null) return [];
    try {
      accessSync(file, constants.R_OK);
      return [];
    } catch (error) {
      return [asLine(`${name} has ${parameter}=${file}: ${String(error)}`)];
    }
  });
}

/** `require` as what it means here: the next version of the driver will not verify with it. */
const verified = (url: string | undefined) => url?.replace(/([?&]sslmode=)require(?=&|$)/, '$1verify-full');

function parseRoles(value: string | undefined, problems: string[]): ReadonlySet<Role> {
  const names = (value ?? ROLES.join(',')).split(',').map((name) => name.trim());
  for (const name of names) {
    if (!ROLES.some((role) => role === name)) {
      problems.push(`DISPATCH_ROLES has "${name}"; it must be a comma list of ${ROLES.join(', ')}`);
    }
  }
  return new Set(ROLES.filter((role) => names.includes(role)));
}

function parseLogLevel(value: string | undefined, problems: string[]): LogLevel {
  const level = LOG_LEVELS.find((l) => l === (value ?? 'info'));
  if (level === undefined) {
    problems.push(`DISPATCH_LOG_LEVEL is "${value}"; it must be one of ${LOG_LEVELS.join(', ')}`);
  }
  return level ?? 'info';
}

/** `id:base64` list; 32 bytes each. The first one seals new secrets. */
function parseMasterKeys(value: string | undefined, required: boolean, problems: string[]): MasterKeys {
  const form =
    'must be a comma list of id:base64 with 32 bytes each; for example "k1:$(openssl rand -base64 32)"';
  if (value === undefined) {
    if (required) problems.push(`DISPATCH_MASTER_KEYS is required with DISPATCH_DATABASE_URL; it ${form}`);
    return [];
  }
  const keys = value.split(',').map((entry) => {
    const colon = entry.indexOf(':');
    return {
      id: entry.slice(0, Math.max(colon, 0)).trim(),
      key: Buffer.from(entry.slice(colon + 1), 'base64'),
    };
  });
  if (!keys.every((k) => /^[A-Za-z0-9_-]{1,32}$/.test(k.id) && k.key.length === 32)) {
    problems.push(`DISPATCH_MASTER_KEYS ${form}`);
  } else if (new Set(keys.map((k) => k.id)).size !== keys.length) {
    problems.push('DISPATCH_MASTER_KEYS names an id twice');
  }
  return keys;
}

function parseCidrs(value: string | undefined, problems: string[]): readonly string[] {
  if (value === undefined) return [];
  const cidrs = value.split(',').map((c) => c.trim());
  for (const cidr of cidrs) {
    if (!isCidr(cidr)) {
      problems.push(
        `DISPATCH_ALLOW_ENDPOINT_CIDRS has "${cidr}"; it must be a comma list such as 127.0.0.0/8,::1/128`,
      );
    }
  }
  return cidrs;
}

function isCidr(text: string): boolean {
  const [address, bits, ...rest] = text.split('/');
  if (address === undefined || bits === undefined || rest.length > 0 || !/^\d{1,3}$/.test(bits)) return false;
  try {
    new BlockList().addSubnet(address, Number(bits), address.includes(':') ? 'ipv6' : 'ipv4');
    return true;
  } catch {
    return false;
  }
}

function parseDnsServers(value: string | undefined, problems: string[]): readonly string[] {
  if (value === undefined) return [];
  const servers = value.split(',').map((s) => s.trim());
  for (const server of servers) {
    const match = /^(?:\[([^\]]+)\]|([^:]+)|([0-9a-fA-F:]+))(?::(\d{1,5}))?$/.exec(server);
    const address = match?.[1] ?? match?.[2] ?? match?.[3] ?? '';
    if (isIP(address) !== 0 && Number(match?.[4] ?? '53') <= 65_535) continue;
    problems.push(
      `DISPATCH_DNS_SERVERS has "${server}"; it must be a comma list such as 10.0.0.2,[fd00::2]:5353`,
    );
  }
  return servers;
}

const REDIS_SCHEMES: Readonly<Record<string, { readonly tls: boolean; readonly sentinel: boolean }>> = {
  'redis:': { tls: false, sentinel: false },
  'rediss:': { tls: true, sentinel: false },
  'redis+sentinel:': { tls: false, sentinel: true },
  'rediss+sentinel:': { tls: true, sentinel: true },
};

/** One URL: a node. A comma list: a cluster. `redis+sentinel://h1,h2:26379/name/0`: Sentinel. */
function parseRedisUrl(value: string | undefined, problems: string[]): RedisTarget | undefined {
  if (value === undefined) return undefined;
  const form =
    'DISPATCH_REDIS_URL must be redis://[user:password@]host[:port][/db] (rediss:// for TLS), a comma list of such ' +
    'URLs for a cluster, or redis+sentinel://host[:port],host[:port]/name[/db]';
  const scheme = REDIS_SCHEMES[/^[a-z+]+:/.exec(value)?.[0] ?? ''];
  const bad = (): undefined => void problems.push(form);
  if (scheme === undefined) return bad();
  const urls = scheme.sentinel ? sentinelUrls(value) : value.split(',').map((part) => part.trim());
  const first = URL.parse(urls[0] ?? '');
  if (first === null || !isReadable(first.href)) return bad();
  const nodes: { host: string; port: number }[] = [];
  for (const text of urls) {
    const url = URL.parse(text);
    if (url === null || url.hostname === '' || url.protocol !== first.protocol) return bad();
    const port = url.port === '' ? (scheme.sentinel ? 26_379 : 6_379) : Number(url.port);
    nodes.push({ host: url.hostname.replace(/^\[|\]$/g, ''), port });
  }
  const segments = first.pathname.split('/').filter((s) => s !== '');
  const name = scheme.sentinel ? (segments.shift() ?? '') : '';
  const database = Number(segments[0] ?? '0');
  if (segments.length > 1 || !Number.isInteger(database) || database < 0) return bad();
  if (scheme.sentinel && name === '') return bad();
  if (nodes.length > 1 && !scheme.sentinel && database !== 0) return bad();
  const decoded = (part: string) => (part === '' ? undefined : decodeURIComponent(part));
  return {
    kind: scheme.sentinel ? 'sentinel' : nodes.length > 1 ? 'cluster' : 'single',
    nodes,
    tls: scheme.tls,
    username: decoded(first.username),
    password: decoded(first.password),
    database,
    name,
  };
}

/** The hosts of a Sentinel URL as URLs of their own, the path on the first. */
function sentinelUrls(value: string): string[] {
  const match = /^([a-z+]+:)\/\/(?:([^@/]*)@)?([^/]*)(\/.*)?$/.exec(value);
  if (match === null) return [];
  const [, scheme, userinfo, hosts = '', path = ''] = match;
  const auth = userinfo === undefined ? '' : `${userinfo}@`;
  return hosts.split(',').map((host) => `${scheme}//${auth}${host.trim()}${path}`);
}

function parseJson<T>(name: string, value: string, schema: z.ZodType<T>, problems: string[]): T | undefined {
  let json: unknown;
  try {
    json = JSON.parse(value);
  } catch {
    problems.push(`${name} is not valid JSON`);
    return undefined;
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  for (const issue of parsed.error.issues) {
    problems.push(`${name}: ${issue.path.join('.') || 'it'}: ${issue.message}`);
  }
  return undefined;
}

/** JSON with fields of Quota, e.g. {"publishPerSecond": 500, "eventsPerDay": 1000000}; over DEFAULT_QUOTA. */
function parseDefaultQuota(value: string | undefined, problems: string[]): Quota {
  if (value === undefined) return DEFAULT_QUOTA;
  const name = 'DISPATCH_DEFAULT_QUOTA';
  const given = parseJson(name, value, z.record(z.string(), z.unknown()), problems);
  if (given === undefined) return DEFAULT_QUOTA;
  for (const [field, own] of Object.entries(given)) {
    const known = QUOTA_FIELDS.find((f) => f === field);
    const problem =
      known === undefined ? `is not a quota; there are ${QUOTA_FIELDS.join(', ')}` : quotaProblem(known, own);
    if (problem !== undefined) problems.push(`${name}: ${field} ${problem}`);
  }
  return { ...DEFAULT_QUOTA, ...(given as Partial<Quota>) };
}

/** JSON with fields of TenantPolicy, e.g. {"requireVerification": true}; over DEFAULT_POLICY. Durations in ms. */
function parseDefaultPolicy(value: string | undefined, problems: string[]): TenantPolicy {
  if (value === undefined) return DEFAULT_POLICY;
  const name = 'DISPATCH_DEFAULT_POLICY';
  const given = parseJson(name, value, z.record(z.string(), z.unknown()), problems);
  if (given === undefined) return DEFAULT_POLICY;
  for (const [field, own] of Object.entries(given)) {
    const known = POLICY_FIELDS.find((f) => f === field);
    const problem =
      known === undefined
        ? `is not part of a policy; there are ${POLICY_FIELDS.join(', ')}`
        : policyProblem(known, own);
    if (problem !== undefined) problems.push(`${name}: ${field} ${problem}`);
  }
  return { ...DEFAULT_POLICY, ...(given as Partial<TenantPolicy>) };
}

const ASYMMETRIC = [
  'RS256',
  'RS384',
  'RS512',
  'PS256',
  'PS384',
  'PS512',
  'ES256',
  'ES384',
  'ES512',
  'EdDSA',
  'Ed25519',
];

const jwtIssuers = z.array(
  z.strictObject({
    issuer: z.string().min(1),
    audience: z.string().min(1),
    jwksUrl: z.url({ protocol: /^https?$/ }),
    algorithms: z
      .array(
        z.enum(ASYMMETRIC as [string, ...string[]], { error: `must be one of ${ASYMMETRIC.join(', ')}` }),
      )
      .min(1)
      .default(['RS256', 'ES256', 'EdDSA']),
    tenantClaim: z.string().min(1).default('tenant_id'),
    roleClaim: z.string().min(1).default('role'),
  }),
);

/** JSON list: issuer, audience, jwksUrl, algorithms, tenantClaim, roleClaim. */
function parseJwtIssuers(value: string | undefined, problems: string[]): readonly JwtIssuer[] {
  if (value === undefined) return [];
  const issuers = parseJson('DISPATCH_JWT_ISSUERS', value, jwtIssuers, problems) ?? [];
  if (new Set(issuers.map((i) => i.issuer)).size !== issuers.length) {
    problems.push('DISPATCH_JWT_ISSUERS names an issuer twice');
  }
  return issuers;
}

function parseTls(
  text: (name: string) => string | undefined,
  cwd: string,
  problems: string[],
): TlsFiles | undefined {
  const cert = text('DISPATCH_TLS_CERT_FILE');
  const key = text('DISPATCH_TLS_KEY_FILE');
  const ca = text('DISPATCH_TLS_CLIENT_CA_FILE');
  if (cert === undefined && key === undefined && ca === undefined) return undefined;
  if (cert === undefined || key === undefined) {
    problems.push('DISPATCH_TLS_CERT_FILE and DISPATCH_TLS_KEY_FILE must be given together');
    return undefined;
  }
  const clientCaFile = ca === undefined ? undefined : resolve(cwd, ca);
  return { certFile: resolve(cwd, cert), keyFile: resolve(cwd, key), clientCaFile };
}
