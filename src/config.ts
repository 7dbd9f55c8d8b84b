// Configuration: every DISPATCH_* variable, read once. parseConfig is pure; readConfig is the only reader of
// process.env.
import { BlockList } from 'node:net';
import { resolve } from 'node:path';
import type { MasterKeys } from './domain/sealing.ts';

export const ROLES = ['api', 'worker', 'maintenance'] as const;
export type Role = (typeof ROLES)[number];

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** The configuration of a process. Times in ms, sizes in bytes. */
export type Config = {
  /** Undefined: the embedded PostgreSQL in `dataDir`. */
  readonly databaseUrl: string | undefined;
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

/** Reads the environment of this process. `flags` (from argv) win over it. */
export function readConfig(flags: Env, cwd: string): ConfigResult {
  return parseConfig({ ...process.env, ...flags }, cwd);
}

/** Every variable that parseConfig knows. */
const KNOWN = [
  'DISPATCH_DATABASE_URL',
  'DISPATCH_DATABASE_POOL_SIZE',
  'DISPATCH_HOST',
  'DISPATCH_HTTP_PORT',
  'DISPATCH_GRPC_PORT',
  'DISPATCH_DATA_DIR',
  'DISPATCH_ROLES',
  'DISPATCH_ADMIN_KEY',
  'DISPATCH_MASTER_KEYS',
  'DISPATCH_ALLOW_ENDPOINT_CIDRS',
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
  const databaseUrl = text('DISPATCH_DATABASE_URL');
  if (databaseUrl !== undefined && !/^postgres(ql)?:\/\//.test(databaseUrl)) {
    problems.push('DISPATCH_DATABASE_URL must begin with postgres:// or postgresql://');
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
    databasePoolSize: integer('DISPATCH_DATABASE_POOL_SIZE', 8, 2, 200),
    host: text('DISPATCH_HOST') ?? '127.0.0.1',
    httpPort: integer('DISPATCH_HTTP_PORT', 7480, 0, 65_535),
    grpcPort: integer('DISPATCH_GRPC_PORT', 7481, 0, 65_535),
    dataDir: resolve(cwd, text('DISPATCH_DATA_DIR') ?? '.dispatch'),
    roles: parseRoles(text('DISPATCH_ROLES'), problems),
    adminKey,
    masterKeys,
    allowEndpointCidrs: parseCidrs(text('DISPATCH_ALLOW_ENDPOINT_CIDRS'), problems),
    logLevel: parseLogLevel(text('DISPATCH_LOG_LEVEL'), problems),
    maxInFlight: integer('DISPATCH_MAX_IN_FLIGHT', 512, 1, 10_000),
    leaseMs: integer('DISPATCH_LEASE_SECONDS', 60, 10, 3_600) * 1000,
    shutdownGraceMs: integer('DISPATCH_SHUTDOWN_GRACE_SECONDS', 20, 0, 3_600) * 1000,
    historyDays: integer('DISPATCH_HISTORY_DAYS', 30, 1, 3_650),
    hashPartitions: integer('DISPATCH_HASH_PARTITIONS', 4, 1, 64),
    partitionDays: integer('DISPATCH_PARTITION_DAYS', 7, 1, 90),
  };
  return problems.length === 0 ? { ok: true, config } : { ok: false, problems };
}

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
