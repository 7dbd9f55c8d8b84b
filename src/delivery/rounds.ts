// Work that comes again and again in the background of a worker: one round at a time.

export type RoundsDeps = {
  /** One round; resolves with the ms until the next. It looks at `isStopped` before each step, and ends if so. */
  readonly round: (isStopped: () => boolean) => Promise<number>;
  /** ms from a round that failed to the next. */
  readonly againMs: number;
  readonly onError: (error: unknown) => void;
};

/** Runs at once, and until it is disposed of, which waits for what is under way. */
export function startRounds({ round, againMs, onError }: RoundsDeps): AsyncDisposable {
  let stopped = false;
  let timer: NodeJS.Timeout | undefined;
  let running: Promise<void>;

  function start(): void {
    running = round(() => stopped)
      .catch((error) => {
        onError(error);
        return againMs;
      })
      .then((delayMs) => {
        if (!stopped) timer = setTimeout(start, delayMs);
      });
  }

  start();
  return {
    async [Symbol.asyncDispose]() {
      stopped = true;
      clearTimeout(timer);
      await running;
    },
  };
}
