// What must hold: in every state, and whenever something is sent.
import { isHeld } from '../../src/domain/lease.ts';
import { NOW, type Setup, type State } from './state.ts';

/** What must hold in every state. */
export function brokenIn(state: State): string | undefined {
  for (const [id, { row, end }] of state.entries.entries()) {
    const isStopped = end === 'dead' && row?.runAtMs === Number.POSITIVE_INFINITY && row.lease === undefined;
    if (row === undefined && end === undefined) return `${id} is lost`;
    if (row !== undefined && end !== undefined && !isStopped) return `${id} is finished and in the queue`;
    if (end === 'cancelled') continue; // what is on its way to be sent is not recalled
    let live = 0;
    for (const worker of state.workers)
      for (const held of worker) if (held.id === id && !held.isOver && typeof held.stage === 'string') live++;
    if (live > 1) return `${id} has two live leases`;
    if (live === 1 && (row === undefined || !isHeld(row, NOW))) return `${id} may be sent without a lease`;
  }
  return undefined;
}

/** What must hold when a delivery is sent. */
export function brokenBySending(setup: Setup, state: State, id: number): string | undefined {
  const { lines, onDeadLetter } = setup;
  const entry = state.entries[id]!;
  if (entry.end === 'cancelled') return undefined;
  if (entry.taken === 'yes') return `${id} is sent again without a crash or a lost lease`;
  const line = lines[id];
  for (const worker of state.workers) {
    for (const { id: other, stage, isOver } of worker) {
      if (stage !== 'sent' || isOver || state.entries[other]!.end === 'cancelled') continue;
      if (other === id) return `${id} is on the wire twice`;
      if (line !== undefined && lines[other] === line) return `${id} is sent while ${other} is on the wire`;
    }
  }
  if (line === undefined) return undefined;
  for (const [other, { row, wasReplayed, wasSent }] of state.entries.entries()) {
    if (lines[other] !== line) continue;
    // A dead letter that the line skipped and that was replayed goes when it can: its place is gone.
    const isExempt = onDeadLetter === 'skip';
    if (other < id && row !== undefined && !(isExempt && wasReplayed))
      return `${id} is sent before ${other} is done`;
    if (other > id && wasSent && !(isExempt && entry.wasReplayed)) return `${id} is sent after ${other}`;
  }
  return undefined;
}
