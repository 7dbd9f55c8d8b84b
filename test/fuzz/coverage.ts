// Which code of src/ has run, by V8's own counts.
import { type Profiler, Session } from 'node:inspector';

export type Coverage = {
  /** Whether code ran since the last look that had never run before. */
  readonly fresh: () => boolean;
  /** Of inputs, those that reach something that was not reached before them. */
  readonly whichAreNew: (
    inputs: readonly Buffer[],
    run: (input: Buffer) => Promise<unknown>,
  ) => Promise<Buffer[]>;
  /** Characters of source that have run. */
  readonly size: () => number;
};

/** By file, 1 for each character of source that ran: what V8 joins to ranges differs with the counts. */
type Reached = Map<string, Uint8Array>;

/** `isOurs` says which files count. */
export function startCoverage(isOurs: (url: string) => boolean): Coverage {
  const session = new Session();
  session.connect();
  session.post('Profiler.enable');
  session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });

  /** What ran since the last call. */
  function take(): Reached {
    let scripts: Profiler.ScriptCoverage[] = [];
    // In one process it answers before it returns.
    session.post('Profiler.takePreciseCoverage', (_, { result }) => {
      scripts = result;
    });
    const reached: Reached = new Map();
    for (const { url, functions } of scripts) if (isOurs(url)) reached.set(url, charactersOf(functions));
    return reached;
  }

  let known: Reached = new Map();
  /** Before the last look that found something. */
  let before: Reached = new Map();
  return {
    fresh() {
      const now = take();
      if (!hasNew(now, known)) return false;
      before = known;
      known = union(known, now);
      return true;
    },
    async whichAreNew(inputs, run) {
      let reached = before;
      take();
      // By halves: a look takes a few milliseconds, as long as dozens of inputs.
      const among = async (some: readonly Buffer[]): Promise<Buffer[]> => {
        for (const input of some) await run(input);
        const now = take();
        if (!hasNew(now, reached)) return [];
        if (some.length === 1) {
          reached = union(reached, now);
          return [...some];
        }
        const middle = Math.ceil(some.length / 2);
        return [...(await among(some.slice(0, middle))), ...(await among(some.slice(middle)))];
      };
      const found = await among(inputs);
      known = union(known, reached);
      return found;
    },
    size: () => [...known.values()].reduce((sum, of) => sum + of.reduce((n, ran) => n + ran, 0), 0),
  };
}

/** Functions come with those that they are in before them, ranges likewise. */
function charactersOf(functions: readonly Profiler.FunctionCoverage[]): Uint8Array {
  const ranges = functions.flatMap((f) => f.ranges);
  const ran = new Uint8Array(ranges.reduce((most, { endOffset }) => Math.max(most, endOffset), 0));
  for (const { startOffset, endOffset, count } of ranges) ran.fill(count > 0 ? 1 : 0, startOffset, endOffset);
  return ran;
}

function hasNew(now: Reached, known: Reached): boolean {
  for (const [url, ran] of now) {
    const of = known.get(url);
    if (of === undefined ? ran.includes(1) : ran.some((one, i) => one === 1 && of[i] !== 1)) return true;
  }
  return false;
}

function union(a: Reached, b: Reached): Reached {
  const both: Reached = new Map(a);
  for (const [url, ran] of b) {
    const of = a.get(url) ?? new Uint8Array();
    const [longer, shorter] = of.length > ran.length ? [of, ran] : [ran, of];
    both.set(
      url,
      longer.map((one, i) => one | (shorter[i] ?? 0)),
    );
  }
  return both;
}
