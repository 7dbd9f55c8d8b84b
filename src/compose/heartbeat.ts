// This instance among the others: that it is alive, how many there are, and what the database’s clock says.
import type { Config } from '../config.ts';
import { createAlarm } from '../domain/alarm.ts';
import { createDatabaseClock } from '../domain/database-clock.ts';
import type { Database } from '../storage/database.ts';
import { type Beat, beat, HEARTBEAT_MS, join, leave, type Standings } from '../storage/instances.ts';
import type { Log } from '../telemetry/logger.ts';
import type { Base } from './shared.ts';

/** Schedules, leases and ids are the database's, but signatures have the host's time, and receivers may refuse them. */
export const MAX_SKEW_SECONDS = 30;

type Heartbeat = Pick<Base, 'standings' | 'skewSeconds' | 'databaseNow'>;

/** Says every 10 s that this instance is alive, and keeps what it hears of the others and of the database's clock. */
export async function startHeartbeat(
  db: Database,
  instanceId: string,
  { roles }: Config,
  log: Log,
  stack: AsyncDisposableStack,
): Promise<Heartbeat> {
  let skewSeconds = 0;
  const clock = createDatabaseClock(() => performance.now(), Date.now);
  const alarm = createAlarm(MAX_SKEW_SECONDS, (isPassed) => {
    if (isPassed) log.warn({ skewSeconds }, 'the clocks of this host and of the database differ');
    else log.info({ skewSeconds }, 'the clocks of this host and of the database agree again');
  });
  const hear = async (ask: () => Promise<Beat>): Promise<Standings> => {
    const beganMs = performance.now();
    const { databaseNowMs, ...heard } = await ask();
    clock.saw(databaseNowMs, beganMs, performance.now());
    skewSeconds = (Date.now() - clock.now()) / 1000;
    alarm(Math.abs(skewSeconds));
    return heard;
  };
  let standings = await hear(() => join(db, instanceId, roles));
  let beating = Promise.resolve();
  const timer = setInterval(() => {
    beating = hear(() => beat(db.many, instanceId, roles)).then(
      (heard) => {
        standings = heard;
      },
      (error) => log.warn({ error: String(error) }, 'a heartbeat was not written; the last one counts'),
    );
  }, HEARTBEAT_MS);
  stack.defer(async () => {
    clearInterval(timer);
    await beating;
    await leave(db, instanceId).catch((error) => log.warn({ error: String(error) }, 'not signed off'));
  });
  return { standings: () => standings, skewSeconds: () => skewSeconds, databaseNow: clock.now };
}
