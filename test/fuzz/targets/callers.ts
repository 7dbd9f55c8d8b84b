// Who calls: authorization headers, JWTs, their claims, and the keys of their issuers.
import { createPublicKey, sign } from 'node:crypto';
import type { JwtIssuer } from '../../../src/config.ts';
import { hashApiKey } from '../../../src/domain/api-key.ts';
import { parseTenantId, type TenantId, uuidOf } from '../../../src/domain/ids.ts';
import type { Fetcher } from '../../../src/egress/fetcher.ts';
import { createAuthenticate, type Principal } from '../../../src/rpc/authentication.ts';
import { createJwtVerifier } from '../../../src/rpc/jwt.ts';
import { checkRefusal, ed25519Key, ensure, isStorable, type Target } from '../target.ts';
import { API_KEY, withChecksum } from './text.ts';

const ADMIN_KEY = 'an-admin-key-of-some-length';
const GOOD = [ADMIN_KEY, API_KEY];

const authenticate = createAuthenticate({
  adminKey: ADMIN_KEY,
  findKey: async (keyId) => {
    uuidOf(keyId); // as the statement does that looks it up
    if (!API_KEY.includes(keyId.slice('key_'.length))) return undefined;
    const record = {
      tenantId: 'acme' as TenantId,
      role: 'publisher',
      isLive: true,
      expiresInMs: undefined,
    } as const;
    return { ...record, hash: hashApiKey(API_KEY) };
  },
  noteUse: () => {},
  verifyJwt: undefined,
  onRefused: ({ actor, reason }) => ensure(isStorable(actor + reason), 'the refusal cannot be logged'),
  refusalsPerMinute: 1_000_000_000,
  now: () => performance.now(),
});

/** The principal, or undefined for a refusal that explains itself. */
async function principalOf(find: () => Principal | Promise<Principal>): Promise<Principal | undefined> {
  try {
    return await find();
  } catch (error) {
    checkRefusal(error, ['UNAUTHENTICATED', 'UNAVAILABLE']);
    return undefined;
  }
}

const authorization: Target = {
  name: 'authorization',
  about: 'a header names nobody but whose key it has, and is refused with UNAUTHENTICATED',
  seeds: [...GOOD.map((key) => `Bearer ${key}`), `bearer ${API_KEY}`, 'Basic YTpi', 'Bearer a.b.c'],
  words: ['Bearer ', 'bearer', 'Basic ', 'dsp_live_', ADMIN_KEY, API_KEY, '.', '_'],
  async run(input) {
    const header = input.toString('latin1');
    const prefix = 'Bearer ';
    for (const text of [header, prefix + withChecksum(header.slice(prefix.length))]) {
      const principal = await principalOf(() => authenticate(text, '192.0.2.1'));
      if (principal === undefined) continue;
      ensure(GOOD.includes(text.slice(prefix.length)), `somebody else is ${principal.actor}`);
    }
  },
};

const KEY = ed25519Key(1);
const PUBLIC = createPublicKey(KEY).export({ format: 'jwk' });
const JWKS = JSON.stringify({ keys: [{ ...PUBLIC, kid: 'k1', alg: 'EdDSA', use: 'sig' }] });

const ISSUER: JwtIssuer = {
  issuer: 'https://issuer.example',
  audience: 'dispatch',
  jwksUrl: 'https://issuer.example/keys',
  algorithms: ['EdDSA', 'ES256', 'RS256'],
  tenantClaim: 'tenant_id',
  roleClaim: 'role',
};
const CLAIMS = {
  iss: ISSUER.issuer,
  aud: ISSUER.audience,
  exp: 4_102_444_800, // 2100
  sub: 'someone',
  tenant_id: 'acme',
  role: 'publisher',
};

const encoded = (value: string) => Buffer.from(value).toString('base64url');
function signed(payload: string, header: object = { alg: 'EdDSA', kid: 'k1' }, key = KEY): string {
  const head = `${encoded(JSON.stringify(header))}.${encoded(payload)}`;
  return `${head}.${sign(null, Buffer.from(head), key).toString('base64url')}`;
}

const answering =
  (body: Buffer): Fetcher =>
  async () => ({ status: 200, body });
const verifierOf = (jwks: Buffer) => createJwtVerifier([ISSUER], answering(jwks), Date.now)!;
const verifier = verifierOf(Buffer.from(JWKS));

const TOKEN = signed(JSON.stringify(CLAIMS));
const TOKENS = [TOKEN, signed(JSON.stringify({ ...CLAIMS, role: 'viewer', aud: ['x', 'dispatch'] }))];
const BAD_TOKENS = [
  `${encoded('{"alg":"none"}')}.${encoded(JSON.stringify(CLAIMS))}.`,
  signed(JSON.stringify(CLAIMS), { alg: 'HS256', kid: 'k1' }),
  signed(JSON.stringify(CLAIMS), { alg: 'EdDSA', kid: 'k1' }, ed25519Key(2)),
  signed(JSON.stringify({ ...CLAIMS, exp: 1 })),
];
const headOf = (token: string) => token.slice(0, token.lastIndexOf('.'));

const jwt: Target = {
  name: 'jwt',
  about: 'a token is taken only if the issuer signed what it says',
  seeds: [...TOKENS, ...BAD_TOKENS],
  words: [
    '.',
    '..',
    ...[...TOKENS, ...BAD_TOKENS].flatMap((token) => token.split('.')),
    encoded('{"alg":"none"}'),
  ],
  async run(input) {
    const token = input.toString('latin1');
    const principal = await principalOf(() => verifier(token));
    if (principal === undefined) return;
    ensure(TOKENS.map(headOf).includes(headOf(token)), `a token that nobody signed is ${principal.actor}`);
  },
};

const claims: Target = {
  name: 'jwt-claims',
  about: 'whatever an issuer signs: a principal that can be stored, or UNAUTHENTICATED',
  seeds: [
    JSON.stringify(CLAIMS),
    JSON.stringify({ ...CLAIMS, role: 'platform-admin', sub: 7, nbf: 1, iat: 1 }),
    '{}',
  ],
  words: [
    ...Object.keys(CLAIMS),
    '"',
    ':',
    ',',
    '\\u0000',
    '\\ud83d',
    'platform-admin',
    '[',
    ']',
    'nbf',
    '__proto__',
  ],
  async run(input) {
    const principal = await principalOf(() => verifier(signed(input.toString('utf8'))));
    if (principal === undefined) return;
    const { actor, tenantId, role } = principal;
    ensure(isStorable(actor) && actor.length <= 512, 'the audit log cannot name the actor');
    ensure((tenantId === undefined) === (role === 'platform-admin'), 'a role has the wrong reach');
    if (tenantId !== undefined) parseTenantId(tenantId);
  },
};

const jwks: Target = {
  name: 'jwks',
  about: 'whatever an issuer’s keys are: its tokens are taken, refused, or UNAVAILABLE',
  seeds: [JWKS, '{"keys":[]}', '{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"EC","crv":"P-256"}]}'],
  words: [
    'keys',
    'kty',
    'kid',
    'OKP',
    'Ed25519',
    'RSA',
    'alg',
    'EdDSA',
    'use',
    'enc',
    'x',
    '"',
    '[',
    '{',
    String(PUBLIC.x),
  ],
  async run(input) {
    const principal = await principalOf(() => verifierOf(input)(TOKEN));
    if (principal !== undefined)
      ensure(principal.tenantId === CLAIMS.tenant_id, 'the token says something else');
  },
};

export const CALLER_TARGETS: readonly Target[] = [authorization, jwt, claims, jwks];
