// 200 quiet tenants at an event a second each, and the latency that each of their events had: what others do must not show there.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { ADMIN_KEY, type Product, startChild } from './processes.ts';

export const QUIET = 200;

const run = promisify(execFile);

export type Quiet = AsyncDisposable & {
  /** Publishes for so long; ms from just before Publish to the receiver having the whole request. */
  readonly measure: (seconds: number) => Promise<Readonly<Record<'p50' | 'p99', number>>>;
};

/** Makes the tenants, a subscription each, and their receiver. */
export async function startQuiet(product: Product): Promise<Quiet> {
  const sink = await startChild('../support/sink.ts', ['--times']);
  const tenants = jsonClient(TenantService, product.httpPort, ADMIN_KEY);
  const subscriptions = jsonClient(SubscriptionService, product.httpPort, ADMIN_KEY);
  const url = `http://127.0.0.1:${sink.firstLine}/`;
  for (let i = 0; i < QUIET; i++) {
    const tenantId = `quiet-${i}`;
    await tenants.createTenant({ tenant: { tenantId } });
    await subscriptions.createSubscription({ tenantId, subscription: { url, eventTypes: ['**'] } });
  }
  return {
    async measure(seconds) {
      const path = new URL('../load-quiet.ts', import.meta.url).pathname;
      const args = [path, product.grpcPort, seconds, sink.firstLine, QUIET].map(String);
      const { stdout } = await run(process.execPath, args);
      return JSON.parse(stdout);
    },
    [Symbol.asyncDispose]: () => sink[Symbol.asyncDispose](),
  };
}
