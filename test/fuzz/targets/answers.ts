// What endpoints and token URLs answer.
import { createHmac } from 'node:crypto';
import { answersChallenge } from '../../../src/delivery/test-delivery.ts';
import { DEFAULT_RETRY_POLICY } from '../../../src/domain/backoff.ts';
import { NO_TIMING, type SendResult } from '../../../src/domain/delivery.ts';
import { signingKey } from '../../../src/domain/signature.ts';
import { judge } from '../../../src/domain/verdict.ts';
import { createAuthorizer } from '../../../src/egress/authorization.ts';
import { keptHeaders } from '../../../src/egress/sender.ts';
import { ensure, isStorable, linesOf, type Target } from '../target.ts';

const answer: Target = {
  name: 'answer',
  about:
    'whatever an endpoint answers: a verdict, with a wait that the schedule allows, and headers that can be stored',
  seeds: [
    '200\nretry-after:1',
    '503\nretry-after:120\nwebhook-delivery: Disable',
    '429\nretry-after:Tue, 24 Nov 2026 10:05:00 GMT',
    '400\nwebhook-delivery:abort',
    '302\nlocation:http://127.0.0.1/',
  ],
  words: [
    '200',
    '204',
    '410',
    '429',
    '503',
    '599',
    '\n',
    ':',
    'retry-after',
    'webhook-delivery',
    'abort',
    'disable',
    '\t',
  ],
  run(input) {
    const [first = '', ...rest] = input.toString('latin1').split('\n');
    const given = linesOf(Buffer.from(rest.join('\n'), 'latin1'));
    const status = Number.parseInt(first, 10) || 200;
    const kept = keptHeaders(given);
    const keptBytes = Object.entries(kept).reduce(
      (sum, [name, value]) => sum + name.length + value.length,
      0,
    );
    ensure(keptBytes <= 4096, `${keptBytes} bytes of headers are kept`);
    const result: SendResult = {
      kind: 'response',
      status,
      retryAfter: given['retry-after'],
      control: given['webhook-delivery'],
      body: input,
      headers: kept,
      timing: NO_TIMING,
    };
    const nowMs = Date.UTC(2026, 10, 24, 10);
    const policy = DEFAULT_RETRY_POLICY;
    const verdict = judge({ result, policy, attemptOfRound: 1, ageMs: 0, nowMs, random: 0.5 });
    ensure(
      (verdict.kind === 'succeeded') === (status >= 200 && status < 300),
      `${status} is ${verdict.kind}`,
    );
    if (verdict.kind === 'retry')
      ensure(
        Number.isInteger(verdict.delayMs) && verdict.delayMs >= 0 && verdict.delayMs <= 86_400_000,
        'no delay',
      );
    if (verdict.kind !== 'succeeded') ensure(isStorable(verdict.message), 'the message cannot be stored');
  },
};

const CHALLENGE = 'p9XG3Fq0mJ1v';
const SECRET = Buffer.alloc(32, 5);
const SIGNATURE = `v1,${createHmac('sha256', SECRET).update(CHALLENGE).digest('base64')}`;
const secrets = [
  { key: signingKey('v1', SECRET), liveUntilMs: 0 },
  { key: signingKey('v1a', SECRET), liveUntilMs: 0 },
];

const challenge: Target = {
  name: 'challenge',
  about: 'an endpoint is verified only by the challenge or its signature',
  seeds: [
    CHALLENGE,
    ` ${CHALLENGE}\n`,
    JSON.stringify({ challenge: CHALLENGE }),
    JSON.stringify({ signature: SIGNATURE }),
  ],
  words: ['challenge', 'signature', CHALLENGE, SIGNATURE, '"', ':', '{', 'v1,', 'null', '[]'],
  run(input) {
    if (!answersChallenge(input, CHALLENGE, { secrets })) return;
    const text = JSON.stringify(parsed(input.toString('utf8')));
    ensure(text.includes(CHALLENGE) || text.includes(SIGNATURE), 'it has neither');
  },
};

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

const OAUTH = {
  kind: 'oauth2',
  tokenUrl: 'https://auth.example/token',
  clientId: 'a',
  clientSecret: 'b',
  scopes: [],
  audience: '',
} as const;

const tokenAnswer: Target = {
  name: 'token-answer',
  about: 'an answer of a token URL is a bearer token that can be sent, or a sentence',
  seeds: [
    '{"access_token":"abc","token_type":"Bearer","expires_in":3600}',
    '{"access_token":"a","expires_in":"60"}',
    'null',
  ],
  words: [
    'access_token',
    'token_type',
    'Bearer',
    'expires_in',
    '"',
    ':',
    ',',
    '1e999',
    '-1',
    '\\n',
    '\\u0000',
    '[]',
  ],
  async run(input) {
    // A clock that stands still: a token that was fetched is not asked for again by mistake.
    const authorizer = createAuthorizer(
      async () => ({ status: 200, body: input }),
      () => 0,
    );
    try {
      const header = await authorizer.of('sub', OAUTH);
      ensure(/^Bearer [\x21-\x7e]{1,8192}$/.test(header), 'the header cannot be sent');
    } catch (error) {
      ensure(
        error instanceof Error && error.message === 'the token URL did not answer with a bearer token',
        String(error),
      );
    }
  },
};

export const ANSWER_TARGETS: readonly Target[] = [answer, challenge, tokenAnswer];
