// The judge is worth what it catches: builds that break a promise on purpose are found out by the scenario that is about
// it, and by the right figure, in a shorter run than the one that the unbroken build passes (untimed.test.ts).
import { expect, inject, test } from 'vitest';
import { type Mutation, mutated } from './mutants.ts';
import { runScenario } from './runner.ts';
import type { Scenario } from './scenario.ts';
import { apiKill } from './scenarios/api-kill.ts';
import { publishCut } from './scenarios/publish-cut.ts';
import { zombie } from './scenarios/zombie.ts';

/** The least that the scenarios do. */
const SCALE = 0.02;
const SEED = 1;

type Mutant = {
  readonly about: string;
  readonly mutation: Mutation;
  readonly scenario: Scenario;
  /** A sentence of the report that must be there. */
  readonly broken: RegExp;
};

const MUTANTS: readonly Mutant[] = [
  {
    about: 'results are written whoever holds the lease',
    mutation: { file: 'src/storage/records.ts', find: ' AND d.lease = r.lease', replace: '' },
    scenario: zombie,
    broken: /^stale writes: \d+, at most 0$/,
  },
  {
    about: 'a publish is acked before its statement is sent',
    mutation: {
      file: 'src/publishing/group-commit.ts',
      find: '      const results = await (isNearLane ? deps.ingestNearLimit : deps.ingest)(prepared.batch);\n',
      replace: `      for (const { item, eventId, deliveries } of matched) {
        const deliveryCount = deliveries.length;
        const id = encodeId('evt', eventId) as EventId;
        item.done({ ok: true, published: { eventId: id, duplicate: false, deliveryCount } });
      }
      const results = await (isNearLane ? deps.ingestNearLimit : deps.ingest)(prepared.batch);
`,
    },
    scenario: apiKill,
    broken: /^missingEvents: \d+$/,
  },
  {
    about: 'now and then results are said to be written and are not',
    mutation: {
      file: 'src/delivery/recorder.ts',
      find: 'const written = await deps.write(records, commit);',
      replace: `const writes = (deps.writes = (deps.writes ?? 0) + 1);
        const written = writes % 100 === 5
          ? { count: records.length, ids: new Set<string>() }
          : await deps.write(records, commit);`,
    },
    scenario: publishCut,
    broken: /^duplicates: \d+, at most 0$/,
  },
];

for (const { about, mutation, scenario, broken } of MUTANTS) {
  test(`${scenario.name} catches a build in which ${about}`, async () => {
    await using checkout = await mutated(mutation);
    const options = { seed: SEED, scale: SCALE, serverUrl: inject('serverUrl'), say: () => {} };
    const { report } = await runScenario(scenario, { ...options, checkout: checkout.path });
    console.log(`${scenario.name}, mutant: ${report.seconds} s, ${report.broken.join('; ')}`);
    expect(report.broken).toContainEqual(expect.stringMatching(broken));
  });
}

test('a mutation that matches nothing, or more than once, is refused', async () => {
  const file = 'src/storage/records.ts';
  await expect(mutated({ file, find: 'no such text', replace: '' })).rejects.toThrow('has 0 times');
  await expect(mutated({ file, find: 'const ', replace: '' })).rejects.toThrow(/has \d\d+ times/);
});
