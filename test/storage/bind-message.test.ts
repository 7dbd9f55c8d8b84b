// Parameters that are written into the message of their statement, on a real server.
import { EventEmitter } from 'node:events';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  boolArray,
  byteaArray,
  float8Array,
  int2Array,
  int4Array,
  int8Array,
  textArray,
  uuidArray,
} from '../../src/storage/binary-arrays.ts';
import {
  type Bind,
  type BindingConnection,
  bindInto,
  createMessageMemory,
} from '../../src/storage/bind-message.ts';
import { type HotPool, IN_BINARY, openHotPool, type Statements } from '../../src/storage/hot-pool.ts';
import type { BinaryParameter } from '../../src/storage/message-writer.ts';
import { cloneDatabase, type TestDatabase } from '../support/database.ts';

let database: TestDatabase;
let hot: HotPool;
let plain: pg.Pool;
beforeAll(async () => {
  database = await cloneDatabase();
  const { url } = database;
  hot = openHotPool({ url, name: 'test', settings: {}, max: 4, isPooled: false, onIdleError: () => {} });
  plain = new pg.Pool({ connectionString: url, max: 1 });
  plain.on('error', () => {}); // its end does not wait for its connection's, which the end of the database may cut off
});
afterAll(async () => {
  await hot.end();
  await plain.end();
  await database[Symbol.asyncDispose]();
});

const same = <T>(item: T): T => item;
const TEXTS = [
  'plain',
  '',
  null,
  'ünïcödé 😀',
  'x'.repeat(48),
  `${'x'.repeat(47)}ü`,
  'y'.repeat(49),
  '語'.repeat(40_000),
  'a lone \ud800 surrogate',
];
const BYTES = [Buffer.from([0, 255, 10]), null, Buffer.alloc(0), Buffer.alloc(70_000, 7)];
const UUID = Buffer.from('0198f1e2a3b4c5d6e7f8091a2b3c4d5e', 'hex');
const FLOATS = [0, -1.5, null, 1.7e308, Number.NaN, Number.POSITIVE_INFINITY, 1732999999999.25];
const LARGE = [
  0,
  1,
  -1,
  null,
  2 ** 31,
  -(2 ** 31) - 1,
  2 ** 32 - 1,
  2 ** 32,
  Number.MAX_SAFE_INTEGER,
  Number.MIN_SAFE_INTEGER,
];

const WAYS: readonly (readonly [string, () => Statements])[] = [
  ['a hot statement', () => hot],
  ['a connection that knows nothing of it', () => plain],
];
describe.each(WAYS)('arrays arrive as they are, by %s', (_, pool) => {
  const read = async (type: string, parameter: BinaryParameter) => {
    const { rows } = await pool().query<{ v: unknown }>({
      text: `SELECT v FROM unnest($1::${type}[]) AS v`,
      values: [parameter],
    });
    return rows.map((row) => row.v);
  };

  test('text', async () => {
    const stored = TEXTS.map((text) => text?.replace('\ud800', '\ufffd') ?? null);
    expect(await read('text', textArray(TEXTS, same))).toEqual(stored);
  });
  test('bytea and uuid', async () => {
    expect(await read('bytea', byteaArray(BYTES, same))).toEqual(BYTES);
    const uuid = '0198f1e2-a3b4-c5d6-e7f8-091a2b3c4d5e';
    expect(await read('uuid', uuidArray([UUID, null], same))).toEqual([uuid, null]);
  });
  test('integers', async () => {
    expect(await read('int2', int2Array([0, -32_768, 32_767, null], same))).toEqual([
      0,
      -32_768,
      32_767,
      null,
    ]);
    const ints = [0, -2_147_483_648, null, 2_147_483_647];
    expect(await read('int4', int4Array(ints, same))).toEqual(ints);
    const texts = LARGE.map((value) => value?.toString() ?? null); // pg reads int8 as text
    expect(await read('int8', int8Array(LARGE, same))).toEqual(texts);
  });
  test('floats and truths', async () => {
    expect(await read('float8', float8Array(FLOATS, same))).toEqual(FLOATS);
    expect(await read('bool', boolArray([true, false], same))).toEqual([true, false]);
  });
  test('none at all', async () => {
    expect(await read('text', textArray([], same))).toEqual([]);
  });
  test('each element is picked with its place', async () => {
    expect(
      await read(
        'int4',
        int4Array(['a', 'b', 'c'], (_, i) => i * 10),
      ),
    ).toEqual([0, 10, 20]);
    const second = boolArray(['a', 'b'], (_, i) => i === 1);
    expect(await read('bool', second)).toEqual([false, true]);
    const places = textArray(['a', 'b'], (_, i) => `${i}`);
    expect(await read('text', places)).toEqual(['0', '1']);
  });
});

test('plain parameters go beside the arrays, in their places', async () => {
  const { rows } = await hot.query<{ v: unknown[] }>({
    name: 'beside',
    text: 'SELECT ARRAY[$1::text, array_length($2::int4[], 1)::text, $3::text, $4::text, $5::bytea::text, $6::text] AS v',
    values: ['first', int4Array([1, 2], same), 7, null, Buffer.from([1, 2]), true],
  });
  expect(rows[0]!.v).toEqual(['first', '2', '7', null, '\\x0102', 'true']);
});

test('a parameter that cannot be written fails its statement, and what comes next on its connection does not', async () => {
  const broken = textArray([1], () => {
    throw new Error('it cannot be picked');
  });
  await hot.transaction(async (tx) => {
    await expect(tx.query('SELECT $1::text[]', [broken])).rejects.toThrow('it cannot be picked');
    const { rows } = await tx.query('SELECT $1::text[] AS v', [textArray(['good'], same)]);
    expect(rows[0]!['v']).toEqual(['good']);
  });
});

test('a statement that fails on the server leaves its connection as it was', async () => {
  const divide = 'SELECT 1 / v AS v FROM unnest($1::int4[]) AS v';
  await hot.transaction(async (tx) => {
    await tx.query('SAVEPOINT before');
    await expect(tx.query(divide, [int4Array([1, 0], same)])).rejects.toThrow('division by zero');
    await tx.query('ROLLBACK TO before');
    expect((await tx.query(divide, [int4Array([1], same)])).rows).toEqual([{ v: 1 }]);
  });
});

test.each([
  ['int2', int2Array([32_768], same)],
  ['int2', int2Array([0.5], same)],
  ['int4', int4Array([2 ** 31], same)],
  ['int4', int4Array([Number.NaN], same)],
])('what is no %s is not made one', async (type, parameter) => {
  await expect(hot.query(`SELECT $1::${type}[]`, [parameter])).rejects.toThrow(RangeError);
});

test('statements that run at once do not write over each other', async () => {
  const sums = await Promise.all(
    Array.from({ length: 200 }, async (_, n) => {
      const items = Array.from({ length: 1 + (n % 50) * 100 }, () => `of ${n}`);
      const text =
        'SELECT count(*)::int4 AS count, min(v) AS least, max(v) AS most FROM unnest($1::text[]) AS v';
      const { rows } = await hot.query({ name: 'count', text, values: [textArray(items, same)] });
      return { n, ...rows[0] };
    }),
  );
  for (const { n, ...sum } of sums) {
    expect(sum).toEqual({ count: 1 + (n % 50) * 100, least: `of ${n}`, most: `of ${n}` });
  }
});

test('rows come in binary where that is asked for', async () => {
  const { rows } = await hot.query({
    text: 'SELECT v, octet_length(v)::text FROM unnest($1::bytea[]) AS v',
    values: [byteaArray([Buffer.from('{"a":1}')], same)],
    ...IN_BINARY,
  });
  expect(rows).toEqual([[Buffer.from('{"a":1}'), '7']]);
});

describe('the memory of a message', () => {
  /** A connection to no server, whose answers a test makes. */
  function connect() {
    const answers = new EventEmitter();
    const sent: Uint8Array[] = [];
    const sentPlain: Bind[] = [];
    const connection: BindingConnection = {
      stream: { writable: true, write: (bytes) => sent.push(bytes) > 0 },
      on: (event, heard) => void answers.on(event, heard),
      bind: (bind) => void sentPlain.push(bind),
    };
    return { connection, sent, sentPlain, becomeReady: () => answers.emit('readyForQuery') };
  }
  const one = { statement: 'one', values: [int4Array([1], same)] };

  test('is the next statement’s when the server is ready for it, and not before', () => {
    const memory = createMessageMemory();
    const { connection, sent, sentPlain, becomeReady } = connect();
    bindInto(memory, connection);
    connection.bind(one);
    expect(memory.take().bytes.buffer).not.toBe(sent[0]!.buffer);
    connection.bind(one); // before the answer: in memory that nobody else has
    expect([sent.length, sentPlain]).toEqual([1, [one]]);
    becomeReady();
    expect(memory.take().bytes.buffer).toBe(sent[0]!.buffer);
    becomeReady(); // of a statement without such parameters
    expect(memory.take().bytes.buffer).not.toBe(sent[0]!.buffer);
  });

  test('is the next statement’s at once, if nothing was sent from it', () => {
    const memory = createMessageMemory();
    const { connection, sent, becomeReady } = connect();
    bindInto(memory, connection);
    const kept = memory.take();
    memory.giveBack(kept);
    expect(() => connection.bind({ values: [int4Array([0.5], same)] })).toThrow(RangeError);
    becomeReady();
    expect(sent).toEqual([]);
    expect(memory.take()).toBe(kept);
    expect(memory.take()).not.toBe(kept);
  });

  test('is nobody’s while its statement has no answer', () => {
    const memory = createMessageMemory();
    const broken = connect();
    bindInto(memory, broken.connection);
    broken.connection.bind(one);
    const other = connect();
    bindInto(memory, other.connection);
    other.connection.bind(one);
    expect(other.sent[0]!.buffer).not.toBe(broken.sent[0]!.buffer);
  });
});

test('memory that was given back is taken again, but only so much is kept', () => {
  const memory = createMessageMemory();
  const large = Array.from({ length: 4 }, () => {
    const message = memory.take();
    message.add(Buffer.alloc(8_000_000));
    return message;
  });
  for (const message of large) memory.giveBack(message);
  const taken = large.map(() => memory.take());
  expect(large.map((message) => taken.includes(message))).toEqual([true, true, true, false]);
  expect(taken.map((message) => message.end)).toEqual([0, 0, 0, 0]);
  for (const message of taken) memory.giveBack(message);
  expect(taken).toContain(memory.take());
});

test('a statement takes no new memory for its parameters', async () => {
  const bodies = Array<Buffer>(400).fill(Buffer.alloc(1_000, 1));
  const statement = () =>
    hot.query({
      name: 'bytes',
      text: 'SELECT sum(octet_length(v))::int4 AS bytes FROM unnest($1::bytea[]) AS v',
      values: [byteaArray(bodies, same)],
    });
  await statement();
  const before = process.memoryUsage().arrayBuffers;
  for (let i = 0; i < 50; i++) expect((await statement()).rows).toEqual([{ bytes: 400_000 }]);
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(5_000_000); // they are 20 MB
});
