// A PostgreSQL that speaks TLS, and asks callers for a certificate.
import { chown, mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { asOwner } from '../../src/storage/database.ts';
import { findPlace, removeEmbedded, startEmbedded } from '../../src/storage/embedded.ts';
import { createAuthority, type Pair } from '../support/certificates.ts';
import { eventually } from '../support/eventually.ts';
import { environmentOn } from '../support/fleet.ts';
import { ADMIN_KEY, clientsOf } from '../support/instance.ts';
import { spawnDispatch } from '../support/processes.ts';
import { startReceiver } from '../support/receiver.ts';

const authority = createAuthority();
const mine = authority.issue('dispatch', []);
const at = (name: string) => join(authority.directory, name);
const stack = new AsyncDisposableStack();
let plainUrl: string;
/** Gives the server another certificate. */
let useCertificate: (pair: Pair) => Promise<void>;

beforeAll(async () => {
  stack.use(authority);
  await writeFile(at('mine.pem'), mine.cert);
  await writeFile(at('mine.key'), mine.key);
  const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-tls-'));
  stack.defer(() => removeEmbedded(dataDir));
  const { home, user } = await findPlace(dataDir);
  const give = async (name: string, text: string) => {
    await writeFile(join(home, name), text, { mode: 0o600 });
    if (user !== undefined) await chown(join(home, name), user.uid, user.gid);
  };
  const giveBoth = async ({ cert, key }: Pair) => {
    await give('server.pem', cert);
    await give('server.key', key);
  };
  await give('ca.pem', authority.ca);
  await giveBoth(authority.issue('localhost', ['localhost']));
  const files = { ssl_cert_file: 'server.pem', ssl_key_file: 'server.key', ssl_ca_file: 'ca.pem' };
  const settings = Object.entries(files).map(([name, file]) => `${name}=${join(home, file)}`);
  const server = stack.use(await startEmbedded({ dataDir, settings: ['ssl=on', ...settings] }));
  plainUrl = server.url;
  useCertificate = async (pair) => {
    await giveBoth(pair);
    await asOwner(plainUrl, (client) => client.query('SELECT pg_reload_conf()'));
  };
});
afterAll(() => stack.disposeAsync());

/** The server by its name, with what is said of TLS. */
function urlWith(asked: Readonly<Record<string, string>>): string {
  const url = new URL(plainUrl);
  url.hostname = 'localhost';
  for (const [name, value] of Object.entries(asked)) url.searchParams.set(name, value);
  return url.toString();
}

const OWN = { sslrootcert: at('ca.pem'), sslcert: at('mine.pem'), sslkey: at('mine.key') };

test.each(['verify-full', 'require', 'no-verify'])(
  'every connection is encrypted and shows the client certificate, with sslmode=%s',
  async (sslmode) => {
    await using receiver = await startReceiver();
    const dispatch = await spawnDispatch(environmentOn(urlWith({ sslmode, ...OWN })));
    const { tenants, subscriptions, publish } = clientsOf(dispatch.httpPort, ADMIN_KEY);
    const tenantId = `t-${sslmode}`;
    await tenants.createTenant({ tenant: { tenantId } });
    await subscriptions.createSubscription({
      tenantId,
      subscription: { url: receiver.url, eventTypes: ['**'] },
    });
    await publish.publish({ tenantId, event: { type: 'a', body: { case: 'data', value: {} } } });
    await eventually(() => expect(receiver.received).toHaveLength(1));
    const sessions = await asOwner(plainUrl, async (client) => {
      // Of one that is being authenticated the server says that it has no TLS, whatever it has.
      const { rows } = await client.query<{ application_name: string; ssl: boolean; client_dn: string }>(
        `SELECT application_name, ssl, client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'starting'`,
      );
      return rows;
    });
    const pools = ['dispatch-engine', 'dispatch-claims', 'dispatch-listen', ''];
    expect(sessions.map((session) => session.application_name)).toEqual(expect.arrayContaining(pools));
    for (const session of sessions) expect(session).toMatchObject({ ssl: true, client_dn: '/CN=dispatch' });
    expect(dispatch.output()).not.toContain('Warning');
    expect(await dispatch.kill('SIGTERM')).toBe(0);
  },
);

test('a server that another authority vouches for is refused, in one line', async () => {
  using other = createAuthority();
  const ca = join(other.directory, 'ca.pem');
  await expect(refusalOf({ sslmode: 'verify-full', sslrootcert: ca })).resolves.toMatch(/certificate/);
  await expect(refusalOf({ sslmode: 'require' })).resolves.toMatch(/certificate/);
});

test('a server with a certificate for another name is refused, in one line', async () => {
  await useCertificate(authority.issue('db.example', ['db.example']));
  await expect(refusalOf({ sslmode: 'verify-full', ...OWN })).resolves.toMatch(/localhost.*db\.example/);
});

test('a file that cannot be read stops the start, in one line that names it', async () => {
  await expect(refusalOf({ sslmode: 'verify-full', sslrootcert: '/nowhere/ca.pem' })).resolves.toMatch(
    /DISPATCH_DATABASE_URL has sslrootcert=\/nowhere\/ca\.pem: .*ENOENT/,
  );
});

/** The one line that a start ends with. */
async function refusalOf(asked: Readonly<Record<string, string>>): Promise<string> {
  const error: Error = await spawnDispatch(environmentOn(urlWith(asked))).then(
    () => Promise.reject(new Error('it started')),
    (refusal) => refusal,
  );
  const [head = '', ...lines] = error.message.trim().split('\n');
  expect(head).toMatch('ended with 1 before it was ready');
  expect(lines).toHaveLength(1);
  return lines[0]!;
}
