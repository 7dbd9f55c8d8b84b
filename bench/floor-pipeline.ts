// The floor of the whole pipeline: batch insert → sign → POST → batch delete + attempt insert, in one process with
// no call, no matching and no fencing but the lease. Prints {"events", "perSecond", "cpuSeconds"}.
// With `stored`, the rows are there before the clock starts: sign → POST → record alone.
//   node bench/floor-pipeline.ts <database url> <sink port> <seconds> [schema] [stored]
import '../src/heap.ts'; // the settings of V8 are nothing that the product does, and the floor must not be without
import { createHmac, randomBytes } from 'node:crypto';
import pg from 'pg';
import { Pool } from 'undici';
import { byteaArray, textArray, uuidArray } from './support/binary-arrays.ts';
import { BODY, TENANTS } from './support/payload.ts';

const [databaseUrl, sinkPort, seconds = '5', schema = 'floor_pipeline', mode = ''] = process.argv.slice(2);
const BATCH = 200;
const IN_FLIGHT = 64;
const OUTSTANDING = 3_000;
/** More than are sent in a second, by far. */
const STORED_PER_SECOND = 50_000;

type Row = { readonly tenant: string; readonly id: Buffer };

const db = new pg.Pool({ connectionString: databaseUrl, max: 8, options: `-c search_path=${schema}` });
const http = new Pool(`http://127.0.0.1:${sinkPort}`, { connections: IN_FLIGHT });
const key = randomBytes(32);
const lease = randomBytes(16);

async function createTables(): Promise<void> {
  await db.query(`DROP SCHEMA IF EXISTS ${schema} CASCADE; CREATE SCHEMA ${schema}`);
  const keyed = 'tenant_id text NOT NULL, id uuid NOT NULL';
  const rest = 'event_id uuid NOT NULL, subscription_id uuid NOT NULL';
  const columns = {
    events: `${keyed}, type text NOT NULL, payload bytea NOT NULL, created_at timestamptz NOT NULL DEFAULT now()`,
    deliveries: `${keyed}, ${rest}, attempt int NOT NULL DEFAULT 0, run_at timestamptz NOT NULL, lease uuid`,
    attempts: `${keyed}, ${rest}, attempt int NOT NULL, status int, duration_ms int, created_at timestamptz DEFAULT now()`,
  };
  for (const [table, definition] of Object.entries(columns)) {
    await db.query(
      `CREATE TABLE ${table} (${definition}, PRIMARY KEY (tenant_id, id)) PARTITION BY HASH (tenant_id)`,
    );
    for (let i = 0; i < 4; i++) {
      await db.query(
        `CREATE TABLE ${table}_${i} PARTITION OF ${table} FOR VALUES WITH (MODULUS 4, REMAINDER ${i})`,
      );
    }
  }
  await db.query('CREATE INDEX ON deliveries (tenant_id, subscription_id, run_at, id)');
}

function newRow(): Row {
  const id = randomBytes(16);
  id.writeUIntBE(Date.now(), 0, 6);
  id[6] = (id[6]! & 0x0f) | 0x70;
  id[8] = (id[8]! & 0x3f) | 0x80;
  return { tenant: TENANTS[Math.floor(Math.random() * TENANTS.length)]!, id };
}

async function publish(): Promise<Row[]> {
  const rows = Array.from({ length: BATCH }, newRow);
  await db.query({
    name: 'insert',
    text: `WITH e AS (INSERT INTO events (tenant_id, id, type, payload)
        SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::bytea[]) RETURNING tenant_id, id)
      INSERT INTO deliveries (tenant_id, id, event_id, subscription_id, run_at, lease)
      SELECT tenant_id, id, id, id, now() + interval '60 s', $5::uuid FROM e`,
    values: [
      textArray(rows.map((r) => r.tenant)),
      uuidArray(rows.map((r) => r.id)),
      textArray(rows.map(() => 'order.created')),
      byteaArray(rows.map(() => BODY)),
      lease,
    ],
  });
  return rows;
}

async function record(rows: readonly Row[]): Promise<void> {
  await db.query({
    name: 'record',
    text: `WITH d AS (DELETE FROM deliveries d
        USING (SELECT unnest($1::text[]) AS tenant_id, unnest($2::uuid[]) AS id) u
        WHERE d.tenant_id = u.tenant_id AND d.id = u.id AND d.lease = $3::uuid
        RETURNING d.tenant_id, d.id, d.event_id, d.subscription_id)
      INSERT INTO attempts (tenant_id, id, event_id, subscription_id, attempt, status, duration_ms)
      SELECT tenant_id, id, event_id, subscription_id, 1, 204, 3 FROM d`,
    values: [textArray(rows.map((r) => r.tenant)), uuidArray(rows.map((r) => r.id)), lease],
  });
}

function send(row: Row, done: () => void): void {
  const id = row.id.toString('hex');
  const at = Math.floor(Date.now() / 1000);
  const signature = createHmac('sha256', key).update(`${id}.${at}.`).update(BODY).digest('base64');
  const headers = {
    'content-type': 'application/json',
    'webhook-id': id,
    'webhook-timestamp': String(at),
    'webhook-signature': `v1,${signature}`,
  };
  http.dispatch(
    { path: '/', method: 'POST', headers, body: BODY },
    {
      onRequestStart() {},
      onResponseStart() {},
      onResponseData() {},
      onResponseEnd: done,
      onResponseError(_controller, error) {
        throw error;
      },
    },
  );
}

/** Sends and records what it is given; at most IN_FLIGHT at once. */
function createPipe() {
  const ready: Row[] = [];
  const sent: Row[] = [];
  let recorded = 0;
  let inFlight = 0;
  let recording = 0;
  const flush = async () => {
    while (sent.length > 0 && recording < 2) {
      const rows = sent.splice(0, 500);
      recording++;
      await record(rows);
      recording--;
      recorded += rows.length;
    }
  };
  const pump = () => {
    while (inFlight < IN_FLIGHT && ready.length > 0) {
      const row = ready.pop()!;
      inFlight++;
      send(row, () => {
        inFlight--;
        sent.push(row);
        if (sent.length >= 100) void flush();
        pump();
      });
    }
  };
  const timer = setInterval(flush, 5);
  return {
    take(rows: readonly Row[]) {
      ready.push(...rows);
      pump();
    },
    recorded: () => recorded,
    stop: () => clearInterval(timer),
  };
}

const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

/** From batch insert to record; ends when all that was published is recorded. Returns how many. */
async function runAll(): Promise<number> {
  const untilMs = performance.now() + Number(seconds) * 1000;
  const pipe = createPipe();
  let published = 0;
  const publishers = [0, 1].map(async () => {
    while (performance.now() < untilMs) {
      if (published - pipe.recorded() > OUTSTANDING) {
        await pause(1);
        continue;
      }
      const rows = await publish();
      published += rows.length;
      pipe.take(rows);
    }
  });
  await Promise.all(publishers);
  while (pipe.recorded() < published) await pause(2);
  pipe.stop();
  return published;
}

/** Of stored rows; returns how many were recorded in time. */
async function runStored(rows: readonly Row[]): Promise<number> {
  const untilMs = performance.now() + Number(seconds) * 1000;
  const pipe = createPipe();
  let taken = 0;
  while (performance.now() < untilMs) {
    if (taken === rows.length) throw new Error('too few rows were stored to measure with');
    const more = Math.max(0, Math.min(rows.length - taken, pipe.recorded() + OUTSTANDING - taken));
    if (more > 0) pipe.take(rows.slice(taken, taken + more));
    taken += more;
    await pause(1);
  }
  pipe.stop();
  return pipe.recorded();
}

await createTables();
const stored: Row[] = [];
while (mode === 'stored' && stored.length < STORED_PER_SECOND * Number(seconds))
  stored.push(...(await publish()));
const cpuBefore = process.cpuUsage();
const startedAt = performance.now();
const events = mode === 'stored' ? await runStored(stored) : await runAll();
const { user, system } = process.cpuUsage(cpuBefore);
const perSecond = (events / (performance.now() - startedAt)) * 1000;
process.stdout.write(`${JSON.stringify({ events, perSecond, cpuSeconds: (user + system) / 1e6 })}\n`);
process.exit(0);
