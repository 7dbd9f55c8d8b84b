// How many requests are started beside those that were started just now. Towards endpoints that answer at once this process
// is what is slow: with a hundred requests under way the event loop handles a hundred answers in a row, and what a quiet
// tenant publishes meanwhile waits for them at every step. As few as keep the process busy do the same work. Requests that
// have been under way for a while wait for their endpoints and not for this process: they do not count, so endpoints that
// are slow or hang take nothing from this window. ADR 0014 has the measurements.
import type { TenantId } from '../domain/ids.ts';

/** A request that is younger than this is work for this process; an older one waits for its endpoint. */
const YOUNG_MS = 10;
/** Above the utilisation of the event loop that is the goal the window shrinks, down to a least; below it grows. */
const BUSY = { goal: 0.95, least: 24 };
/** The same while most of the work is that of a few tenants and others come with little: they find the process free. */
const BESIDE_OTHERS = { goal: 0.75, least: 5 };
const LOOK_MS = 50;
/** So many of them start beyond a full window: it is full for as long as the receiver of the few stands still, up to YOUNG_MS. */
const BEYOND = 5;
/** Tenants with this part of all starts are the few. */
const MUCH = 1 / 8;
const COUNT_MS = 500;
const START = 100;

export type StartWindow = {
  /** Whether another request may be started; if not, `onOpen` is called when it may. */
  readonly mayStart: () => boolean;
  /** Whether one more may be started although mayStart() says no, of a tenant that comes with little. */
  readonly mayStartBeyond: () => boolean;
  /** A request is started; call what it returns when it has ended. */
  readonly started: (tenantId: TenantId) => () => void;
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

type Start = { readonly atMs: number; isYoung: boolean; readonly isBeyond: boolean };

export function createStartWindow(deps: StartWindowDeps): StartWindow {
  let size = Math.min(deps.max, START);
  let lookedAtMs = deps.now();
  let young = 0;
  /** Young ones that were started beyond a full window: they do not keep it full. */
  let beyond = 0;
  /** In the order of their starts. */
  let starts: Start[] = [];
  let head = 0;
  /** Starts by tenant since countedAtMs. */
  let counts = new Map<TenantId, number>();
  let countedAtMs = deps.now();
  let isBesideOthers = false;
  /** When mayStart() was asked last: right before a start, but for one that waited for a token. */
  let askedAtMs = deps.now();
  let timer: NodeJS.Timeout | undefined;

  function grow(nowMs: number): void {
    if (nowMs - lookedAtMs < LOOK_MS) return;
    lookedAtMs = nowMs;
    const { goal, least } = isBesideOthers ? BESIDE_OTHERS : BUSY;
    const change = Math.min(1.25, Math.max(0.8, goal / Math.max(0.01, deps.utilization())));
    size = Math.min(deps.max, Math.max(least, size * change));
  }

  /** Whether a few tenants take most, and others are there. */
  function lookAround(nowMs: number): void {
    if (nowMs - countedAtMs < COUNT_MS) return;
    countedAtMs = nowMs;
    let all = 0;
    for (const count of counts.values()) all += count;
    let ofFew = 0;
    let others = 0;
    for (const count of counts.values()) {
      if (count >= all * MUCH) ofFew += count;
      else others++;
    }
    isBesideOthers = others > 0 && ofFew * 2 > all;
    counts = new Map();
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
    if (start.isBeyond) beyond--;
    else young--;
  }

  return {
    mayStart() {
      const nowMs = deps.now();
      askedAtMs = nowMs;
      age(nowMs);
      lookAround(nowMs);
      grow(nowMs);
      if (young < Math.round(size)) return true;
      timer ??= setTimeout(() => {
        timer = undefined;
        deps.onOpen();
      }, YOUNG_MS / 2);
      return false;
    },
    mayStartBeyond: () => isBesideOthers && beyond < BEYOND,
    started(tenantId) {
      counts.set(tenantId, (counts.get(tenantId) ?? 0) + 1);
      // What waited for a token, and began without asking, may be more.
      const isBeyond = young >= Math.round(size) && beyond < BEYOND;
      const start = { atMs: askedAtMs, isYoung: true, isBeyond };
      if (isBeyond) beyond++;
      else young++;
      starts.push(start);
      return () => leave(start);
    },
    size: () => Math.round(size),
    stop: () => clearTimeout(timer),
  };
}
