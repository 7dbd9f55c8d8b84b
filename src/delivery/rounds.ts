// Work that comes again and again in the background of a worker.

/** One round; resolves with the ms until the next. It looks at `isStopped` before each step, and ends if so. */
type Round = (isStopped: () => boolean) => Promise<number>;

export type RoundsDeps = {
  /** Beside each other; of each one round at a time. */
  readonly rounds: readonly Round[];
  /** ms from a round that failed to the next. */
  readonly againMs: number;
  readonly onError: (error: unknown) => void;
};

/** Runs at once, and until it is disposed of, which waits for what is under way. */
export function startRounds({ rounds, againMs, onError }: RoundsDeps): AsyncDisposable {
  const started = rounds.map((round) => start(round, againMs, onError));
  return {
    async [Symbol.asyncDispose]() {
      await Promise.all(started.map((end) => end()));
    },
  };
}

/** Returns what ends it. */
function start(round: Round, againMs: number, onError: (error: unknown) => void): () => Promise<void> {
  let stopped = false;
  let timer: NodeJS.Timeout | undefined;
  let running: Promise<void>;

  function begin(): void {
    running = round(() => stopped)
      .catch((error) => {
        onError(error);
        return againMs;
      })
      .then((delayMs) => {
        if (!stopped) timer = setTimeout(begin, delayMs);
      });
  }

  begin();
  return () => {
    stopped = true;
    clearTimeout(timer);
    return running;
  };
}

/** Of what is given to it one runs at a time, in the order of the calls. */
export function oneByOne(): <T>(work: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return (work) => {
    const result = last.then(work);
    last = result.catch(() => {});
    return result;
  };
}
