// Keyset pages over rows that are filtered after they were read: bounded work a page, whatever the filter.
import type { Page } from '../domain/page.ts';

const WINDOW = 1_000;
const MAX_WINDOWS = 5;

/** A page, and the key that the next one begins after, if there may be one. */
export type ScannedPage<T> = { readonly rows: readonly T[]; readonly next: string | undefined };

/**
 * Reads windows of rows in key order until a page is full, the rows end, or 5,000 rows were passed over; the page
 * may then be short and still have a next one. Without a filter, one window of exactly a page and one row.
 */
export async function scanPage<T>(
  page: Page,
  read: (after: string | undefined, limit: number) => Promise<readonly T[]>,
  keyOf: (row: T) => string,
  matches: ((row: T) => boolean) | undefined,
): Promise<ScannedPage<T>> {
  const limit = matches === undefined ? page.size + 1 : WINDOW;
  const rows: T[] = [];
  let after = page.after;
  for (let window = 0; window < MAX_WINDOWS; window++) {
    const batch = await read(after, limit);
    for (const row of batch) {
      if (matches !== undefined && !matches(row)) continue;
      if (rows.length === page.size) return { rows, next: keyOf(rows[rows.length - 1]!) };
      rows.push(row);
    }
    const last = batch[batch.length - 1];
    if (batch.length < limit || last === undefined) return { rows, next: undefined };
    after = keyOf(last);
  }
  return { rows, next: after };
}
