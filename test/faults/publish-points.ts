// The points of a publish at which a fault may strike. Two proxies watch it: one between the client and the API, one
// between the API and Postgres, where the statement that stores events is known by its name.
import { executes, isEndOfAnswer, withoutSync } from './postgres-wire.ts';
import type { Fate, Link, Proxy as TcpProxy } from './proxy.ts';

export const PUBLISH_POINTS = [
  /** The connection is made, nothing of the request was read. */
  'connected',
  /** The request was read; its statement has not reached Postgres. */
  'received',
  /** The statement is at Postgres, all of it or all but its end: it is committed, or it never is. */
  'forwarded',
  /** Postgres has committed and answered; the API does not know. */
  'committed',
  /** The API's answer has left; the client never gets it. */
  'answered',
] as const;
export type PublishPoint = (typeof PUBLISH_POINTS)[number];

/** Whether what was published is in the database after a fault at a point; undefined: it may be. */
export const COMMITTED: Readonly<Record<PublishPoint, boolean | undefined>> = {
  connected: false,
  received: false,
  forwarded: undefined,
  committed: true,
  answered: true,
};

const INGEST = /^ingest(-limited)?-keyed(-ordered)?$/;

export type PublishFault = {
  readonly point: PublishPoint;
  /** Between the client and the API. Nothing but the publish may go through it. */
  readonly front: TcpProxy;
  /** Between the API and Postgres. */
  readonly back: TcpProxy;
  /** The idempotency key by which the publish is known in the statement, whatever else is stored with it. */
  readonly key: string;
  /** Of `forwarded`: whether the end of the statement is forwarded, too. */
  readonly isWhole: boolean;
  /** Of `received` and `forwarded`: how much later the fault strikes. */
  readonly delayMs: number;
  /** The fault; `link` is where the publish has come to. From then on nothing passes there. */
  readonly strike: (link: Link) => void;
};

/**
 * Lets a fault strike the next publish, once. Resolves when it has: with the statement that the publish had come to, or
 * nothing if no statement was struck.
 */
export function strikeAt({
  point,
  front,
  back,
  key,
  isWhole,
  delayMs,
  strike,
}: PublishFault): Promise<Buffer | undefined> {
  return new Promise((struck) => {
    let held: Link | undefined;
    let statement: Buffer | undefined;
    const fire = (link: Link): Fate => {
      held = link;
      strike(link);
      struck(statement);
      return 'swallow';
    };
    const faceIn = point === 'connected' ? 'up' : point === 'answered' ? 'down' : undefined;
    front.rules.onChunk = (_chunk, direction, link) => {
      if (link === held) return 'swallow';
      return held === undefined && direction === faceIn ? fire(link) : 'pass';
    };
    back.rules.onChunk = (chunk, direction, link) => {
      if (link === held) {
        return point === 'committed' && direction === 'down' && isEndOfAnswer(chunk) ? fire(link) : 'swallow';
      }
      if (held !== undefined || faceIn !== undefined || direction === 'down') return 'pass';
      if (!executes(chunk, INGEST) || !chunk.includes(key)) return 'pass';
      held = link;
      statement = chunk;
      if (point === 'committed') return 'pass';
      setTimeout(() => fire(link), delayMs);
      if (point === 'received') return 'swallow';
      return isWhole ? 'pass' : withoutSync(chunk);
    };
  });
}
