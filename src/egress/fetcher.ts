// Single requests to where configuration or tenants say tokens and keys are: through the same guard as deliveries, not
// followed when redirected, bounded in time and size.
import { Client } from 'undici';
import type { Connect } from './connector.ts';

const MAX_BYTES = 256 * 1024;
const TIMEOUT_MS = 5_000;

export type FetchOptions = {
  readonly method: 'GET' | 'POST';
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: string;
  readonly signal?: AbortSignal;
};

/** Sends one request on a connection of its own. Rejects on anything but a response, whatever its status. */
export type Fetcher = (
  url: string,
  options: FetchOptions,
) => Promise<{ readonly status: number; readonly body: Buffer }>;

export function createFetcher(connect: Connect): Fetcher {
  return async (url, { method, headers, body, signal }) => {
    const { origin, pathname, search } = new URL(url);
    const client = new Client(origin, { connect: connect(undefined), maxResponseSize: MAX_BYTES });
    const deadline = AbortSignal.timeout(TIMEOUT_MS);
    try {
      const response = await client.request({
        path: pathname + search,
        method,
        headers: { ...headers },
        body: body ?? null,
        signal: signal === undefined ? deadline : AbortSignal.any([signal, deadline]),
      });
      return { status: response.statusCode, body: Buffer.from(await response.body.arrayBuffer()) };
    } finally {
      await client.destroy();
    }
  };
}
