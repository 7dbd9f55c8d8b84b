// A tenant: who owns everything else.
import type { KeyId, TenantId } from './ids.ts';
import type { TenantPolicy } from './policy.ts';
import type { KeyRole } from './roles.ts';

export type TenantState = 'active' | 'suspended' | 'deleting';

/** A stored tenant. Times in ms since 1970. */
export type Tenant = {
  readonly tenantId: TenantId;
  readonly displayName: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly state: TenantState;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
  /** What is its own; the rest follows the configured default. */
  readonly policy: Partial<TenantPolicy>;
};

/** A stored API key, without the key. Times in ms since 1970. */
export type ApiKey = {
  readonly keyId: KeyId;
  readonly tenantId: TenantId;
  readonly displayName: string;
  readonly createdAtMs: number;
  readonly expiresAtMs: number | undefined;
  readonly revokedAtMs: number | undefined;
  readonly role: KeyRole;
  /** To the hour. */
  readonly lastUsedAtMs: number | undefined;
};
