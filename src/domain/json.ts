// JSON as bytes: checked, never re-serialised.
import { isUtf8 } from 'node:buffer';

/** Deeper JSON is refused: JSON.parse takes 5,000,000 levels, JSON.stringify dies of 5,000. */
export const MAX_JSON_DEPTH = 64;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** The depth of nested objects and arrays in JSON text, or MAX_JSON_DEPTH + 1 as soon as it is deeper. */
export function jsonDepth(bytes: Uint8Array): number {
  let depth = 0;
  let deepest = 0;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]!;
    if (byte === QUOTE) {
      for (i++; i < bytes.length && bytes[i] !== QUOTE; i++) if (bytes[i] === BACKSLASH) i++;
    } else if (byte === 0x7b || byte === 0x5b) {
      if (++depth > deepest) deepest = depth;
      if (depth > MAX_JSON_DEPTH) return depth;
    } else if (byte === 0x7d || byte === 0x5d) {
      depth--;
    }
  }
  return deepest;
}

/** What is wrong with bytes that should be JSON, or undefined. */
export function jsonProblem(bytes: Buffer): string | undefined {
  if (jsonDepth(bytes) > MAX_JSON_DEPTH) return `is JSON nested deeper than ${MAX_JSON_DEPTH} levels`;
  if (!isUtf8(bytes)) return 'is not valid UTF-8, which JSON must be';
  try {
    JSON.parse(bytes.toString('utf8'));
    return undefined;
  } catch {
    return 'is not valid JSON; set content_type if it is something else';
  }
}
