// What is there before a scenario begins: empty tables, the tenants and their subscriptions.
import type pg from 'pg';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { TENANTS } from './payload.ts';
import { ADMIN_KEY } from './processes.ts';

/** Empties tables that the service may be at work on: whoever loses a deadlock with one of its statements tries again. */
export async function truncate(owner: pg.Client, tables: string): Promise<void> {
  for (;;) {
    try {
      await owner.query(`TRUNCATE ${tables}`);
      return;
    } catch (error) {
      if ((error as { readonly code?: string }).code !== '40P01') throw error;
    }
  }
}

/** Makes the tenants, each with `count` subscriptions to `url` if one is given, with `settings`. */
export async function makeTenants(
  httpPort: number,
  url: string | undefined,
  settings: object = {},
  count = 1,
): Promise<void> {
  const tenants = jsonClient(TenantService, httpPort, ADMIN_KEY);
  const subscriptions = jsonClient(SubscriptionService, httpPort, ADMIN_KEY);
  for (const tenantId of TENANTS) {
    await tenants.createTenant({ tenant: { tenantId } });
    if (url === undefined) continue;
    const subscription = { url, eventTypes: ['order.*'], ...settings };
    for (let i = 0; i < count; i++) await subscriptions.createSubscription({ tenantId, subscription });
  }
}
