// Makes new inputs of those there are: bits, bytes, pieces, words, lengths and numbers.

export type Random = () => number;

/** Longer inputs are cut: most of what goes wrong goes wrong in a few hundred bytes. */
export const MAX_INPUT_BYTES = 4_096;

const below = (random: Random, n: number) => Math.floor(random() * n);
const pick = <T>(random: Random, list: readonly T[]): T | undefined => list[below(random, list.length)];

/** Words that mean something nearly everywhere. */
const WORDS = [
  '\0',
  '\n',
  '\r\n',
  ' ',
  '\t',
  '"',
  "'",
  '\\',
  '%',
  '%00',
  '%ff',
  '.',
  '..',
  '/',
  ':',
  ';',
  ',',
  '=',
  '-',
  '_',
  '*',
  '0',
  '-1',
  '1e999',
  'NaN',
  'Infinity',
  '00',
  '0x7f',
  '4294967296',
  '9007199254740993',
  '18446744073709551616',
  'null',
  'true',
  '{}',
  '[]',
  '{"',
  '"}',
  '__proto__',
  'constructor',
  'toString',
  'é',
  '\ufeff',
  '\u2028',
  '\u{1f600}',
  '\ud800',
  'Ａ',
  '１',
  'ı',
  'ſ',
  'K',
].map((word) => Buffer.from(word));
const ODD_BYTES = [0, 1, 0x7f, 0x80, 0xbf, 0xc0, 0xed, 0xf4, 0xfe, 0xff];
const NUMBERS = [
  '0',
  '1',
  '-1',
  '255',
  '256',
  '65536',
  '2147483648',
  '-2147483649',
  '4294967295',
  '1e308',
  '9'.repeat(20),
];

type Mutation = (
  input: Buffer,
  random: Random,
  others: readonly Buffer[],
  words: readonly Buffer[],
) => Buffer;

const splice = (input: Buffer, from: number, to: number, middle: Uint8Array) =>
  Buffer.concat([input.subarray(0, from), middle, input.subarray(to)]);

function span(input: Buffer, random: Random, most = 32): readonly [number, number] {
  const from = below(random, input.length + 1);
  return [from, Math.min(input.length, from + 1 + below(random, most))];
}

function changedByte(input: Buffer, random: Random, change: (byte: number) => number): Buffer {
  if (input.length === 0) return input;
  const copy = Buffer.from(input);
  const at = below(random, copy.length);
  copy[at] = change(copy[at]!);
  return copy;
}

const MUTATIONS: readonly Mutation[] = [
  (input, random) => changedByte(input, random, (byte) => byte ^ (1 << below(random, 8))),
  (input, random) => changedByte(input, random, () => below(random, 256)),
  (input, random) => changedByte(input, random, () => pick(random, ODD_BYTES)!),
  (input, random) => changedByte(input, random, (byte) => byte + (random() < 0.5 ? 1 : -1)),
  (input, random) => splice(input, ...span(input, random), Buffer.alloc(0)),
  (input, random) => input.subarray(0, below(random, input.length + 1)),
  (input, random) => input.subarray(below(random, input.length + 1)),
  (input, random) => {
    const bytes = Buffer.from(Array.from({ length: 1 + below(random, 8) }, () => below(random, 256)));
    const at = below(random, input.length + 1);
    return splice(input, at, at, bytes);
  },
  // Words of the target twice: they are what gets behind its first checks.
  ...[0, 1].map(
    (): Mutation => (input, random, _, words) => {
      const at = below(random, input.length + 1);
      return splice(input, at, at, pick(random, words) ?? pick(random, WORDS)!);
    },
  ),
  (input, random) => splice(input, ...span(input, random, 6), pick(random, WORDS)!),
  (input, random, _, words) =>
    splice(input, ...span(input, random, 12), pick(random, words) ?? pick(random, WORDS)!),
  // A piece again, perhaps very often: depth and length.
  (input, random) => {
    const [from, to] = span(input, random);
    const count = random() < 0.9 ? 1 : 1 + below(random, 300);
    return splice(input, to, to, Buffer.concat(new Array<Buffer>(count).fill(input.subarray(from, to))));
  },
  (input, random, others) => {
    const other = pick(random, others) ?? input;
    return Buffer.concat([
      input.subarray(0, below(random, input.length + 1)),
      other.subarray(below(random, other.length + 1)),
    ]);
  },
  (input, random, others) => {
    const other = pick(random, others) ?? input;
    return splice(input, ...span(input, random), other.subarray(...span(other, random)));
  },
  (input, random) => {
    const text = input.toString('latin1');
    const numbers = [...text.matchAll(/\d+/g)];
    const found = pick(random, numbers);
    if (found === undefined) return input;
    return splice(input, found.index, found.index + found[0].length, Buffer.from(pick(random, NUMBERS)!));
  },
];

/** One input made of `input`, with pieces of the `others`. */
export function mutate(
  input: Buffer,
  random: Random,
  others: readonly Buffer[],
  words: readonly Buffer[],
): Buffer {
  let mutated = input;
  for (let i = 1 + below(random, 5); i > 0; i--) {
    mutated = pick(random, MUTATIONS)!(mutated, random, others, words);
    if (mutated.length > MAX_INPUT_BYTES) mutated = mutated.subarray(0, MAX_INPUT_BYTES);
  }
  return mutated;
}
