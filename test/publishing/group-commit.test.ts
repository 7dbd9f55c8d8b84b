// What waits for what in front of the commit. That what is committed is right is for test/storage and test/e2e.
import { randomBytes } from 'node:crypto';
import { setImmediate as turn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { DispatchError } from '../../src/domain/errors.ts';
import type { NewEvent } from '../../src/domain/event.ts';
import { createPatternIndex } from '../../src/domain/event-type.ts';
import { createIdSource, type EventId, type TenantId } from '../../src/domain/ids.ts';
import { DEFAULT_QUOTA } from '../../src/domain/quota.ts';
import { createGroupCommit } from '../../src/publishing/group-commit.ts';
import type { PublishOutcome } from '../../src/publishing/item.ts';
import type { IngestBatch, IngestResult } from '../../src/storage/ingest.ts';
import type { TenantConfig } from '../../src/storage/read-config.ts';
import type { Target } from '../../src/storage/targets.ts';
import { eventually } from '../support/eventually.ts';

const configOf = (
  tenantId: string,
  fields: Partial<Pick<TenantConfig, 'version' | 'state' | 'quota' | 'matches'>> = {},
): TenantConfig => ({
  tenantId: tenantId as TenantId,
  serial: 1,
  version: 1,
  state: 'active',
  quota: DEFAULT_QUOTA,
  targets: new Map(),
  matches: createPatternIndex<Target>([], () => 0),
  isOrdered: true,
  hasBatches: false,
  ...fields,
});

/** A group commit over configurations that are read when a test says so, and what it wrote: tenant and type. */
function start(
  known: readonly TenantConfig[],
  ingest?: (batch: IngestBatch) => IngestResult[] | Promise<IngestResult[]>,
  ingestNearLimit?: (batch: IngestBatch) => Promise<IngestResult[]>,
) {
  const memory = new Map<string, TenantConfig>(known.map((config) => [config.tenantId, config]));
  const reads: {
    readonly tenantId: string;
    readonly end: (config: TenantConfig | Error | undefined) => void;
  }[] = [];
  const written: string[] = [];
  const confirmed: string[] = [];
  const rated: string[] = [];
  const ready: string[][] = [];
  const note = (batch: IngestBatch, results: IngestResult[]) => {
    for (const [i, { event }] of batch.events.entries()) {
      if (results[i]!.kind === 'stored') written.push(`${event.tenantId} ${event.type}`);
    }
    return results;
  };
  const commit = createGroupCommit({
    ingest: async (batch) =>
      note(batch, (await ingest?.(batch)) ?? batch.events.map(() => ({ kind: 'stored' }))),
    ingestNearLimit: async (batch) =>
      note(batch, (await ingestNearLimit?.(batch)) ?? expect.fail('nobody is near a limit')),
    admission: {
      takeRate: async ({ tenantId }, count) => {
        rated.push(`${tenantId} ${count}`);
        return { granted: count, refusal: undefined };
      },
      refusal: () => undefined,
      giveBack: () => {},
    },
    margin: () => 0,
    usageSlot: 1,
    configs: {
      peek: (tenantId) => memory.get(tenantId),
      get: (tenantId) =>
        new Promise((done, fail) => {
          const end = (config: TenantConfig | Error | undefined) => {
            if (config instanceof Error) fail(config);
            else done(config);
          };
          reads.push({ tenantId, end });
        }),
      forget: (tenantId) => void memory.delete(tenantId),
      confirm: (tenantId, version) => void confirmed.push(`${tenantId} ${version}`),
    },
    localWorker: undefined,
    ready: (queues) => void ready.push([...queues].map((queue) => queue.subscriptionId)),
    ids: createIdSource(Date.now, randomBytes),
    leaseMs: 60_000,
    unavailable: () => undefined,
    onCommit: () => {},
    onError: () => {},
  });
  const publish = (tenantId: string, type: string, payload = Buffer.from('{}')) =>
    new Promise<PublishOutcome>((done) => {
      const event: NewEvent = {
        tenantId: tenantId as TenantId,
        type,
        payload,
        contentType: 'application/json',
        source: '',
        subject: '',
        idempotencyKey: '',
        orderingKey: '',
        deliverAfterMs: undefined,
        metadata: {},
      };
      commit.add(event, () => true, done);
    });
  return { commit, memory, reads, written, confirmed, rated, ready, publish };
}

const codeOf = (outcome: PublishOutcome) => (outcome.ok ? 'OK' : outcome.error.code);

test('tokens are taken only of tenants that have a publish rate, once a commit', async () => {
  const quota = { ...DEFAULT_QUOTA, publishPerSecond: 0 };
  const { rated, publish } = start([configOf('bound'), configOf('free', { quota })]);
  await Promise.all(['bound', 'free', 'bound', 'free'].map((tenantId) => publish(tenantId, 'a')));
  expect(DEFAULT_QUOTA.publishPerSecond).toBeGreaterThan(0);
  expect(rated).toEqual(['bound 2']);
});

test('each queue of a commit is told of once, and only what may be sent', async () => {
  const target = (subscriptionId: string, state: Target['state']) =>
    ({ subscriptionId, state, idBytes: Buffer.alloc(16), ordering: 'none' }) as Partial<Target> as Target;
  const targets = [target('sub_a', 'active'), target('sub_b', 'active'), target('sub_c', 'paused')];
  const entries = targets.map((value) => ({ patterns: ['**'], value }));
  const matches = createPatternIndex(entries, (a, b) => targets.indexOf(a) - targets.indexOf(b));
  const { ready, publish } = start([configOf('acme', { matches })]);
  await Promise.all(['a', 'b', 'c'].map((type) => publish('acme', type)));
  expect(ready).toEqual([['sub_a', 'sub_b']]);
});

test('the version that something was stored with is confirmed once a commit, and no other', async () => {
  const { memory, reads, confirmed, publish } = start(
    [configOf('good'), configOf('changed', { version: 3 }), configOf('again')],
    ({ events }) =>
      events.map(({ event }) =>
        event.tenantId === 'changed' && memory.get('changed')?.version === 3
          ? { kind: 'stale' }
          : event.tenantId === 'again'
            ? { kind: 'duplicate', eventId: 'evt_x' as EventId, deliveryCount: 0, same: true }
            : { kind: 'stored' },
      ),
  );
  const outcomes = [
    publish('good', 'a'),
    publish('changed', 'b'),
    publish('again', 'c'),
    publish('good', 'd'),
  ];
  await expect.poll(() => reads.length).toBe(1);
  expect(confirmed).toEqual(['good 1']);
  const fresh = configOf('changed', { version: 4 });
  memory.set('changed', fresh);
  reads[0]!.end(fresh);
  expect((await Promise.all(outcomes)).map(codeOf)).toEqual(['OK', 'OK', 'OK', 'OK']);
  expect(confirmed).toEqual(['good 1', 'changed 4']);
});

test('nobody’s publish waits for another tenant’s configuration, and what waits for it is stored in order', async () => {
  const { commit, reads, written, publish } = start([configOf('quick')]);
  const slow = [publish('slow', 'a'), publish('slow', 'b')];
  const first = [publish('quick', 'c'), publish('quick', 'd')];
  expect((await Promise.all(first)).map(codeOf)).toEqual(['OK', 'OK']);
  slow.push(publish('slow', 'e'));
  expect(codeOf(await publish('quick', 'f'))).toBe('OK');
  expect(reads.map(({ tenantId }) => tenantId)).toEqual(['slow']);
  // It was read for these, and is not in memory: it changed meanwhile.
  reads[0]!.end(configOf('slow'));
  expect((await Promise.all(slow)).map(codeOf)).toEqual(['OK', 'OK', 'OK']);
  slow.push(publish('slow', 'g'));
  await expect.poll(() => reads.length).toBe(2);
  reads[1]!.end(configOf('slow', { version: 2 }));
  expect(codeOf(await slow[3]!)).toBe('OK');
  await commit.idle();
  expect(written).toEqual(['quick c', 'quick d', 'quick f', 'slow a', 'slow b', 'slow e', 'slow g']);
});

test('what was matched with an old configuration comes before what came after it', async () => {
  const current = (batch: IngestBatch) =>
    batch.events.map((): IngestResult => {
      const isStale = batch.tenants.get('moves' as TenantId)!.version < 2;
      return isStale ? { kind: 'stale' } : { kind: 'stored' };
    });
  const { memory, reads, written, publish } = start([configOf('moves')], current);
  const all = [publish('moves', 'a'), publish('moves', 'b')];
  await expect.poll(() => reads.length).toBe(1);
  expect(memory.has('moves')).toBe(false);
  all.push(publish('moves', 'c'));
  reads[0]!.end(configOf('moves', { version: 2 }));
  await expect.poll(() => reads.length === 2 || written.length === 3).toBe(true);
  reads[1]?.end(configOf('moves', { version: 2 }));
  expect((await Promise.all(all)).map(codeOf)).toEqual(['OK', 'OK', 'OK']);
  expect(written).toEqual(['moves a', 'moves b', 'moves c']);
});

test('so it does near the end of a quota', async () => {
  const began = Promise.withResolvers<void>();
  const released = Promise.withResolvers<void>();
  const isCurrent = ({ tenants }: IngestBatch) => tenants.get('edge' as TenantId)!.version === 2;
  const { memory, written, publish } = start(
    [configOf('edge')],
    (batch) => batch.events.map(() => ({ kind: 'near' })),
    async (batch) => {
      began.resolve();
      await released.promise;
      memory.set('edge', configOf('edge', { version: 2 }));
      return batch.events.map(() => (isCurrent(batch) ? { kind: 'stored' } : { kind: 'stale' }));
    },
  );
  memory.delete = () => false; // it is in memory again at once
  const all = [publish('edge', 'a'), publish('edge', 'b')];
  await began.promise;
  all.push(publish('edge', 'c'));
  await Promise.resolve(); // it waits for those that are under way
  released.resolve();
  expect((await Promise.all(all)).map(codeOf)).toEqual(['OK', 'OK', 'OK']);
  expect(written).toEqual(['edge a', 'edge b', 'edge c']);
});

test('and so does what waited for a configuration while others came near the end of theirs', async () => {
  const gates = new Map<string, PromiseWithResolvers<void>>();
  const passes = (tenantId: string) => {
    const gate = gates.get(tenantId) ?? Promise.withResolvers<void>();
    gates.set(tenantId, gate);
    return gate.promise;
  };
  const stored = (batch: IngestBatch) => batch.events.map((): IngestResult => ({ kind: 'stored' }));
  const { memory, reads, written, publish } = start(
    ['edge', 'near-1', 'near-2', 'usual'].map((tenantId) => configOf(tenantId)),
    async (batch) => {
      if (batch.events[0]!.event.tenantId !== 'usual') return batch.events.map(() => ({ kind: 'near' }));
      await passes('usual');
      return stored(batch);
    },
    async (batch) => {
      const { tenantId } = batch.events[0]!.event;
      if (tenantId !== 'edge') await passes(tenantId);
      return stored(batch);
    },
  );
  expect(codeOf(await publish('edge', '0'))).toBe('OK'); // from now on it goes where those near their quotas go
  memory.delete('edge');
  const all = [publish('edge', 'a')];
  await expect.poll(() => reads.length).toBe(1);
  all.push(publish('near-1', 'x'), publish('near-2', 'x')); // all the room there is for such
  await expect.poll(() => gates.size).toBe(2);
  all.push(publish('edge', 'b'));
  await Promise.resolve(); // it waits there
  all.push(publish('usual', 'x'));
  await expect.poll(() => gates.size).toBe(3);
  memory.set('edge', configOf('edge', { version: 2 }));
  reads[0]!.end(memory.get('edge'));
  await new Promise(setImmediate); // and here it is
  gates.get('near-1')!.resolve();
  await Promise.all([all[0], all[3]]);
  for (const gate of gates.values()) gate.resolve();
  expect((await Promise.all(all)).map(codeOf)).toEqual(all.map(() => 'OK'));
  expect(written.filter((text) => text.startsWith('edge'))).toEqual(['edge 0', 'edge a', 'edge b']);
});

test('what waits for a configuration counts among what may wait, and publishing goes on once it is read', async () => {
  const { memory, reads, publish, written } = start([configOf('quick')]);
  const slow = Array.from({ length: 20_000 }, (_, i) => publish('slow', `t${i}`));
  await Promise.resolve(); // they are looked at, and wait for their configuration
  const refused = await publish('quick', 'a');
  expect(refused.ok ? 'stored' : [refused.error.code, refused.error.reason]).toEqual([
    'RESOURCE_EXHAUSTED',
    'PUBLISH_QUEUE_FULL',
  ]);
  expect(written).toEqual([]);
  await eventually(() => expect(reads.length).toBe(1));
  memory.set('slow', configOf('slow'));
  reads[0]!.end(configOf('slow'));
  await Promise.all(slow);
  expect(codeOf(await publish('quick', 'b'))).toBe('OK');
  expect(written.length).toBe(20_001);
});

test('so does what waits near the end of a quota', async () => {
  let goOn = () => {};
  const isHeld = new Promise<void>((done) => {
    goOn = done;
  });
  const { publish } = start(
    [configOf('near'), configOf('quick')],
    (batch) => batch.events.map(({ event }) => ({ kind: event.tenantId === 'near' ? 'near' : 'stored' })),
    async (batch) => {
      await isHeld;
      return batch.events.map(() => ({ kind: 'stored' }));
    },
  );
  const first = publish('near', 'first');
  expect(codeOf(await publish('quick', 'a'))).toBe('OK');
  const waiting = Array.from({ length: 20_000 }, (_, i) => publish('near', `t${i}`)); // the first is in a commit
  for (let i = 0; i < 200; i++) {
    await turn(); // all are looked at by then, and nothing is left but what waits there
    expect(codeOf(await publish('quick', 'b'))).toBe('RESOURCE_EXHAUSTED');
  }
  goOn();
  await Promise.all([first, ...waiting]);
  expect(codeOf(await publish('quick', 'c'))).toBe('OK');
});

test('a tenant that is not there, is suspended or cannot be read is refused, whatever was known of it', async () => {
  const { commit, reads, written, publish } = start([configOf('was-suspended', { state: 'suspended' })]);
  const tenants = ['nowhere', 'suspended', 'broken', 'was-suspended'];
  const outcomes = Promise.all(tenants.map((tenantId) => publish(tenantId, 'a')));
  const answers = new Map<string, TenantConfig | Error | undefined>([
    ['nowhere', undefined],
    ['suspended', configOf('suspended', { state: 'suspended' })],
    ['broken', new Error('a row is not what it should be')],
    ['was-suspended', configOf('was-suspended', { version: 2 })],
  ]);
  for (const i of tenants.keys()) {
    await expect.poll(() => reads.length).toBeGreaterThan(i);
    expect(reads.length).toBeLessThanOrEqual(i + 2); // two at once
    reads[i]!.end(answers.get(reads[i]!.tenantId));
  }
  expect((await outcomes).map(codeOf)).toEqual(['NOT_FOUND', 'FAILED_PRECONDITION', 'INTERNAL', 'OK']);
  await commit.idle();
  expect(written).toEqual(['was-suspended a']);
  expect((await outcomes).filter((o) => !o.ok).every((o) => !o.ok && o.error instanceof DispatchError)).toBe(
    true,
  );
});

/** A group commit whose first commits take until their `ends` are called; what is in each. */
function startSlow(tenantIds: readonly string[], { slowCount = 1, isOrdered = false } = {}) {
  const commits: string[][] = [];
  const ends: (() => void)[] = [];
  const ingest = async ({ events }: IngestBatch): Promise<IngestResult[]> => {
    commits.push(events.map(({ event }) => `${event.tenantId} ${event.type}`));
    if (commits.length <= slowCount) await new Promise<void>((done) => ends.push(done));
    return events.map(() => ({ kind: 'stored' }));
  };
  const { publish } = start(
    tenantIds.map((tenantId) => ({ ...configOf(tenantId), isOrdered })),
    ingest,
  );
  const publishMany = (tenantId: string, count: number) =>
    Array.from({ length: count }, (_, i) => publish(tenantId, `${i}`));
  /** As many turns as a commit would need to begin, and to end. */
  const turns = async () => {
    for (let i = 0; i < 5; i++) await turn();
  };
  return { commits, ends, publish, publishMany, turns };
}

test('what others publish, if it is little, does not wait for a large commit of one tenant', async () => {
  const { commits, ends, publish, publishMany, turns } = startSlow(['big', 'in it', 'quiet', 'five']);
  const first = [...publishMany('big', 99), publish('in it', 'a')];
  await turns();
  expect(commits.map(({ length }) => length)).toEqual([100]);
  const behind = [publish('big', 'late'), publish('in it', 'late'), ...publishMany('five', 5)];
  const quiet = publishMany('quiet', 4);
  expect((await Promise.all(quiet)).map(codeOf)).toEqual(['OK', 'OK', 'OK', 'OK']);
  expect(await publish('quiet', 'again').then(codeOf)).toBe('OK');
  await turns();
  expect(commits.slice(1)).toEqual([['quiet 0', 'quiet 1', 'quiet 2', 'quiet 3'], ['quiet again']]);
  ends[0]!();
  await Promise.all([...first, ...behind]);
  const five = [0, 1, 2, 3, 4].map((i) => `five ${i}`);
  expect(commits.slice(3)).toEqual([['big late', 'in it late', ...five]]);
});

test('nobody goes beside a commit of many tenants, or a smaller one', async () => {
  const many = Array.from({ length: 60 }, (_, i) => `t${i}`);
  for (const events of [
    many.map((tenantId) => [tenantId, 2] as const),
    [['big', 99] as const],
    [['big', 100] as const, ...many.slice(0, 51).map((tenantId) => [tenantId, 2] as const)],
  ]) {
    const { commits, ends, publish, publishMany, turns } = startSlow([...many, 'big', 'quiet']);
    const all = events.flatMap(([tenantId, count]) => publishMany(tenantId, count));
    await turns();
    all.push(publish('quiet', 'a'));
    await turns();
    expect(commits).toHaveLength(1);
    ends[0]!();
    await Promise.all(all);
    expect(commits.slice(1)).toEqual([['quiet a']]);
  }
});

test('what has an order waits for what was before it, in whichever commit that is', async () => {
  const many = Array.from({ length: 60 }, (_, i) => `t${i}`);
  const { commits, ends, publish, publishMany, turns } = startSlow(['big', 'quiet', ...many], {
    slowCount: 2,
    isOrdered: true,
  });
  const all = publishMany('big', 100);
  await turns();
  all.push(...many.flatMap((tenantId) => publishMany(tenantId, 5)));
  await turns();
  expect(commits.map(({ length }) => length)).toEqual([100, 300]);
  all.push(publish('t0', 'late'));
  expect(await publish('quiet', 'a').then(codeOf)).toBe('OK');
  await turns();
  expect(commits.slice(2)).toEqual([['quiet a']]);
  ends[1]!();
  await turns();
  expect(commits.slice(3)).toEqual([['t0 late']]);
  ends[0]!();
  await Promise.all(all);
});

test('one commit at a time is beside a large one, of so many bytes, and what goes does not count among what waits', async () => {
  const { commits, ends, publish, publishMany, turns } = startSlow(['big', 'a', 'b', 'c'], { slowCount: 2 });
  const all = publishMany('big', 100);
  await turns();
  const huge = Buffer.alloc(80 * 1024 * 1024);
  all.push(publish('a', 'huge', huge));
  await turns();
  for (const type of ['1', '2']) all.push(publish('b', type, huge));
  all.push(publish('c', 'small'));
  await turns();
  expect(commits.slice(1)).toEqual([['a huge']]);
  ends[1]!();
  await turns();
  expect(commits.slice(2)).toEqual([['b 1'], ['b 2'], ['c small']]);
  for (let i = 0; i < 3; i++) {
    all.push(publish('a', 'again', huge));
    await turns();
  }
  expect(commits).toHaveLength(8);
  ends[0]!();
  expect((await Promise.all(all)).map(codeOf)).toEqual(Array.from({ length: 107 }, () => 'OK'));
});

test('what waits for a large commit begins when that ends, whatever is beside it', async () => {
  const { commits, ends, publish, publishMany, turns } = startSlow(['big', 'quiet'], { slowCount: 2 });
  const all = publishMany('big', 100);
  await turns();
  all.push(...publishMany('big', 50), publish('quiet', 'a'));
  await turns();
  expect(commits.map(({ length }) => length)).toEqual([100, 1]);
  ends[0]!();
  await turns();
  expect(commits.map(({ length }) => length)).toEqual([100, 1, 50]);
  all.push(publish('big', 'later'));
  await turns();
  expect(commits).toHaveLength(4);
  ends[1]!();
  await Promise.all(all);
});

test('when the large commit has ended, others are waited for again', async () => {
  const { commits, ends, publish, publishMany, turns } = startSlow(['big', 'small', 'quiet'], {
    slowCount: 2,
  });
  const all = publishMany('big', 100);
  await turns();
  ends[0]!();
  await turns();
  all.push(publish('small', 'a'));
  await turns();
  all.push(publish('quiet', 'a'));
  await turns();
  expect(commits.slice(1)).toEqual([['small a']]);
  ends[1]!();
  await Promise.all(all);
});

test('of two commits of many tenants the end of one lets nobody go beside the other', async () => {
  const many = Array.from({ length: 60 }, (_, i) => `t${i}`);
  const { commits, ends, publish, publishMany, turns } = startSlow([...many, 'quiet'], { slowCount: 2 });
  const all = many.flatMap((tenantId) => publishMany(tenantId, 5));
  await turns();
  all.push(...many.flatMap((tenantId) => publishMany(tenantId, 5)));
  all.push(publish('quiet', 'a'));
  await turns();
  all.push(publish('quiet', 'b'));
  await turns();
  ends[0]!();
  await turns();
  expect(commits.map(({ length }) => length)).toEqual([300, 301]);
  ends[1]!();
  await Promise.all(all);
  expect(commits.slice(2)).toEqual([['quiet b']]);
});

test('what a tenant has waiting is counted wherever it stands among others’', async () => {
  const quiet = [0, 1, 2, 3, 4].map((i) => `q${i}`);
  const { commits, ends, publish, publishMany, turns } = startSlow(['big', 'more', ...quiet]);
  const all = publishMany('big', 100);
  await turns();
  for (const tenantId of quiet) all.push(publish('more', tenantId), publish(tenantId, 'a'));
  await turns();
  expect(commits.slice(1)).toEqual([quiet.map((tenantId) => `${tenantId} a`)]);
  ends[0]!();
  await Promise.all(all);
  expect(commits.slice(2)).toEqual([quiet.map((tenantId) => `more ${tenantId}`)]);
});
