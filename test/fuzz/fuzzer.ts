// Runs a target on what its corpus holds and on mutations of that. The inputs of a run are determined by its seed; with
// coverage (run.ts), what reaches new code is mutated too.
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { randomFrom } from '../support/random.ts';
import type { Coverage } from './coverage.ts';
import { mutate } from './mutate.ts';
import { Broken, type Target } from './target.ts';

export type Failure = { readonly input: Buffer; readonly error: unknown };

export type Run = {
  readonly executions: number;
  readonly seconds: number;
  /** Inputs that reached code which none before them had. */
  readonly kept: readonly Buffer[];
  readonly failure: Failure | undefined;
};

const CORPUS = join(import.meta.dirname, 'corpus');
export const corpusOf = (target: Target): string => join(CORPUS, target.name);

/** The stored inputs of a target and its seeds. */
export async function readCorpus(target: Target): Promise<Buffer[]> {
  const names = await readdir(corpusOf(target)).catch(() => []); // none yet
  const files = await Promise.all(names.sort().map((name) => readFile(join(corpusOf(target), name))));
  return [...target.seeds.map((seed) => Buffer.from(seed as Uint8Array)), ...files];
}

/** One decoding may take this long; measured again when it took longer, since this machine does other things too. */
const MAX_MS = 250;
const TRIES = 3;

/** What an input breaks, or undefined. */
export async function broken(target: Target, input: Buffer): Promise<unknown> {
  let fastestMs = Number.POSITIVE_INFINITY;
  for (let i = 0; i < TRIES; i++) {
    const startedAt = performance.now();
    try {
      const running = target.run(Buffer.from(input));
      if (running !== undefined) await running;
    } catch (error) {
      return error ?? new Broken('nothing was thrown');
    }
    fastestMs = Math.min(fastestMs, performance.now() - startedAt);
    if (fastestMs <= MAX_MS) return undefined;
  }
  return new Broken(`it took ${Math.round(fastestMs)} ms`);
}

/** Inputs between two looks at what they covered. */
const BATCH = 500;

export async function fuzz(
  target: Target,
  options: { readonly seed: number; readonly seconds: number; readonly coverage?: Coverage | undefined },
): Promise<Run> {
  const random = randomFrom(options.seed);
  const startedAt = performance.now();
  const elapsed = () => (performance.now() - startedAt) / 1000;
  const { coverage } = options;
  const corpus = await readCorpus(target);
  const words = target.words.map((word) => Buffer.from(word));
  const kept: Buffer[] = [];
  let executions = 0;
  const done = (failure: Failure | undefined): Run => ({ executions, seconds: elapsed(), kept, failure });

  const tryAll = async (inputs: readonly Buffer[]): Promise<Failure | undefined> => {
    for (const input of inputs) {
      executions++;
      const error = await broken(target, input);
      if (error !== undefined) return { input, error };
      if (coverage === undefined && elapsed() > options.seconds) return undefined;
    }
    return undefined;
  };

  const known = await tryAll(corpus);
  if (known !== undefined) return done(known);
  coverage?.fresh();
  while (elapsed() < options.seconds) {
    const batch: Buffer[] = [];
    for (let i = 0; i < BATCH; i++) {
      const from = corpus[Math.floor(random() * corpus.length)] ?? Buffer.alloc(0);
      batch.push(mutate(from, random, corpus, words));
    }
    const failure = await tryAll(batch);
    if (failure !== undefined) return done({ ...failure, input: await smaller(target, failure) });
    if (coverage === undefined || !coverage.fresh()) continue;
    for (const input of await coverage.whichAreNew(batch, (one) => broken(target, one))) {
      corpus.push(input);
      kept.push(input);
    }
  }
  return done(undefined);
}

const kindOf = (error: unknown) =>
  error instanceof Error ? `${error.name}: ${error.message.slice(0, 20)}` : '';

/** The input without what it does not need in order to fail in the same way. */
async function smaller(target: Target, { input, error }: Failure): Promise<Buffer> {
  let smallest = input;
  for (let size = Math.ceil(input.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < smallest.length; ) {
      const without = Buffer.concat([smallest.subarray(0, at), smallest.subarray(at + size)]);
      if (kindOf(await broken(target, without)) === kindOf(error)) smallest = without;
      else at += size;
    }
  }
  return smallest;
}
