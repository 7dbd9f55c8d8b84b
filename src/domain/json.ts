// JSON as bytes: checked, never re-serialised. Checked by one pass over the bytes that builds nothing: JSON.parse took four
// times as long for 452 bytes and left a twentieth of all the garbage of publishing and delivering (docs/benchmarks.md).
import { isUtf8 } from 'node:buffer';

/** Deeper JSON is refused: JSON.parse takes 5,000,000 levels, JSON.stringify dies of 5,000. */
export const MAX_JSON_DEPTH = 64;

const TAB = 0x09;
const LF = 0x0a;
const CR = 0x0d;
const SPACE = 0x20;
const QUOTE = 0x22;
const COMMA = 0x2c;
const MINUS = 0x2d;
const DOT = 0x2e;
const ZERO = 0x30;
const NINE = 0x39;
const COLON = 0x3a;
const OPEN_ARRAY = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_ARRAY = 0x5d;
const LETTER_E = 0x65;
const LETTER_U = 0x75;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
/** Sets the bit by which a capital letter differs from a small one. */
const SMALL = 0x20;
const ESCAPES = new Set([...'"\\/bfnrt'].map((c) => c.charCodeAt(0)));
/** 1 for a byte that stands for itself in a string. */
const IS_PLAIN = new Uint8Array(256).fill(1, SPACE);
IS_PLAIN[QUOTE] = 0;
IS_PLAIN[BACKSLASH] = 0;
const LITERALS = ['true', 'false', 'null'].map((word) => Buffer.from(word));

/** What is wrong with bytes that should be JSON (RFC 8259), or undefined. */
export function jsonProblem(bytes: Uint8Array): string | undefined {
  if (!isUtf8(bytes)) return 'is not valid UTF-8, which JSON must be';
  switch (check(bytes)) {
    case 'ok':
      return undefined;
    case 'deep':
      return `is JSON nested deeper than ${MAX_JSON_DEPTH} levels`;
    case 'wrong':
      return 'is not valid JSON; set content_type if it is something else';
  }
}

/** What is open around the place that is looked at: `true` is an object. Used by one check at a time, from its start. */
const open: boolean[] = new Array(MAX_JSON_DEPTH).fill(false);

function check(bytes: Uint8Array): 'ok' | 'deep' | 'wrong' {
  let depth = 0;
  let at = skipSpace(bytes, 0);
  for (;;) {
    // A value begins here.
    const byte = bytes[at];
    if (byte === OPEN_OBJECT || byte === OPEN_ARRAY) {
      if (depth === MAX_JSON_DEPTH) return 'deep';
      const isObject = byte === OPEN_OBJECT;
      at = skipSpace(bytes, at + 1);
      if (bytes[at] !== (isObject ? CLOSE_OBJECT : CLOSE_ARRAY)) {
        open[depth++] = isObject;
        if (isObject) at = skipName(bytes, at);
        if (at < 0) return 'wrong';
        continue;
      }
      at++; // empty
    } else {
      at = skipScalar(bytes, at);
      if (at < 0) return 'wrong';
    }
    // A value has ended here, and with it perhaps what is around it.
    for (;;) {
      at = skipSpace(bytes, at);
      if (depth === 0) return at === bytes.length ? 'ok' : 'wrong';
      const isObject = open[depth - 1]!;
      if (bytes[at] === COMMA) {
        at = skipSpace(bytes, at + 1);
        if (isObject) at = skipName(bytes, at);
        if (at < 0) return 'wrong';
        break;
      }
      if (bytes[at] !== (isObject ? CLOSE_OBJECT : CLOSE_ARRAY)) return 'wrong';
      depth--;
      at++;
    }
  }
}

// Each of these takes the place where something should begin and returns the place behind it, or -1.

function skipSpace(bytes: Uint8Array, from: number): number {
  const { length } = bytes;
  for (let at = from; at < length; at++) {
    const byte = bytes[at]!;
    if (byte > SPACE || (byte !== SPACE && byte !== LF && byte !== CR && byte !== TAB)) return at;
  }
  return length;
}

/** A name, its colon and the space behind it. */
function skipName(bytes: Uint8Array, from: number): number {
  if (bytes[from] !== QUOTE) return -1;
  const end = skipString(bytes, from);
  if (end < 0) return -1;
  const colon = skipSpace(bytes, end);
  return bytes[colon] === COLON ? skipSpace(bytes, colon + 1) : -1;
}

function skipScalar(bytes: Uint8Array, from: number): number {
  const byte = bytes[from];
  if (byte === undefined) return -1;
  if (byte === QUOTE) return skipString(bytes, from);
  if (byte === MINUS || isDigit(byte)) return skipNumber(bytes, from);
  for (const word of LITERALS) if (byte === word[0]) return skipWord(bytes, from, word);
  return -1;
}

function skipString(bytes: Uint8Array, from: number): number {
  const { length } = bytes;
  let at = from + 1;
  for (;;) {
    while (at < length && IS_PLAIN[bytes[at]!] === 1) at++;
    if (at >= length) return -1;
    const byte = bytes[at]!;
    if (byte === QUOTE) return at + 1;
    if (byte !== BACKSLASH || at + 1 >= length) return -1;
    const escaped = bytes[at + 1]!;
    if (escaped === LETTER_U) {
      if (at + 5 >= length) return -1;
      for (let i = 2; i <= 5; i++) if (!isHex(bytes[at + i]!)) return -1;
      at += 6;
    } else {
      if (!ESCAPES.has(escaped)) return -1;
      at += 2;
    }
  }
}

function skipNumber(bytes: Uint8Array, from: number): number {
  let at = bytes[from] === MINUS ? from + 1 : from;
  if (bytes[at] === ZERO) at++;
  else at = skipDigits(bytes, at);
  if (at > 0 && bytes[at] === DOT) at = skipDigits(bytes, at + 1);
  if (at > 0 && ((bytes[at] ?? 0) | SMALL) === LETTER_E) {
    const sign = bytes[at + 1];
    at = skipDigits(bytes, sign === MINUS || sign === 0x2b ? at + 2 : at + 1);
  }
  return at;
}

/** One digit or more. */
function skipDigits(bytes: Uint8Array, from: number): number {
  let at = from;
  while (isDigit(bytes[at])) at++;
  return at === from ? -1 : at;
}

function skipWord(bytes: Uint8Array, from: number, word: Uint8Array): number {
  for (let i = 0; i < word.length; i++) if (bytes[from + i] !== word[i]) return -1;
  return from + word.length;
}

const isDigit = (byte: number | undefined) => byte !== undefined && byte >= ZERO && byte <= NINE;

function isHex(byte: number): boolean {
  const letter = byte | SMALL;
  return isDigit(byte) || (letter >= 0x61 && letter <= 0x66);
}
