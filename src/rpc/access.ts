// Who may call what: the one table of RPC × kind of key. Checked against the contract by a test.

/**
 * `tenant`: a tenant key for its own tenant, a platform key for any; the call is bound to one tenant.
 * `tenants`: the same, and each event of the call may name its tenant.
 * `platform`: platform keys only.
 */
export type Access = 'tenant' | 'tenants' | 'platform';

const PUBLISH: Readonly<Record<string, Access>> = {
  Publish: 'tenant',
  PublishBatch: 'tenants',
  PublishStream: 'tenants',
};

/** The access rule of a method. */
export function accessOf(service: string, method: string): Access {
  switch (service) {
    case 'dispatch.v1.PublishService': {
      const access = PUBLISH[method];
      if (access !== undefined) return access;
      break;
    }
    case 'dispatch.v1.SubscriptionService':
    case 'dispatch.v1.EventService':
    case 'dispatch.v1.DeadLetterService':
      return 'tenant';
    case 'dispatch.v1.TenantService':
      return 'platform';
  }
  throw new Error(`no access rule for ${service}/${method}`);
}
