// Who is told that queues have something due.
import type { Worker } from '../delivery/worker.ts';
import type { QueueKey } from '../storage/claims.ts';
import type { Standings } from '../storage/instances.ts';
import type { Notifier } from '../storage/wakeups.ts';

export type ReadyDeps = {
  /** The worker of this process, once there is one and until it stops. */
  readonly worker: () => Pick<Worker, 'knows' | 'poke'> | undefined;
  readonly standings: () => Standings;
  readonly notifier: Pick<Notifier, 'ready'>;
};

/**
 * Tells the worker of this process, and the others if it has heard of any: NOTIFY is a commit, and wakes all that listen. One that it
 * has not heard of yet finds by its walks what this one has no room for.
 */
export function createReady(deps: ReadyDeps): (queues: readonly QueueKey[]) => void {
  return (queues) => {
    const worker = deps.worker();
    if (worker !== undefined && deps.standings().worker.count === 1) {
      worker.knows(queues);
    } else {
      worker?.poke(queues);
      deps.notifier.ready(queues);
    }
  };
}
