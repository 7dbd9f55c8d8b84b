// A database of its own for each test file: a clone of the migrated template.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';
import { TEMPLATE } from './postgres.ts';

export type TestDatabase = AsyncDisposable & { readonly url: string; readonly owner: pg.Client };

/** A clone on the server of this vitest run. */
export const cloneDatabase = (): Promise<TestDatabase> => cloneDatabaseOn(inject('serverUrl'));

/** A clone of the template (see prepareTemplate) of a server, or of another, such as the empty template1. */
export async function cloneDatabaseOn(serverUrl: string, template = TEMPLATE): Promise<TestDatabase> {
  const name = `dispatch_test_${randomBytes(6).toString('hex')}`;
  const admin = new pg.Client({ connectionString: serverUrl });
  await admin.connect();
  await admin.query(`CREATE DATABASE ${name} TEMPLATE ${template}`);
  const url = new URL(serverUrl);
  url.pathname = `/${name}`;
  const owner = new pg.Client({ connectionString: url.toString() });
  await owner.connect();
  return {
    url: url.toString(),
    owner,
    async [Symbol.asyncDispose]() {
      await owner.end();
      await admin.query(`DROP DATABASE ${name} WITH (FORCE)`);
      await admin.end();
    },
  };
}
