// Refusals on their way to the audit log: equal ones of 10 s are one entry with a count, so that whoever knocks often
// fills neither the log nor the database.
import type { Change, PLATFORM } from '../domain/audit.ts';
import type { TenantId } from '../domain/ids.ts';

/** What was refused; the count is added when it is written. */
export type LoggedRefusal = Pick<Change, 'actor' | 'address' | 'action' | 'detail'> & {
  readonly tenantId: TenantId | typeof PLATFORM;
};

export type RefusalLog = {
  readonly add: (refusal: LoggedRefusal) => void;
  /** Writes what has gathered. */
  readonly flush: () => Promise<void>;
};

const GATHER_MS = 10_000;
/** The first of its kind is written soon. */
const FIRST_MS = 200;
const MAX_KINDS = 1_000;

export function createRefusalLog(
  write: (refusal: LoggedRefusal, count: number) => Promise<void>,
): RefusalLog {
  const pending = new Map<string, { readonly refusal: LoggedRefusal; count: number }>();
  let recent = new Set<string>();
  let timer: NodeJS.Timeout | undefined;
  let recentUntilMs = 0;

  async function flush(): Promise<void> {
    clearTimeout(timer);
    timer = undefined;
    const entries = [...pending.values()];
    pending.clear();
    for (const { refusal, count } of entries) await write(refusal, count);
  }

  return {
    add(refusal) {
      const { tenantId, actor, address, action, detail } = refusal;
      const key = JSON.stringify([tenantId, actor, address, action, detail]);
      const known = pending.get(key);
      if (known !== undefined) {
        known.count++;
        return;
      }
      if (pending.size >= MAX_KINDS) return; // counted by the metric all the same
      pending.set(key, { refusal, count: 1 });
      const nowMs = performance.now();
      if (nowMs > recentUntilMs) {
        recent = new Set();
        recentUntilMs = nowMs + GATHER_MS;
      }
      const delayMs = recent.has(key) ? GATHER_MS : FIRST_MS;
      recent.add(key);
      timer ??= setTimeout(() => void flush(), delayMs);
      timer.unref();
    },
    flush,
  };
}
