// How many requests are started beside those that were started just now. Towards endpoints that answer at once this process
// is what is slow: with a hundred requests under way the event loop handles a hundred answers in a row, and what a quiet
// tenant publishes meanwhile waits for them at every step. As few as keep the process busy do the same work. Requests that
// have been under way for a while wait for their endpoints and not for this process: they do not count, so endpoints that
// are slow or hang take nothing from this window.

/** A request that is younger than this is work for this process; an older one waits for its endpoint. */
const YOUNG_MS = 10;
const MIN = 24;
const LOOK_MS = 50;
/** Above this utilisation of the event loop the window shrinks, below it grows. */
const BUSY = 0.85;

export type StartWindow = {
  /** Whether another request may be started; if not, `onOpen` is called when it may. */
  readonly mayStart: () => boolean;
  /** A request is started; call what it returns when it has ended. */
  readonly started: () => () => void;
  readonly size: () => number;
  readonly stop: () => void;
};

export type StartWindowDeps = {
  readonly max: number;
  /** Monotonic, in ms. */
  readonly now: () => number;
  /** The event loop's utilisation since it was asked last, in [0, 1]. */
  readonly utilization: () => number;
  readonly onOpen: () => void;
};

type Start = { readonly atMs: number; isYoung: boolean };

export function createStartWindow(deps: StartWindowDeps): StartWindow {
  let size = Math.min(deps.max, 4 * MIN);
  let lookedAtMs = deps.now();
  let young = 0;
  /** In the order of their starts. */
  let starts: Start[] = [];
  let head = 0;
  let timer: NodeJS.Timeout | undefined;

  function grow(nowMs: number): void {
    if (nowMs - lookedAtMs < LOOK_MS) return;
    lookedAtMs = nowMs;
    const next = deps.utilization() > BUSY ? size * 0.85 : size * 1.25 + 1;
    size = Math.round(Math.min(deps.max, Math.max(Math.min(MIN, deps.max), next)));
  }

  function age(nowMs: number): void {
    while (head < starts.length && starts[head]!.atMs <= nowMs - YOUNG_MS) leave(starts[head++]!);
    if (head > 1_024 || head === starts.length) {
      starts = starts.slice(head);
      head = 0;
    }
  }

  function leave(start: Start): void {
    if (!start.isYoung) return;
    start.isYoung = false;
    young--;
  }

  return {
    mayStart() {
      const nowMs = deps.now();
      age(nowMs);
      grow(nowMs);
      if (young < size) return true;
      timer ??= setTimeout(() => {
        timer = undefined;
        deps.onOpen();
      }, YOUNG_MS / 2);
      return false;
    },
    started() {
      const start = { atMs: deps.now(), isYoung: true };
      young++;
      starts.push(start);
      return () => leave(start);
    },
    size: () => size,
    stop: () => clearTimeout(timer),
  };
}
