// Looks after endpoints: disables those that have failed for too long, probes those that were disabled because they
// failed, and enables them when they are back. Tells tenants of quotas that are nearly used up.
import type { QueueKey } from '../storage/claims.ts';
import type { HealthTask, QuotaAlert } from '../storage/health.ts';

export type EndpointDeps = {
  readonly tasks: () => Promise<readonly HealthTask[]>;
  readonly disable: (queue: QueueKey, reason: string) => Promise<void>;
  readonly noteProbe: (queue: QueueKey) => Promise<void>;
  /** Sends a test event; whether it succeeded. */
  readonly probe: (queue: QueueKey) => Promise<boolean>;
  readonly enable: (queue: QueueKey) => Promise<void>;
  readonly takeAlerts: () => Promise<readonly QuotaAlert[]>;
  readonly onAlert: (alert: QuotaAlert) => void;
  readonly onError: (error: unknown) => void;
};

export type EndpointTasks = {
  /** One round; returns how many subscriptions were disabled or enabled. */
  readonly lookAfter: () => Promise<number>;
  /** Returns how many thresholds were told. */
  readonly alertQuotas: () => Promise<number>;
};

export function createEndpointTasks(deps: EndpointDeps): EndpointTasks {
  async function carryOut(task: HealthTask): Promise<number> {
    try {
      if (task.task === 'disable') {
        const since = new Date(task.failingSinceMs).toISOString();
        await deps.disable(task, `no attempt succeeded since ${since}, and ${task.failureCount} failed`);
        return 1;
      }
      await deps.noteProbe(task);
      if (!(await deps.probe(task))) return 0;
      await deps.enable(task);
      return 1;
    } catch (error) {
      deps.onError(error); // one endpoint must not hold up the others
      return 0;
    }
  }

  return {
    async lookAfter() {
      const counts = await Promise.all((await deps.tasks()).map(carryOut));
      return counts.reduce((sum, count) => sum + count, 0);
    },
    async alertQuotas() {
      const alerts = await deps.takeAlerts();
      for (const alert of alerts) deps.onAlert(alert);
      return alerts.length;
    },
  };
}
