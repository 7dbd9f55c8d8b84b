// The rules of domain/lease.ts and the SQL that does the same, side by side: random claims, results, ends of leases and
// tenants' calls, on a real database and on the rules. After each of them both hold the same, and said the same.
import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ClaimedDelivery, NO_TIMING } from '../../src/domain/delivery.ts';
import { DispatchError } from '../../src/domain/errors.ts';
import {
  createIdSource,
  type DeliveryId,
  deliveryIdOf,
  encodeId,
  type SubscriptionId,
  type TenantId,
  uuidOf,
} from '../../src/domain/ids.ts';
import {
  claimableOfLine,
  claimed,
  ended,
  isDue,
  isHeld,
  isUnder,
  type Queued,
  replayed,
} from '../../src/domain/lease.ts';
import { claim, claimLeftovers, claimLines } from '../../src/storage/claims.ts';
import { type Database, openDatabase } from '../../src/storage/database.ts';
import { discardDeadLetters, replayDeadLetter } from '../../src/storage/dead-letters.ts';
import { cancelDelivery, getDelivery, retryDelivery } from '../../src/storage/deliveries.ts';
import { type IngestEvent, ingest } from '../../src/storage/ingest.ts';
import { putBack } from '../../src/storage/leases.ts';
import { parkedFrom, unpark } from '../../src/storage/parking.ts';
import { type AttemptRecord, type DeliveryRecord, writeRecords } from '../../src/storage/records.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';
import { scaled } from '../support/scale.ts';

let database: TestDatabase;
let db: Database;
const ids = createIdSource(Date.now, randomBytes);
const tenantId = 'a' as TenantId;
const LEASE_MS = 3_600_000;
const RETRY_MS = 3_000_000;
const plain = ids.bytes();
const ordered = ids.bytes();
const queueOf = (subscription: Buffer) => ({
  tenantId,
  subscriptionId: encodeId('sub', subscription) as SubscriptionId,
});

/** What is published before each run: the queue of each delivery, and its line. */
const PUBLISHED: readonly (readonly [Buffer, string | undefined])[] = [
  [plain, undefined],
  [plain, undefined],
  [plain, undefined],
  [ordered, 'x'],
  [ordered, 'y'],
  [ordered, 'x'],
  [ordered, 'x'],
  [ordered, 'y'],
  [ordered, undefined],
];

beforeAll(async () => {
  database = await cloneDatabase();
  db = await openDatabase(database.url, 4, () => {});
  await database.owner.query(
    `INSERT INTO tenants (tenant_id, display_name, metadata, state, config_version) VALUES ('a', '', '{}', 'active', 1)`,
  );
  for (const id of [plain, ordered]) {
    await database.owner.query(
      `INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, attempt_timeout_ms, metadata, state)
       VALUES ('a', $1, 'https://example.com/', '{**}', '', '{}', 15000, '{}', 'active')`,
      [id],
    );
  }
});
afterAll(async () => {
  await db[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

/** A delivery as the rules have it: the clock stands at 0, and what is not due yet has 1. */
type Entry = {
  readonly id: DeliveryId;
  readonly subscription: Buffer;
  readonly line: string | undefined;
  row: Queued | undefined;
  /** Attempts of its dead letter. */
  letter: number | undefined;
  closed: 'cancelled' | 'discarded' | undefined;
  readonly attempts: string[];
};
type World = {
  readonly entries: readonly Entry[];
  /** Every claim that ever was, the lost ones too. */
  readonly claims: ClaimedDelivery[];
};

const NEVER = Number.POSITIVE_INFINITY;
const entryOf = (world: World, id: string): Entry => world.entries.find((entry) => entry.id === id)!;
const leaseText = (lease: Buffer) => uuidOf(encodeId('lea', lease));
const nth = <T>(list: readonly T[], n: number): T | undefined => list[n % Math.max(1, list.length)];

async function publish(): Promise<World> {
  await database.owner.query(
    'TRUNCATE deliveries, events, attempts, dead_letters, closed_deliveries, idempotency_keys',
  );
  const events = PUBLISHED.map(([subscriptionId, orderKey]): IngestEvent => {
    const eventId = ids.eventBytes();
    const delivery = { deliveryId: deliveryIdOf(eventId, 1), subscriptionId, owned: false, orderKey };
    const event = {
      tenantId,
      type: 'a',
      payload: Buffer.from('{}'),
      contentType: 'application/json',
      source: '',
      subject: '',
      idempotencyKey: '',
      orderingKey: orderKey ?? '',
      deliverAfterMs: undefined,
      metadata: {},
    };
    return { eventId, event, deliveries: [delivery] };
  });
  const tenants = new Map([[tenantId, { version: 1, eventsPerDay: 0, eventsPerMonth: 0 }]]);
  const rest = { lease: randomBytes(16), leaseMs: LEASE_MS, slot: 1, margin: 0, isUsage: true };
  await ingest(db.engine, { tenants, events, ...rest, onFar: () => {} });
  const entries = events.map(
    ({ deliveries: [delivery] }): Entry => ({
      id: encodeId('dlv', delivery!.deliveryId) as DeliveryId,
      subscription: Buffer.from(delivery!.subscriptionId),
      line: delivery!.orderKey,
      row: { runAtMs: 0, lease: undefined, attemptCount: 0, retryBase: 0 },
      letter: undefined,
      closed: undefined,
      attempts: [],
    }),
  );
  return { entries, claims: [] };
}

/** Both sides as lines of text. */
const rulesHold = ({ entries }: World): string[] =>
  entries
    .flatMap(({ id, row, letter, closed, attempts }) => {
      const uuid = uuidOf(id);
      const when = row === undefined ? '' : row.runAtMs === NEVER ? 'never' : isDue(row, 0) ? 'due' : 'later';
      return [
        ...(row === undefined
          ? []
          : [`queue ${uuid} ${when} ${row.lease ?? '-'} ${row.attemptCount} ${row.retryBase}`]),
        ...(letter === undefined ? [] : [`letter ${uuid} ${letter}`]),
        ...(closed === undefined ? [] : [`closed ${uuid} ${closed}`]),
        ...attempts.map((attempt) => `attempt ${uuid} ${attempt}`),
      ];
    })
    .sort();

async function databaseHolds(): Promise<string[]> {
  const { rows } = await database.owner.query<{ line: string }>(
    `SELECT concat_ws(' ', 'queue', id, CASE WHEN run_at = 'infinity' THEN 'never' WHEN run_at <= now() THEN CASE WHEN is_parked THEN 'parked' ELSE 'due' END
        ELSE 'later' END, coalesce(lease::text, '-') || CASE WHEN is_leased AND (lease IS NULL OR run_at <= now()) THEN ' is left' ELSE '' END, attempt_count, retry_base) AS line FROM deliveries
     UNION ALL SELECT concat_ws(' ', 'letter', id, attempt_count) FROM dead_letters
     UNION ALL SELECT concat_ws(' ', 'closed', id, state) FROM closed_deliveries
     UNION ALL SELECT concat_ws(' ', 'attempt', delivery_id, attempt, outcome) FROM attempts`,
  );
  return rows.map(({ line }) => line).sort();
}

type Step = { readonly kind: (typeof KINDS)[number]; readonly n: number; readonly m: number };
const KINDS = [
  'claim',
  'claimLines',
  'claimLines',
  'claimLeftovers',
  'record',
  'record',
  'record',
  'expire',
  'timePasses',
  'retry',
  'cancel',
  'replay',
  'replay',
  'discard',
] as const;

/** Claims, as far as the rules can tell which: all that are said are marked as claimed. */
function take(world: World, deliveries: readonly ClaimedDelivery[]): void {
  for (const delivery of deliveries) {
    const entry = entryOf(world, delivery.deliveryId);
    const { attemptCount, retryBase } = entry.row!;
    expect(delivery).toMatchObject({ attemptCount, retryBase, isOrdered: entry.line !== undefined });
    entry.row = claimed(entry.row!, leaseText(delivery.lease), 1);
  }
  world.claims.push(...deliveries);
}

const dueOf = ({ entries }: World, subscription: Buffer): string[] =>
  entries
    .filter((e) => e.subscription.equals(subscription) && e.line === undefined)
    .filter(({ row }) => row !== undefined && isDue(row, 0))
    .map(({ id }) => id);

async function takePlain(world: World, subscription: Buffer, room: number): Promise<void> {
  const lease = randomBytes(16);
  const queue = queueOf(subscription);
  const { deliveries } =
    subscription === plain
      ? await claim(db.claims, [{ ...queue, room, after: undefined }], lease, LEASE_MS, 0)
      : await claimLeftovers(db.claims, queue, room, lease, LEASE_MS, 0);
  const due = dueOf(world, subscription);
  expect(deliveries).toHaveLength(Math.min(room, due.length));
  for (const { deliveryId } of deliveries) expect(due).toContain(deliveryId);
  take(world, deliveries);
}

async function takeLines(world: World, room: number, perLine: number): Promise<void> {
  const which = { after: '', room, perLine };
  const { lines } = await claimLines(db.claims, queueOf(ordered), which, randomBytes(16), LEASE_MS, 0);
  const heads = ['x', 'y'].map((line) =>
    world.entries.flatMap(({ line: of, row, id }) =>
      of === line && row !== undefined ? [{ ...row, id }] : [],
    ),
  );
  const expected = heads
    .filter(([head]) => head !== undefined && isDue(head, 0))
    .slice(0, room)
    .map((rows) => claimableOfLine(rows, 0, perLine).map(({ id }) => id))
    .filter((run) => run.length > 0);
  expect(lines.map((line) => line.map(({ deliveryId }) => deliveryId))).toEqual(expected);
  take(world, lines.flat());
}

const ATTEMPT: Omit<AttemptRecord, 'attempt'> = {
  status: 500,
  startedAtMs: 1_795_000_000_000,
  durationUs: 1,
  timing: NO_TIMING,
  responseBody: Buffer.alloc(0),
  responseHeaders: undefined,
  batchSize: 0,
};
const FAILURE = { errorClass: 'http_status', message: 'no' } as const;

/** A result of a claim, live or lost long ago. */
function recordFor(delivery: ClaimedDelivery, n: number): DeliveryRecord {
  const { idBytes, lease } = delivery;
  const attempt = { ...ATTEMPT, attempt: delivery.attemptCount + 1 };
  const of = { tenantId, idBytes, lease };
  const delayMs = n % 2 === 0 ? 0 : RETRY_MS;
  switch (Math.floor(n / 2) % 6) {
    case 0:
      return { ...of, kind: 'succeeded', attempt };
    case 1:
      return { ...of, kind: 'retry', attempt, failure: FAILURE, delayMs };
    case 2:
      return { ...of, kind: 'release', delayMs };
    case 3:
      return { ...of, kind: 'cancelled' };
    default: {
      const stopsLine = delivery.isOrdered && n % 2 === 0;
      const isTried = n % 24 < 12;
      const attemptCount = delivery.attemptCount + (isTried ? 1 : 0);
      const tried = isTried ? attempt : undefined;
      const rest = { reason: 'aborted', failure: FAILURE, eventType: 'a' } as const;
      return { ...of, kind: 'dead', attempt: tried, attemptCount, stopsLine, ...rest };
    }
  }
}

const OUTCOMES = { succeeded: 'succeeded', retry: 'retry_scheduled', dead: 'dead_lettered' } as const;

async function record(world: World, n: number, m: number): Promise<void> {
  const chosen = new Map<string, ClaimedDelivery>();
  for (let i = 0; i <= m % 3; i++) {
    const delivery = nth(world.claims, n + i * 7);
    if (delivery !== undefined) chosen.set(delivery.deliveryId, delivery);
  }
  const records = [...chosen.values()].map((delivery, i) => ({
    delivery,
    record: recordFor(delivery, m + i),
  }));
  const told = await writeRecords(
    db.records,
    records.map((r) => r.record),
    'confirmed',
  );
  const ofRules: string[] = [];
  let count = 0;
  for (const { delivery, record: of } of records) {
    const entry = entryOf(world, delivery.deliveryId);
    if (!isUnder(entry.row, leaseText(delivery.lease))) continue;
    count++;
    const later = 'delayMs' in of ? { ...of, delayMs: Math.min(1, of.delayMs) } : of;
    entry.row = ended(entry.row!, later, 0);
    if (of.kind === 'dead') entry.letter = of.attemptCount;
    if (of.kind === 'cancelled') entry.closed = 'cancelled';
    if (of.kind === 'release' || of.kind === 'cancelled') continue;
    ofRules.push(uuidOf(entry.id));
    if (of.attempt !== undefined) entry.attempts.push(`${of.attempt.attempt} ${OUTCOMES[of.kind]}`);
  }
  expect({ count: told.count, ids: [...told.ids].sort() }).toEqual({ count, ids: ofRules.sort() });
}

async function expire(world: World, n: number): Promise<void> {
  const leases = [...new Set(world.entries.flatMap(({ row }) => row?.lease ?? []))];
  const lease = nth(leases, n);
  if (lease === undefined) return;
  await database.owner.query("UPDATE deliveries SET run_at = now() - interval '1 s' WHERE lease = $1", [
    lease,
  ]);
  await putBack(db.claims, 0); // as workers do meanwhile
  for (const entry of world.entries) if (entry.row?.lease === lease) entry.row = { ...entry.row, runAtMs: 0 };
}

async function timePasses(world: World, n: number): Promise<void> {
  const entry = nth(
    world.entries.filter(({ row }) => row?.lease === undefined && row?.runAtMs === 1),
    n,
  );
  if (entry === undefined) return;
  await database.owner.query('UPDATE deliveries SET run_at = now() WHERE id = $1', [uuidOf(entry.id)]);
  await unpark(db.claims, parkedFrom(0)); // as workers do meanwhile
  entry.row = { ...entry.row!, runAtMs: 0 };
}

const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'ok',
    (error: unknown) => {
      if (error instanceof DispatchError) return error.code;
      throw error;
    },
  );

/** One of the calls of tenants. */
async function call(world: World, { kind, n, m }: Step): Promise<void> {
  const ofLetters = kind === 'replay' || kind === 'discard';
  const apt = world.entries.filter(({ row, letter }) => (ofLetters ? letter : row) !== undefined);
  const entry = (m % 4 > 0 ? nth(apt, n) : undefined) ?? nth(world.entries, n)!;
  const { id, row } = entry;
  const isQueued = row !== undefined && row.runAtMs !== NEVER;
  switch (kind) {
    case 'retry':
      expect(await codeOf(retryDelivery(db, tenantId, id))).toBe(isQueued ? 'ok' : 'FAILED_PRECONDITION');
      if (isQueued && row.lease === undefined) entry.row = { ...row, runAtMs: 0 };
      return;
    case 'cancel': {
      const isOk = isQueued || entry.closed === 'cancelled';
      expect(await codeOf(cancelDelivery(db, tenantId, id))).toBe(isOk ? 'ok' : 'FAILED_PRECONDITION');
      if (!isQueued) return;
      entry.row = undefined;
      entry.closed = 'cancelled';
      return;
    }
    case 'replay':
      expect(await codeOf(replayDeadLetter(db, tenantId, id))).toBe(
        entry.letter === undefined ? 'NOT_FOUND' : 'ok',
      );
      if (entry.letter === undefined) return;
      entry.row = replayed(entry.letter, 0);
      entry.letter = undefined;
      return;
    case 'discard': {
      const count = await discardDeadLetters(db, tenantId, { deliveryIds: [id] });
      expect(count).toBe(entry.letter === undefined ? 0 : 1);
      if (entry.letter === undefined) return;
      entry.letter = undefined;
      entry.row = undefined;
      entry.closed = 'discarded';
      return;
    }
    default:
      throw new Error(`${kind} is no call`);
  }
}

async function perform(world: World, next: Step): Promise<void> {
  const { kind, n, m } = next;
  switch (kind) {
    case 'claim':
      return takePlain(world, plain, 1 + (n % 4));
    case 'claimLeftovers':
      return takePlain(world, ordered, 1 + (n % 2));
    case 'claimLines':
      return takeLines(world, 1 + (n % 2), 1 + (m % 3));
    case 'record':
      return record(world, n, m);
    case 'expire':
      return expire(world, n);
    case 'timePasses':
      return timePasses(world, n);
    default:
      return call(world, next);
  }
}

/** What a tenant is told of a delivery. */
function stateOf({ row, letter, closed }: Entry): string {
  if (letter !== undefined) return 'dead_lettered';
  if (closed !== undefined) return closed;
  if (row === undefined) return 'succeeded';
  return isHeld(row, 0) ? 'in_flight' : 'pending';
}

/** A dead letter that its line skipped is replayed while what the line went on with is held. */
const REPLAYED: Step[] = [
  { kind: 'claimLines', n: 0, m: 1 },
  { kind: 'record', n: 0, m: 9 },
  { kind: 'replay', n: 0, m: 1 },
  { kind: 'claimLines', n: 1, m: 2 },
];

test('the statements and the rules say and leave the same, whatever comes after what', async () => {
  const step = fc.record({ kind: fc.constantFrom(...KINDS), n: fc.nat(1_000), m: fc.nat(1_000) });
  const steps = fc.array(step, { maxLength: 60, size: 'max' });
  await fc.assert(
    fc.asyncProperty(steps, async (sequence) => {
      const world = await publish();
      for (const [i, next] of sequence.entries()) {
        await perform(world, next);
        expect(await databaseHolds(), `after step ${i}`).toEqual(rulesHold(world));
        const entry = nth(world.entries, next.n)!;
        expect((await getDelivery(db, tenantId, entry.id)).state).toBe(stateOf(entry));
      }
    }),
    { numRuns: scaled(600), interruptAfterTimeLimit: 60_000, examples: [[REPLAYED]] },
  );
});
