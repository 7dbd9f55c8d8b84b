// Who may call what: the one table of RPC × role. docs/roles.md shows it, and a test holds the two and the contract
// together.
import type { KeyRole } from '../domain/roles.ts';

/**
 * `tenant`: the call is bound to one tenant, a tenant key's own or the one that the request names.
 * `tenants`: the same, and each event of the call may name its tenant.
 * `any`: the same as `tenant`, and a platform key may name none: then it is about the platform itself.
 * `platform`: about tenants as such; the handler reads the tenant from the request.
 */
export type Scope = 'tenant' | 'tenants' | 'any' | 'platform';

export type Access = { readonly scope: Scope; readonly roles: readonly KeyRole[] };

const PLATFORM: readonly KeyRole[] = ['platform-admin'];
const ADMINS: readonly KeyRole[] = ['platform-admin', 'tenant-admin'];
const READERS: readonly KeyRole[] = ['platform-admin', 'tenant-admin', 'viewer'];
const PUBLISHERS: readonly KeyRole[] = ['platform-admin', 'tenant-admin', 'publisher'];

const admin: Access = { scope: 'tenant', roles: ADMINS };
const read: Access = { scope: 'tenant', roles: READERS };
const operate: Access = { scope: 'platform', roles: PLATFORM };

export const ACCESS: Readonly<Record<string, Readonly<Record<string, Access>>>> = {
  'dispatch.v1.PublishService': {
    Publish: { scope: 'tenant', roles: PUBLISHERS },
    PublishBatch: { scope: 'tenants', roles: PUBLISHERS },
    PublishStream: { scope: 'tenants', roles: PUBLISHERS },
  },
  'dispatch.v1.SubscriptionService': {
    CreateSubscription: admin,
    GetSubscription: read,
    ListSubscriptions: read,
    UpdateSubscription: admin,
    DeleteSubscription: admin,
    PauseSubscription: admin,
    ResumeSubscription: admin,
    RotateSecret: admin,
    TestSubscription: admin,
    VerifySubscription: admin,
  },
  'dispatch.v1.EventService': {
    GetEvent: read,
    ListEvents: read,
    ListDeliveries: read,
    GetDelivery: read,
    ListAttempts: read,
    RetryDelivery: admin,
    CancelDelivery: admin,
    CancelDeliveries: admin,
    ReplayEvents: admin,
  },
  'dispatch.v1.DeadLetterService': {
    ListDeadLetters: read,
    GetDeadLetter: read,
    ReplayDeadLetter: admin,
    ReplayDeadLetters: admin,
    GetReplay: read,
    ListReplays: read,
    CancelReplay: admin,
    DiscardDeadLetters: admin,
  },
  'dispatch.v1.TenantService': {
    CreateTenant: operate,
    GetTenant: read,
    ListTenants: operate,
    UpdateTenant: operate,
    SuspendTenant: operate,
    ResumeTenant: operate,
    DeleteTenant: operate,
    GetQuota: read,
    SetQuota: operate,
    GetUsage: read,
    CreateApiKey: { scope: 'any', roles: ADMINS },
    ListApiKeys: { scope: 'any', roles: ADMINS },
    RevokeApiKey: { scope: 'any', roles: ADMINS },
    ListAuditLog: { scope: 'any', roles: ADMINS },
  },
};

/** The access rule of a method. */
export function accessOf(service: string, method: string): Access {
  const access = ACCESS[service]?.[method];
  if (access === undefined) throw new Error(`no access rule for ${service}/${method}`);
  return access;
}
