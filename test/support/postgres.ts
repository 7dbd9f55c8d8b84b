// Finds a real PostgreSQL for the service tests, in this order: DISPATCH_TEST_DATABASE_URL, the embedded one, Docker
// through testcontainers, Debian's package as root. Failing all that, the run fails and says what to do.
import { execFileSync } from 'node:child_process';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import type { TestProject } from 'vitest/node';
import { removeEmbedded, startEmbedded } from '../../src/storage/embedded.ts';
import { migrate } from '../../src/storage/migrate.ts';

declare module 'vitest' {
  export interface ProvidedContext {
    /** URL of the server's maintenance database, as a superuser. */
    serverUrl: string;
  }
}

/** A migrated database that each test file clones. */
export const TEMPLATE = 'dispatch_test_template';

/** A running server; a superuser's URL. */
export type Server = { readonly url: string; readonly stop: () => Promise<void> };

let server: Server | undefined;

export async function setup(project: TestProject): Promise<void> {
  server = await findServer();
  await prepareTemplate(server.url);
  project.provide('serverUrl', server.url);
}

/** Makes the migrated database that others are cloned from. */
export async function prepareTemplate(serverUrl: string): Promise<void> {
  const client = new pg.Client({ connectionString: serverUrl });
  await client.connect();
  await client.query(`DROP DATABASE IF EXISTS ${TEMPLATE} WITH (FORCE)`);
  await client.query(`CREATE DATABASE ${TEMPLATE}`);
  await client.end();
  const template = new URL(serverUrl);
  template.pathname = `/${TEMPLATE}`;
  await migrate(template.toString(), { hashPartitions: 4, partitionDays: 7 });
}

export async function teardown(): Promise<void> {
  await server?.stop();
}

export async function findServer(): Promise<Server> {
  const given = process.env['DISPATCH_TEST_DATABASE_URL'];
  if (given !== undefined && given !== '') return { url: given, stop: async () => {} };
  const failures: string[] = [];
  for (const [name, start] of [
    ['the embedded PostgreSQL', fromEmbedded],
    ['Docker', fromDocker],
    ['apt-get', fromDebian],
  ] as const) {
    try {
      return await start();
    } catch (error) {
      failures.push(`${name}: ${error instanceof Error ? error.message : error}`);
    }
  }
  throw new Error(
    `no PostgreSQL for the tests; set DISPATCH_TEST_DATABASE_URL to a superuser's URL.\n${failures.join('\n')}`,
  );
}

async function fromEmbedded(): Promise<Server> {
  const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-test-'));
  const embedded = await startEmbedded({ dataDir });
  const stop = async () => {
    await embedded[Symbol.asyncDispose]();
    await removeEmbedded(dataDir);
  };
  return { url: embedded.url, stop };
}

async function fromDocker(): Promise<Server> {
  const { GenericContainer, Wait } = await import('testcontainers');
  const container = await new GenericContainer('postgres:18')
    .withEnvironment({ POSTGRES_PASSWORD: 'dispatch' })
    .withExposedPorts(5432)
    .withWaitStrategy(Wait.forLogMessage(/ready to accept connections/, 2))
    .start();
  const url = `postgres://postgres:dispatch@${container.getHost()}:${container.getMappedPort(5432)}/postgres`;
  return { url, stop: async () => void (await container.stop()) };
}

async function fromDebian(): Promise<Server> {
  if (process.getuid?.() !== 0) throw new Error('needs root');
  execFileSync('apt-get', ['install', '-y', 'postgresql'], { stdio: 'inherit' });
  execFileSync('service', ['postgresql', 'start'], { stdio: 'inherit' });
  const sql = "ALTER ROLE postgres PASSWORD 'dispatch'";
  execFileSync('su', ['postgres', '-c', `psql -c "${sql}"`], { stdio: 'inherit' });
  return { url: 'postgres://postgres:dispatch@127.0.0.1:5432/postgres', stop: async () => {} };
}
