import { validateHeaderName, validateHeaderValue } from 'node:http';
import { isIP } from 'node:net';
import { checkAuth, checkTls, fixedAuthorization } from '../../../src/domain/credentials.ts';
import { Violations } from '../../../src/domain/errors.ts';
import { checkHeaders, urlProblem } from '../../../src/domain/subscription.ts';
import { createAddressGuard, hostOf } from '../../../src/egress/guard.ts';
import { decoded, ed25519Key, ensure, isStorable, linesOf, type Target } from '../target.ts';

const guard = createAddressGuard([]);

const url: Target = {
  name: 'url',
  about:
    'a URL that is taken leads to no address that the guard refuses, and makes a request that can be sent',
  seeds: [
    'https://example.com/hooks?a=b',
    'http://example.com:8080/',
    'https://[2606:4700::1111]/x',
    'https://1.1.1.1/',
    'https://xn--nxasmq6b.example/ü?q=%00',
    'https://example.com./',
  ],
  words: [
    'https://',
    'http://',
    '127.0.0.1',
    '0x7f.1',
    '2130706433',
    '0177.1',
    '[::1]',
    '[::ffff:7f00:1]',
    'localhost',
    '.localhost',
    '169.254.169.254',
    '@',
    '#',
    '?',
    ':443',
    ':22',
    ':0',
    '。',
    '１',
    '%31',
    '[',
    ']',
    'xn--',
    '\u00ad',
  ],
  run(input) {
    const text = input.toString('utf8');
    if (urlProblem(text) !== undefined) return;
    const parsed = new URL(text);
    if (guard.urlProblem(parsed, true) !== undefined) return;
    const host = hostOf(parsed);
    ensure(isStorable(text), 'it cannot be stored');
    ensure(isIP(host) === 0 || guard.allows(host), `the address ${host} is refused`);
    ensure(!/(?:^|\.)localhost\.?$/.test(host), 'it is this host');
    ensure(/^[\x21-\x7e]+$/.test(parsed.pathname + parsed.search), 'its path cannot be sent');
    ensure(/^[\x21-\x7e]+$/.test(parsed.origin), 'its host cannot be sent');
    const again = new URL(parsed.href);
    ensure(
      urlProblem(parsed.href) === undefined || parsed.href.length > 2048,
      'it is refused as it is normalised',
    );
    ensure(guard.urlProblem(again, true) === undefined, 'it leads elsewhere as it is normalised');
  },
};

const address: Target = {
  name: 'address',
  about: 'an address is judged alike in all its spellings, and what is none is refused',
  seeds: [
    '127.0.0.1',
    '1.1.1.1',
    '::1',
    '2606:4700::1111',
    '::ffff:1.1.1.1',
    '::ffff:127.0.0.1',
    'fe80::1%eth0',
  ],
  words: [':', '::', '.', 'ffff', '::ffff:', '0', '00', 'fe80', '64:ff9b::', '2002:', '%', '255', '10'],
  run(input) {
    const text = input.toString('latin1');
    const allowed = guard.allows(text);
    const family = isIP(text);
    if (family === 0) ensure(!allowed, 'it is no address');
    if (family === 6 && !text.includes('%')) {
      const same = new URL(`http://[${text}]/`).hostname.slice(1, -1);
      ensure(guard.allows(same) === allowed, `${same} is judged otherwise`);
      ensure(guard.allows(text.toUpperCase()) === allowed, 'it is judged otherwise in capitals');
    }
    if (family === 4)
      ensure(guard.allows(`::ffff:${text}`) === allowed, 'it is judged otherwise when mapped');
  },
};

const NOT_THEIRS =
  /^(?:host|connection|keep-alive|transfer-encoding|te|trailer|upgrade|expect|cookie|forwarded|via|x-forwarded-.*|content-.*|proxy-.*|webhook-.*|dispatch-.*)$/i;

const headers: Target = {
  name: 'headers',
  about: 'custom headers that are taken can be sent, and are nobody else’s',
  seeds: [
    'X-Api-Key:abc\nX-Team:ops',
    'host:a',
    'Transfer-Encoding:chunked\nContent-Length:0',
    '__proto__:x',
  ],
  words: [
    'Host',
    'content-',
    'x-forwarded-',
    'webhook-',
    'cookie',
    ':',
    '\n',
    '\r',
    '-',
    'proxy-',
    'X-',
    'ſ',
    'K',
  ],
  run(input) {
    const given = linesOf(input);
    const taken = decoded(() => {
      const wrong = new Violations();
      checkHeaders(given, 'subscription.headers', wrong);
      wrong.throwIfAny();
      return given;
    });
    for (const [name, value] of Object.entries(taken ?? {})) {
      validateHeaderName(name);
      validateHeaderValue(name, value);
      ensure(!NOT_THEIRS.test(name), `${name} is not theirs`);
    }
  },
};

const OAUTH = {
  kind: 'oauth2',
  tokenUrl: 'https://auth.example/token',
  clientId: 'a',
  clientSecret: 'b',
  scopes: [],
  audience: '',
} as const;

const auth: Target = {
  name: 'auth',
  about: 'credentials that are taken make a header that can be sent',
  seeds: ['user\npass', 'to.ken\n', 'client\nsecret\nscope'],
  words: ['\n', ':', 'é', '\x7f', ' '],
  run(input) {
    const [a = '', b = '', ...scopes] = input.toString('latin1').split('\n');
    const kinds = [
      { kind: 'basic', username: a, password: b },
      { kind: 'bearer', token: a },
      { ...OAUTH, clientId: a, clientSecret: b, scopes, audience: b },
    ] as const;
    for (const kind of kinds) {
      const taken = decoded(() => {
        const wrong = new Violations();
        checkAuth(kind, 'subscription.auth', urlProblem, wrong);
        wrong.throwIfAny();
        return kind;
      });
      if (taken === undefined) continue;
      const header = fixedAuthorization(taken) ?? '';
      validateHeaderValue('authorization', header);
      const given =
        taken.kind === 'basic' ? Buffer.from(header.slice(6), 'base64').toString('latin1') : undefined;
      if (given !== undefined) ensure(given === `${a}:${b}`, 'the endpoint reads another name or password');
    }
  },
};

/** Of the key below; valid until 2126, for nobody. */
const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBNDCB56ADAgECAhRXTvWnaWpaPt2uWfeFRXWPt0yP0DAFBgMrZXAwDzENMAsG
A1UEAwwEZnV6ejAgFw0yNjExMjUxMjI3NTdaGA8yMTI2MTEwMTEyMjc1N1owDzEN
MAsGA1UEAwwEZnV6ejAqMAUGAytlcAMhAIqI4910CfGV/VLbLTy6XXLKZwm/HZQS
G/N0iAG0D29co1MwUTAdBgNVHQ4EFgQUmtGeDxbu9xTLkMbxldvOZulFgPkwHwYD
VR0jBBgwFoAUmtGeDxbu9xTLkMbxldvOZulFgPkwDwYDVR0TAQH/BAUwAwEB/zAF
BgMrZXADQQBXtxwVlHFCmzXYJ0WcmpyKHf4M2H26wyBbK5Lx5KqAbZbFA8sJLWTk
t0B/pwq5Gh2pFivswE9UVD2eCRY5vi4L
-----END CERTIFICATE-----
`;
const PRIVATE_KEY = String(ed25519Key(1).export({ format: 'pem', type: 'pkcs8' }));

const tls: Target = {
  name: 'tls',
  about: 'PEM texts are read or refused, and no more',
  seeds: [`${CERTIFICATE}\0${PRIVATE_KEY}\0`, `\0\0${CERTIFICATE}${CERTIFICATE}`, '\0\0'],
  words: [
    '\0',
    '-----BEGIN CERTIFICATE-----',
    '-----END CERTIFICATE-----',
    '\n',
    '=',
    'MII',
    'ENCRYPTED ',
    'EC ',
  ],
  run(input) {
    const [certificatePem = '', privateKeyPem = '', caPem = ''] = input.toString('latin1').split('\0');
    decoded(() => {
      const wrong = new Violations();
      checkTls({ certificatePem, privateKeyPem, caPem }, 'subscription.tls', wrong);
      wrong.throwIfAny();
    });
  },
};

export const ENDPOINT_TARGETS: readonly Target[] = [url, address, headers, auth, tls];
