// Hints between instances by LISTEN/NOTIFY: which queues have something due, which tenants changed. Only hints:
// workers poll beneath, and caches have a bounded age. NOTIFY takes a database-wide lock at commit, so it is sent
// after the commits it tells of, coalesced: the first at once, the rest together.
import pg from 'pg';
import type { SubscriptionId, TenantId } from '../domain/ids.ts';
import type { QueueKey } from './claims.ts';
import type { Statements } from './hot-pool.ts';

/** What a listener hears. */
export type WakeupListener = {
  /** It listens, or listens no more: what answers may be another database than before. */
  readonly onConnection: () => void;
  /** These queues have something due, as another process says; undefined: some queue has. */
  readonly onReady: (queues: readonly QueueKey[] | undefined) => void;
  /** These tenants or their subscriptions changed; undefined: any may have. */
  readonly onChanged: (tenantIds: readonly TenantId[] | undefined) => void;
  readonly onError: (error: unknown) => void;
};

const READY = 'dispatch_ready';
const CHANGED = 'dispatch_changed';
/** A connection that died without a word is found after both at most: within 15 s, the new one included. */
const HEARTBEAT_MS = 9_000;
const ANSWER_MS = 5_000;
/** So that the server, too, ends a session whose client is gone without a word: what it has locked is free after 25 s. */
const KEEPALIVE =
  'SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 25000';
const MAX_PAYLOAD_BYTES = 7_900; // Postgres allows 7,999

/** A LISTEN session that is kept open until disposed. */
export type Listening = AsyncDisposable & {
  /** The connection that listens now; undefined while there is none. */
  readonly session: () => pg.Client | undefined;
};

/**
 * Keeps a LISTEN session open on its own connection until disposed; reconnects by itself. What `self`, this process's notifier,
 * says of queues is not heard: the worker of this process was told.
 */
export function listen(url: string, self: string, listener: WakeupListener): Listening {
  /** What connects, or listens. */
  let client: pg.Client | undefined;
  let session: pg.Client | undefined;
  let heartbeat: NodeJS.Timeout | undefined;
  let closed = false;
  let delayMs = 100;

  async function connect(): Promise<void> {
    const next = new pg.Client({
      connectionString: url,
      connectionTimeoutMillis: ANSWER_MS,
      query_timeout: ANSWER_MS,
      keepAlive: true,
      application_name: 'dispatch-listen',
    });
    next.on('error', (error) => lost(next, error));
    next.on('end', () => lost(next, new Error('the LISTEN connection ended')));
    next.on('notification', (message) => hear(message, self, listener));
    client = next;
    try {
      await next.connect();
      await next.query(KEEPALIVE).catch(listener.onError); // one can do without
      await next.query(`LISTEN ${READY}; LISTEN ${CHANGED}`);
    } catch (error) {
      lost(next, error);
      return;
    }
    if (client !== next) return;
    session = next;
    delayMs = 100;
    // Whatever was said while nobody listened is gone: look at everything once.
    listener.onConnection();
    listener.onChanged(undefined);
    listener.onReady(undefined);
    heartbeat = setInterval(() => {
      next.query('SELECT 1').catch((error) => lost(next, error));
    }, HEARTBEAT_MS);
  }

  function lost(which: pg.Client, error: unknown): void {
    if (client !== which) return;
    if (session !== undefined) listener.onConnection();
    client = undefined;
    session = undefined;
    clearInterval(heartbeat);
    which.end().catch(() => {}); // it is broken: that it cannot say goodbye is no news
    if (closed) return;
    listener.onError(error);
    setTimeout(() => {
      if (!closed) void connect();
    }, delayMs).unref();
    delayMs = Math.min(delayMs * 2, 5_000);
  }

  void connect();
  return {
    session: () => session,
    async [Symbol.asyncDispose]() {
      closed = true;
      clearInterval(heartbeat);
      const last = client;
      client = undefined;
      session = undefined;
      await last?.end().catch(() => {}); // a connection that broke just now needs no end
    },
  };
}

function hear(message: pg.Notification, self: string, listener: WakeupListener): void {
  const text = message.payload ?? '';
  if (message.channel === CHANGED) {
    listener.onChanged(text === '' ? undefined : (text.split(',') as TenantId[]));
  } else if (message.channel === READY) {
    const queues = text.split(',').map((pair) => pair.split('/'));
    if (queues[0]![2] === self) return;
    listener.onReady(
      text === ''
        ? undefined
        : queues.map(([t, s]) => ({ tenantId: t as TenantId, subscriptionId: s as SubscriptionId })),
    );
  }
}

/** Sends hints. */
export type Notifier = AsyncDisposable & {
  readonly ready: (queues: Iterable<QueueKey>) => void;
  readonly changed: (tenantId: TenantId) => void;
};

const MIN_INTERVAL_MS = 10;

/**
 * Coalesces hints, with `self` as their sender (no comma or slash); `onError` hears of those that could not be sent, which costs
 * time and nothing else.
 */
export function createNotifier(pool: Statements, self: string, onError: (error: unknown) => void): Notifier {
  // Behind the first queue, where a version that knows of no sender does not look.
  const ready = createChannel(pool, READY, ([first, ...rest]) => [`${first}/${self}`, ...rest], onError);
  const changed = createChannel(pool, CHANGED, (items) => items, onError);
  return {
    ready: (queues) => {
      for (const queue of queues) ready.add(`${queue.tenantId}/${queue.subscriptionId}`);
    },
    changed: (tenantId) => changed.add(tenantId),
    async [Symbol.asyncDispose]() {
      await Promise.all([ready.idle(), changed.idle()]);
    },
  };
}

function createChannel(
  pool: Statements,
  channel: string,
  write: (items: readonly string[]) => readonly string[],
  onError: (error: unknown) => void,
) {
  let pending = new Set<string>();
  let sending: Promise<void> | undefined;

  async function drain(): Promise<void> {
    while (pending.size > 0) {
      const text = write([...pending]).join(',');
      pending = new Set();
      const payload = Buffer.byteLength(text) > MAX_PAYLOAD_BYTES ? '' : text; // too many to name: "any"
      try {
        await pool.query({ name: 'notify', text: 'SELECT pg_notify($1, $2)', values: [channel, payload] });
      } catch (error) {
        onError(error);
      }
      await new Promise((done) => setTimeout(done, MIN_INTERVAL_MS));
    }
    sending = undefined;
  }

  return {
    add(item: string) {
      pending.add(item);
      // The microtask lets the items of one commit go out together.
      sending ??= Promise.resolve().then(drain);
    },
    idle: () => sending ?? Promise.resolve(),
  };
}
