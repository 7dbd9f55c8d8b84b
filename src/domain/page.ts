// Keyset pages: a token is the last row's key, bound to the list and filter it came from.
import { createHash } from 'node:crypto';
import { invalidField } from './errors.ts';

/** A page to read: at most `size` rows after `after`. */
export type Page = { readonly size: number; readonly after: string | undefined };

const DEFAULT_PAGE_SIZE = 50;

/**
 * Reads page_size and page_token. `scope` names the list, its tenant and its filter; a token of another scope
 * is refused, as is one whose key does not satisfy `isKey`.
 */
export function parsePage(
  request: { readonly pageSize: number; readonly pageToken: string },
  scope: string,
  maxSize: number,
  isKey: (key: string) => boolean,
): Page {
  const { pageSize, pageToken } = request;
  if (pageSize < 0 || pageSize > maxSize) {
    throw invalidField(
      'page_size',
      `is ${pageSize}; 1–${maxSize}, or 0 for ${Math.min(DEFAULT_PAGE_SIZE, maxSize)}`,
    );
  }
  const size = pageSize === 0 ? Math.min(DEFAULT_PAGE_SIZE, maxSize) : pageSize;
  if (pageToken === '') return { size, after: undefined };
  const problem =
    'is not a token of this list and filter; pass next_page_token of the page before, or nothing';
  if (pageToken.length > 512) throw invalidField('page_token', problem);
  const bytes = Buffer.from(pageToken, 'base64url');
  const text = bytes.toString('utf8');
  const key = text.slice(9);
  if (bytes.toString('base64url') !== pageToken) throw invalidField('page_token', problem);
  if (text.slice(0, 8) !== digest(scope) || text[8] !== ':' || !isKey(key))
    throw invalidField('page_token', problem);
  return { size, after: key };
}

/** The token of the page that begins after `key`. */
export function pageToken(scope: string, key: string): string {
  return Buffer.from(`${digest(scope)}:${key}`, 'utf8').toString('base64url');
}

function digest(scope: string): string {
  return createHash('sha256').update(scope).digest('hex').slice(0, 8);
}

const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Whether a page key is a uuid. */
export const isUuid = (key: string): boolean => UUID.test(key);
