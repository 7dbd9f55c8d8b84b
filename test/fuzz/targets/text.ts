// Short texts: ids, event types, page tokens, secrets, keys, Retry-After; and JSON as bytes.
import { isUtf8 } from 'node:buffer';
import { crc32 } from 'node:zlib';
import { formatApiKey, keyIdOf } from '../../../src/domain/api-key.ts';
import { parseRetryAfter, RETRY_AFTER_CAP_MS } from '../../../src/domain/backoff.ts';
import {
  createPatternIndex,
  eventTypeProblem,
  matchesPattern,
  patternProblem,
} from '../../../src/domain/event-type.ts';
import {
  encodeId,
  idBytes,
  type KeyId,
  parseDeliveryId,
  parseEventId,
  parseKeyId,
  parseReplayId,
  parseSubscriptionId,
  parseTenantId,
  uuidOf,
} from '../../../src/domain/ids.ts';
import { jsonProblem } from '../../../src/domain/json.ts';
import { isUuid, pageToken, parsePage } from '../../../src/domain/page.ts';
import { formatSecret, parseSecret } from '../../../src/domain/signature.ts';
import { patternRegex } from '../../../src/storage/dead-letters.ts';
import { decoded, ensure, isStorable, type Target } from '../target.ts';

const UUID = '01890a5d-ac96-774b-bcce-b302099a8057';
const ID = '01h455vb4pex5vsknk084sn02q';

const IDS = [
  ['evt', parseEventId],
  ['sub', parseSubscriptionId],
  ['dlv', parseDeliveryId],
  ['key', parseKeyId],
  ['rpl', parseReplayId],
] as const;

const ids: Target = {
  name: 'ids',
  about: 'an id that is taken is the text of its bytes, and of its own kind only',
  seeds: [
    ...IDS.map(([prefix]) => `${prefix}_${ID}`),
    `evt_7${'z'.repeat(25)}`,
    'acme',
    `a${'-'.repeat(62)}`,
  ],
  words: ['evt_', 'sub_', '7', '8', 'z', 'i', 'l', 'o', 'u', 'acme', '_', '-'],
  run(input) {
    const text = input.toString('utf8');
    for (const [prefix, parse] of IDS) {
      const id = decoded(() => parse(text));
      if (id === undefined) continue;
      ensure(encodeId(prefix, idBytes(id)) === text, 'it is another text for the same bytes');
      ensure(isUuid(uuidOf(id)), 'its uuid is none');
    }
    const tenantId = decoded(() => parseTenantId(text));
    if (tenantId !== undefined) ensure(/^[\w-]{1,63}$/.test(tenantId), 'a tenant id has other characters');
  },
};

const eventType: Target = {
  name: 'event-type',
  about: 'the index, the plain rule and the regular expression of SQL match the same',
  seeds: ['order.created order.*', 'a.b.c a.**', 'x **', 'dispatch.a dispatch.**', 'a.b *.b', 'a.b.c a.*.c'],
  words: ['.', '*', '**', '.*', '.**', ' ', 'dispatch', 'dispatch.', 'order', 'created'],
  run(input) {
    const [type = '', ...patterns] = input.toString('utf8').split(' ');
    const isOwn =
      type.startsWith('dispatch.') && eventTypeProblem(type.slice('dispatch.'.length)) === undefined;
    const valid = patterns.filter((pattern) => patternProblem(pattern) === undefined);
    if (eventTypeProblem(type) !== undefined && !isOwn) return;
    const index = createPatternIndex(
      valid.map((pattern) => ({ patterns: [pattern], value: pattern })),
      (a, b) => (a < b ? -1 : 1),
    );
    const found = index.match(type);
    for (const pattern of valid) {
      const matches = matchesPattern(pattern, type);
      ensure(found.includes(pattern) === matches, `the index and the rule differ about ${pattern}`);
      ensure(
        new RegExp(patternRegex(pattern)).test(type) === matches,
        `SQL and the rule differ about ${pattern}`,
      );
    }
  },
};

const SCOPES = ['events/acme/', 'events/acme/x', 'deliveries/acme/'];

const pageTokens: Target = {
  name: 'page-token',
  about: 'a token is taken by the list that made it only, and says what it was made of',
  seeds: [...SCOPES.map((scope) => pageToken(scope, UUID)), pageToken(SCOPES[0]!, '7'), ''],
  words: ['=', '-', '_', 'A', UUID, Buffer.from(UUID).toString('base64url')],
  run(input) {
    const text = input.toString('latin1');
    const taken = SCOPES.flatMap((scope) => {
      const request = { pageSize: text.length - 10, pageToken: text };
      const page = decoded(() => parsePage(request, scope, 500, isUuid));
      if (page === undefined) return [];
      ensure(page.size >= 1 && page.size <= 500, 'the page has no size');
      if (page.after === undefined) return [];
      ensure(pageToken(scope, page.after) === text, 'it is another token for the same page');
      return [scope];
    });
    ensure(taken.length <= 1, 'two lists take it');
  },
};

const secret: Target = {
  name: 'secret',
  about: 'a signing secret that is taken is written as it was read',
  seeds: [formatSecret(Buffer.alloc(24, 7)), formatSecret(Buffer.alloc(64, 255)), 'whsec_'],
  words: ['whsec_', '=', '==', '+', '/', '-', '_', 'A'],
  run(input) {
    const text = input.toString('latin1');
    const parsed = parseSecret(text);
    if ('problem' in parsed) return;
    ensure(parsed.key.length >= 24 && parsed.key.length <= 64, 'it has another length');
    ensure(formatSecret(parsed.key).replace(/=+$/, '') === text.replace(/=+$/, ''), 'it is another secret');
  },
};

const BASE62 = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';

/** A key's text with the checksum that it should have. */
export function withChecksum(text: string): string {
  const head = text.slice(0, 'dsp_live_'.length + 26 + 1 + 43);
  let checksum = '';
  for (let rest = crc32(head), i = 0; i < 6; i++, rest = Math.floor(rest / 62))
    checksum = BASE62[rest % 62]! + checksum;
  return head + checksum;
}

export const API_KEY = formatApiKey(`key_${ID}` as KeyId, Buffer.alloc(32, 9));

const apiKey: Target = {
  name: 'api-key',
  about: 'the id in a well-formed key is one that can be looked up',
  seeds: [API_KEY, formatApiKey(`key_7${'z'.repeat(25)}` as KeyId, Buffer.alloc(32))],
  words: ['dsp_live_', '_', '8', 'z', '0', ID],
  run(input) {
    const text = input.toString('latin1');
    for (const key of [text, withChecksum(text)]) {
      const id = keyIdOf(key);
      if (id !== undefined) ensure(isUuid(uuidOf(id)), 'the id is none');
    }
  },
};

const NOW = Date.UTC(2026, 10, 24, 10);

const retryAfter: Target = {
  name: 'retry-after',
  about: 'a wait is none, or whole milliseconds up to a day',
  seeds: [
    '120',
    'Tue, 24 Nov 2026 10:05:00 GMT',
    'Tuesday, 24-Nov-26 10:05:00 GMT',
    'Tue Nov 24 10:05:00 2026',
  ],
  words: [
    'Tue, ',
    'Nov',
    '2026',
    '275760',
    'GMT',
    '+9999',
    'Z',
    '0.5',
    '-1',
    '1e3',
    '999999999999999',
    '10:05:00',
  ],
  run(input) {
    const wait = parseRetryAfter(input.toString('latin1'), NOW);
    if (wait === undefined) return;
    ensure(Number.isInteger(wait) && wait >= 0 && wait <= RETRY_AFTER_CAP_MS, `the wait is ${wait}`);
  },
};

const json: Target = {
  name: 'json',
  about: 'JSON is what JSON.parse takes, up to a depth',
  seeds: ['{"a":[1,-2.5e+3,true,null,"\\u00e9\\n"],"b":{}}', `${'['.repeat(64)}${']'.repeat(64)}`, ' "x" '],
  words: [
    '{"a":',
    '}',
    '[',
    ']',
    '"',
    '\\',
    '\\u',
    '\\ud800',
    'e+',
    '1.',
    '.5',
    '01',
    'tru',
    'null',
    '\u2028',
    '//',
  ],
  run(input) {
    const problem = jsonProblem(input);
    if (problem?.includes('deeper') === true) return;
    ensure((problem === undefined) === (isUtf8(input) && parses(input)), `JSON.parse differs: ${problem}`);
    if (problem !== undefined) ensure(isStorable(problem), 'the problem shows bytes');
  },
};

function parses(bytes: Buffer): boolean {
  try {
    JSON.parse(bytes.toString('utf8'));
    return true;
  } catch {
    return false;
  }
}

export const TEXT_TARGETS: readonly Target[] = [ids, eventType, pageTokens, secret, apiKey, retryAfter, json];
