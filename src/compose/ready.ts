// Who is told that queues have something due.
import type { QueueKey } from '../storage/claims.ts';
import type { Standings } from '../storage/instances.ts';
import type { Notifier } from '../storage/wakeups.ts';

export type ReadyDeps = {
  /** The worker of this process, once there is one. */
  readonly worker: () =>
    | {
        readonly knows: (queue: QueueKey) => void;
        readonly poke: (queues: readonly QueueKey[]) => void;
      }
    | undefined;
  readonly standings: () => Standings;
  readonly notifier: Pick<Notifier, 'ready'>;
};

/**
 * Tells the worker of this process, and the others if there are any: NOTIFY is a commit, and wakes all that listen. Another that has
 * just started looks at all queues, and this one may not have heard of it for 10 s: until then it leaves nothing to it.
 */
export function createReady(deps: ReadyDeps): (queues: readonly QueueKey[]) => void {
  return (queues) => {
    const worker = deps.worker();
    if (worker !== undefined && deps.standings().worker.count === 1) {
      for (const queue of queues) worker.knows(queue);
    } else {
      worker?.poke(queues);
      deps.notifier.ready(queues);
    }
  };
}
