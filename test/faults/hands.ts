// Limits in whose hands: when processes shared them through Redis and when each kept its own part, as their logs say,
// and how much of a rate that lets pass on top (docs/limits.md, "Redis").
import type { Span } from './figures.ts';

/** A process has begun to share its limits, or to keep its own part of each. Unix ms. */
export type HandOver = { readonly atMs: number; readonly isShared: boolean };

/** Used a little before a window began: slots are kept for up to 0.3 s. */
const KEPT_MS = 300;
/** What was taken ahead (0.2 s) and what may be caught up (0.1 s). */
const HAND_OVER_S = 0.3;

/** Of what a process printed; it logs from `info` on. All share when they are ready for the first time. */
export function handOversOf(output: string): HandOver[] {
  const lines = output.matchAll(/"time":"([^"]+)".*"msg":"Redis is (there|away):/g);
  return [...lines].map(([, time, state]) => ({ atMs: Date.parse(time!), isShared: state === 'there' }));
}

/**
 * What a rate may let pass beyond itself in a window, in seconds of the rate, as processes changed hands (the list of
 * each). One of N has an Nth of the rate in its hands: each change lets an Nth of 0.3 s pass; while some share all of the
 * rate, whoever keeps its own part uses that beside it.
 */
export function looserBySeconds(processes: readonly (readonly HandOver[])[], window: Span): number {
  const fromMs = window.fromMs - KEPT_MS;
  const inWindow = processes.flat().filter(({ atMs }) => atMs > fromMs && atMs <= window.toMs);
  const edges = [fromMs, ...inWindow.map(({ atMs }) => atMs).sort((a, b) => a - b), window.toMs];
  let besideMs = 0;
  for (let i = 1; i < edges.length; i++) {
    const since = edges[i - 1]!;
    const apart = processes.filter((handOvers) => !isSharedAt(handOvers, since)).length;
    if (apart < processes.length) besideMs += (edges[i]! - since) * (apart / processes.length);
  }
  return (inWindow.length / processes.length) * HAND_OVER_S + besideMs / 1000;
}

const isSharedAt = (handOvers: readonly HandOver[], atMs: number) =>
  handOvers.findLast((change) => change.atMs <= atMs)?.isShared ?? true;
