// How dispatch authenticates to an endpoint, checked. Kept sealed; shown without its secrets.
import { createPrivateKey, X509Certificate } from 'node:crypto';
import type { Violations } from './errors.ts';

/** What the authorization header of an attempt holds. */
export type EndpointAuth =
  | { readonly kind: 'basic'; readonly username: string; readonly password: string }
  | { readonly kind: 'bearer'; readonly token: string }
  | {
      readonly kind: 'oauth2';
      readonly tokenUrl: string;
      readonly clientId: string;
      readonly clientSecret: string;
      readonly scopes: readonly string[];
      readonly audience: string;
    };

/** PEM texts; empty ones are not given. */
export type EndpointTls = {
  readonly certificatePem: string;
  readonly privateKeyPem: string;
  readonly caPem: string;
};

export type EndpointCredentials = {
  readonly auth: EndpointAuth | undefined;
  readonly tls: EndpointTls | undefined;
};

export const NO_CREDENTIALS: EndpointCredentials = { auth: undefined, tls: undefined };

const printable = (text: string, max: number) => text.length <= max && /^[\x21-\x7e]+$/.test(text);
const spaced = (text: string, max: number) => text.length <= max && /^[\x20-\x7e]+$/.test(text);

/** Checks what goes into the authorization header. `urlProblem` judges the token URL as it does endpoints. */
export function checkAuth(
  auth: EndpointAuth,
  path: string,
  urlProblem: (url: string) => string | undefined,
  wrong: Violations,
): void {
  switch (auth.kind) {
    case 'basic': {
      const name = spaced(auth.username, 256) && !auth.username.includes(':');
      wrong.check(name, `${path}.basic.username`, 'must be 1–256 printable ASCII characters without a colon');
      const word = spaced(auth.password, 1024);
      wrong.check(word, `${path}.basic.password`, 'must be 1–1,024 printable ASCII characters');
      return;
    }
    case 'bearer':
      wrong.check(
        printable(auth.token, 4096),
        `${path}.bearer.token`,
        'must be 1–4,096 printable ASCII characters without spaces',
      );
      return;
    case 'oauth2': {
      const at = `${path}.oauth2`;
      const problem = urlProblem(auth.tokenUrl);
      if (problem !== undefined) wrong.add(`${at}.token_url`, problem);
      wrong.check(spaced(auth.clientId, 512), `${at}.client_id`, 'must be 1–512 printable ASCII characters');
      wrong.check(
        spaced(auth.clientSecret, 1024),
        `${at}.client_secret`,
        'must be 1–1,024 printable ASCII characters',
      );
      const scopes = auth.scopes.length <= 32 && auth.scopes.every((s) => printable(s, 128));
      wrong.check(
        scopes,
        `${at}.scopes`,
        'must be at most 32 scopes of 1–128 printable ASCII characters without spaces',
      );
      wrong.check(
        auth.audience === '' || spaced(auth.audience, 512),
        `${at}.audience`,
        'must be at most 512 printable ASCII characters',
      );
    }
  }
}

/** Checks PEM texts by reading them. */
export function checkTls(tls: EndpointTls, path: string, wrong: Violations): void {
  const { certificatePem, privateKeyPem, caPem } = tls;
  wrong.check(
    (certificatePem === '') === (privateKeyPem === ''),
    `${path}.private_key_pem`,
    'and certificate_pem must be given together',
  );
  wrong.check(
    certificatePem !== '' || caPem !== '',
    path,
    'needs a client certificate with its key, or authorities to trust (ca_pem)',
  );
  checkCertificates(certificatePem, 32 * 1024, `${path}.certificate_pem`, wrong);
  checkCertificates(caPem, 64 * 1024, `${path}.ca_pem`, wrong);
  if (privateKeyPem === '') return;
  wrong.check(privateKeyPem.length <= 16 * 1024, `${path}.private_key_pem`, 'must be at most 16 KiB');
  try {
    const key = createPrivateKey(privateKeyPem);
    const certificate = new X509Certificate(certificatePem);
    wrong.check(
      certificate.checkPrivateKey(key),
      `${path}.private_key_pem`,
      'is not the key of certificate_pem',
    );
  } catch {
    wrong.add(`${path}.private_key_pem`, 'must be an unencrypted private key in PEM');
  }
}

function checkCertificates(pem: string, maxBytes: number, path: string, wrong: Violations): void {
  if (pem === '') return;
  wrong.check(pem.length <= maxBytes, path, `must be at most ${maxBytes / 1024} KiB`);
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  try {
    if (blocks.length === 0) throw new Error('no certificate');
    for (const block of blocks) new X509Certificate(block);
  } catch {
    wrong.add(path, 'must be certificates in PEM (-----BEGIN CERTIFICATE-----)');
  }
}

/** The authorization header of fixed credentials; undefined for those that need a token first. */
export function fixedAuthorization(auth: EndpointAuth): string | undefined {
  switch (auth.kind) {
    case 'basic':
      return `Basic ${Buffer.from(`${auth.username}:${auth.password}`, 'latin1').toString('base64')}`;
    case 'bearer':
      return `Bearer ${auth.token}`;
    case 'oauth2':
      return undefined;
  }
}
