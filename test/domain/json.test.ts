// The check of JSON bytes: exactly what JSON.parse takes, up to a depth.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { jsonProblem, MAX_JSON_DEPTH } from '../../src/domain/json.ts';

const isJson = (text: string) => {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
};
const accepts = (text: string) => jsonProblem(Buffer.from(text)) === undefined;

describe('JSON bytes', () => {
  test.each([
    '{}',
    '[]',
    ' \t\r\n{ "a" : [ 1 , -0.5e+10 , true , false , null , "x" ] } ',
    '"\\u00e9\\ud800\\"\\\\\\/\\b\\f\\n\\r\\t"',
    '0',
    '-0',
    '1E5',
    '10.25e-3',
    '"ü€😀\u2028"',
    '{"a":1,"a":2}',
    '[[],{},[{}]]',
  ])('%j is taken', (text) => {
    expect(isJson(text)).toBe(true);
    expect(accepts(text)).toBe(true);
  });

  test.each([
    '',
    ' ',
    '{',
    '[1,]',
    '{"a":1,}',
    '{"a"}',
    '{"a" 1}',
    '{a:1}',
    '{"a":}',
    "'a'",
    '"a',
    '"\\x"',
    '"\\u12g4"',
    '"\\u12',
    '"\\',
    '"\n"',
    '"\u0000"',
    '01',
    '-',
    '+1',
    '1.',
    '.5',
    '1e',
    '1e+',
    'tru',
    'nulls',
    'NaN',
    '1 2',
    '[1}',
    '{"a":1]',
    '[1 2]',
    ']',
    '\ufeff{}',
    '\u00a01',
    '[,1]',
    '1-2',
  ])('%j is refused', (text) => {
    expect(isJson(text)).toBe(false);
    expect(jsonProblem(Buffer.from(text))).toContain('is not valid JSON');
  });

  test('what is not UTF-8 is refused, wherever it stands', () => {
    for (const bytes of [
      [0x22, 0xff, 0x22],
      [0xc0, 0x80],
      [0x22, 0xed, 0xa0, 0x80, 0x22],
    ]) {
      expect(jsonProblem(Buffer.from(bytes))).toContain('UTF-8');
    }
  });

  test('any JSON is taken, and cut short it is judged as JSON.parse judges it', () => {
    fc.assert(
      fc.property(fc.json({ maxDepth: 6 }), fc.nat(), (text, cut) => {
        expect(accepts(text)).toBe(true);
        const part = text.slice(0, cut % (text.length + 1));
        // Half of a surrogate pair is not text that bytes could hold.
        if (part.isWellFormed()) expect(accepts(part)).toBe(isJson(part));
      }),
    );
  });

  test('with a byte changed it is judged as JSON.parse judges it', () => {
    const byte = fc.constantFrom(...'{}[]",:\\u0159-+.eE tfn\n\t/x'.split(''));
    fc.assert(
      fc.property(fc.json({ maxDepth: 4 }), fc.nat(), byte, fc.boolean(), (text, n, char, inserts) => {
        const at = n % (text.length + 1);
        const changed = text.slice(0, at) + char + text.slice(inserts ? at : at + 1);
        if (changed.isWellFormed()) expect(accepts(changed)).toBe(isJson(changed));
      }),
      { numRuns: 2_000 },
    );
  });

  test('random bytes are judged as JSON.parse judges them', () => {
    const token = fc.constantFrom(
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      '"',
      'a',
      '1',
      '-',
      '.',
      'e',
      'null',
      ' ',
      '\\',
      '\n',
    );
    fc.assert(
      fc.property(fc.array(token, { maxLength: 12 }), (tokens) => {
        const text = tokens.join('');
        expect(accepts(text)).toBe(isJson(text));
      }),
      { numRuns: 5_000 },
    );
  });

  test.each(['[', '{"a":'])('%j nests 64 deep and no deeper, whatever stands beside it', (opening) => {
    const nested = (depth: number) =>
      `${opening.repeat(depth)}1${(opening === '[' ? ']' : '}').repeat(depth)}`;
    expect(accepts(nested(MAX_JSON_DEPTH))).toBe(true);
    expect(accepts(`[${nested(MAX_JSON_DEPTH - 1)},${nested(MAX_JSON_DEPTH - 1)}]`)).toBe(true);
    expect(jsonProblem(Buffer.from(nested(MAX_JSON_DEPTH + 1)))).toContain('deeper than 64');
    expect(jsonProblem(Buffer.from(nested(5_000_000)))).toContain('deeper than 64');
    expect(jsonProblem(Buffer.from(`"${'['.repeat(1_000)}"`))).toBeUndefined();
    expect(jsonProblem(Buffer.from('[]'.repeat(100)))).toContain('is not valid JSON');
  });
});
