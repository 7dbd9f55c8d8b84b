// A client for each service, over Connect JSON.
import type { Client } from '@connectrpc/connect';
import { DeadLetterService } from '../../gen/dispatch/v1/dead_letter_service_pb.ts';
import { EventService } from '../../gen/dispatch/v1/event_service_pb.ts';
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { SubscriptionService } from '../../gen/dispatch/v1/subscription_service_pb.ts';
import { TenantService } from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { jsonClient } from './clients.ts';

export type Clients = {
  readonly publish: Client<typeof PublishService>;
  readonly subscriptions: Client<typeof SubscriptionService>;
  readonly events: Client<typeof EventService>;
  readonly deadLetters: Client<typeof DeadLetterService>;
  readonly tenants: Client<typeof TenantService>;
};

/** Clients with a key. */
export function clientsOf(httpPort: number, key: string | undefined): Clients {
  return {
    publish: jsonClient(PublishService, httpPort, key),
    subscriptions: jsonClient(SubscriptionService, httpPort, key),
    events: jsonClient(EventService, httpPort, key),
    deadLetters: jsonClient(DeadLetterService, httpPort, key),
    tenants: jsonClient(TenantService, httpPort, key),
  };
}
