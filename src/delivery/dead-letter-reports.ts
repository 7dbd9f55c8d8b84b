// What died in the last seconds, told in one report for each subscription rather than one for each delivery.
import type { ClaimedDelivery, DeadLetterReason } from '../domain/delivery.ts';
import type { SubscriptionId, TenantId } from '../domain/ids.ts';

export type DeadLetterReport = {
  readonly tenantId: TenantId;
  readonly subscriptionId: SubscriptionId;
  readonly count: number;
  readonly reasons: Readonly<Partial<Record<DeadLetterReason, number>>>;
  /** The first of them. */
  readonly deliveryIds: readonly string[];
};

const REPORT_MS = 5_000;
const MAX_IDS = 10;
const MAX_REPORTS = 10_000;

type Gathered = {
  readonly tenantId: TenantId;
  readonly subscriptionId: SubscriptionId;
  count: number;
  readonly reasons: Partial<Record<DeadLetterReason, number>>;
  readonly deliveryIds: string[];
};

export type DeadLetterReports = Disposable & {
  readonly add: (delivery: ClaimedDelivery, reason: DeadLetterReason) => void;
};

export function createDeadLetterReports(report: (report: DeadLetterReport) => void): DeadLetterReports {
  let gathered = new Map<SubscriptionId, Gathered>();
  const timer = setInterval(flush, REPORT_MS);
  timer.unref();

  function flush(): void {
    const reports = gathered;
    gathered = new Map();
    for (const one of reports.values()) report(one);
  }

  return {
    add({ tenantId, subscriptionId, deliveryId }, reason) {
      let one = gathered.get(subscriptionId);
      if (one === undefined) {
        if (gathered.size >= MAX_REPORTS) return;
        one = { tenantId, subscriptionId, count: 0, reasons: {}, deliveryIds: [] };
        gathered.set(subscriptionId, one);
      }
      one.count++;
      one.reasons[reason] = (one.reasons[reason] ?? 0) + 1;
      if (one.deliveryIds.length < MAX_IDS) one.deliveryIds.push(deliveryId);
    },
    [Symbol.dispose]() {
      clearInterval(timer);
      flush();
    },
  };
}
