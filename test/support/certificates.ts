// Certificates for tests, made on the spot with openssl.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export type Pair = { readonly cert: string; readonly key: string };

export type Authority = Disposable & {
  readonly ca: string;
  /** A certificate for these names (`localhost`, `127.0.0.1`), signed by the authority. */
  readonly issue: (commonName: string, names: readonly string[]) => Pair;
  readonly directory: string;
};

export function createAuthority(): Authority {
  const directory = mkdtempSync(join(tmpdir(), 'dispatch-ca-'));
  const at = (name: string) => join(directory, name);
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: directory, stdio: 'pipe' });
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  openssl(
    'req',
    '-x509',
    ...curve,
    '-keyout',
    'ca.key',
    '-out',
    'ca.pem',
    '-days',
    '2',
    '-subj',
    '/CN=test CA',
  );
  let serial = 1;
  return {
    directory,
    ca: readFileSync(at('ca.pem'), 'utf8'),
    issue(commonName, names) {
      const n = `c${serial++}`;
      openssl('req', ...curve, '-keyout', `${n}.key`, '-out', `${n}.csr`, '-subj', `/CN=${commonName}`);
      const list = names.map((name) => (/^[\d.]+$/.test(name) ? `IP:${name}` : `DNS:${name}`));
      writeFileSync(at(`${n}.ext`), list.length > 0 ? `subjectAltName=${list.join(',')}\n` : '');
      const sign = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-set_serial', String(serial), '-days', '2'];
      openssl('x509', '-req', '-in', `${n}.csr`, ...sign, '-out', `${n}.pem`, '-extfile', `${n}.ext`);
      return { cert: readFileSync(at(`${n}.pem`), 'utf8'), key: readFileSync(at(`${n}.key`), 'utf8') };
    },
    [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
  };
}
