// Makes the tenants and their subscriptions.
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { jsonClient } from '../../test/support/clients.ts';
import { TENANTS } from './payload.ts';
import { ADMIN_KEY } from './processes.ts';

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
