// What a fuzz target is: a decoder of bytes that come from outside, and what must hold whatever they are.
import { createPrivateKey, type KeyObject } from 'node:crypto';
import { DispatchError, type ErrorCode } from '../../src/domain/errors.ts';

export type Target = {
  /** For --only, and the folder of its corpus. */
  readonly name: string;
  /** What is decoded, and what must hold. */
  readonly about: string;
  /** Inputs to begin with. */
  readonly seeds: readonly (string | Uint8Array)[];
  /** What means something in an input. */
  readonly words: readonly string[];
  /** Decodes one input. Throws when something does not hold. */
  readonly run: (input: Buffer) => void | Promise<void>;
};

/** What does not hold. */
export class Broken extends Error {
  override readonly name = 'Broken';
}

export function ensure(ok: boolean, what: string): asserts ok {
  if (!ok) throw new Broken(what);
}

/** Whether a text can be stored: Postgres takes no NUL, and a half of a surrogate pair is no character. */
export const isStorable = (text: string): boolean => !text.includes('\0') && text.isWellFormed();

/** Longest that is said of one field, whatever the caller sent. */
const MAX_DESCRIPTION = 1_000;

/**
 * The result of a decoder, or undefined if it refused. A refusal must be INVALID_ARGUMENT (or `codes`), and say of each
 * wrong field what would be right, in a few words.
 */
export function decoded<T>(
  decode: () => T,
  codes: readonly ErrorCode[] = ['INVALID_ARGUMENT'],
): T | undefined {
  try {
    return decode();
  } catch (error) {
    checkRefusal(error, codes);
    return undefined;
  }
}

/** Rethrows what is no refusal, or one that does not explain itself. */
export function checkRefusal(error: unknown, codes: readonly ErrorCode[] = ['INVALID_ARGUMENT']): void {
  if (!(error instanceof DispatchError) || !codes.includes(error.code)) throw error;
  const { code, message, violations } = error;
  ensure(
    message.length > 0 && message.length < 2 * MAX_DESCRIPTION,
    `the message has ${message.length} characters`,
  );
  if (code !== 'INVALID_ARGUMENT') return;
  ensure(violations.length > 0 && violations.length <= 20, `there are ${violations.length} violations`);
  for (const { field, description } of violations) {
    ensure(field !== '' && field.length <= 200, `a field is named ${JSON.stringify(field)}`);
    ensure(
      description !== '' && description.length <= MAX_DESCRIPTION,
      `${field}: ${description.length} characters`,
    );
  }
}

const PKCS8_ED25519 = Buffer.from('302e020100300506032b657004220420', 'hex');

/** The same private key for the same byte, in every run. */
export const ed25519Key = (byte: number): KeyObject =>
  createPrivateKey({
    key: Buffer.concat([PKCS8_ED25519, Buffer.alloc(32, byte)]),
    format: 'der',
    type: 'pkcs8',
  });

/** `name: value` lines. */
export function linesOf(input: Buffer): Record<string, string> {
  const lines = input.toString('latin1').split('\n');
  return Object.fromEntries(
    lines.map((line) => {
      const colon = line.indexOf(':');
      return colon < 0 ? [line, ''] : [line.slice(0, colon), line.slice(colon + 1)];
    }),
  );
}
