// TenantService: tenants and their keys, for platform keys.
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  ApiKeySchema,
  TenantSchema,
  TenantService,
  type ApiKey as WireApiKey,
  TenantState as WireState,
  type Tenant as WireTenant,
} from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { formatApiKey, hashApiKey } from '../domain/api-key.ts';
import { invalidField, Violations } from '../domain/errors.ts';
import { checkMetadata } from '../domain/event.ts';
import {
  type IdSource,
  type KeyId,
  parseKeyId,
  parseTenantId,
  type TenantId,
  uuidOf,
} from '../domain/ids.ts';
import { isUuid, pageToken, parsePage } from '../domain/page.ts';
import { checkDescription } from '../domain/subscription.ts';
import type { ApiKey, Tenant, TenantState } from '../domain/tenant.ts';
import { createApiKey, listApiKeys, revokeApiKey } from '../storage/api-keys.ts';
import type { Database } from '../storage/database.ts';
import {
  createTenant,
  getTenant,
  listTenants,
  setTenantState,
  type TenantSettings,
  updateTenant,
} from '../storage/tenants.ts';
import { bindService } from './call-path.ts';
import { optionalMs } from './pages.ts';

export type TenantServiceDeps = {
  readonly db: Database;
  readonly ids: IdSource;
  readonly randomBytes: (size: number) => Buffer;
  /** Ms since 1970. */
  readonly now: () => number;
  /** Tells every instance that a tenant changed. */
  readonly changed: (tenantId: TenantId) => void;
};

export function createTenantService(deps: TenantServiceDeps) {
  const { db, changed } = deps;

  async function setState(text: string, state: TenantState): Promise<Tenant> {
    const tenant = await setTenantState(db, parseTenantId(text), state);
    changed(tenant.tenantId);
    return tenant;
  }

  return bindService(TenantService, {
    async createTenant(request) {
      const input = request.tenant;
      if (input === undefined) throw invalidField('tenant', 'is required');
      const tenantId = parseTenantId(input.tenantId, 'tenant.tenant_id');
      const wrong = new Violations();
      wrong.check(
        input.state === WireState.UNSPECIFIED,
        'tenant.state',
        'is set by the server; leave it out',
      );
      checkSettings(input, wrong);
      wrong.throwIfAny();
      return { tenant: toWire(await createTenant(db, tenantId, input)) };
    },

    async getTenant(request) {
      return { tenant: toWire(await getTenant(db, parseTenantId(request.tenantId))) };
    },

    async listTenants(request) {
      const page = parsePage(request, 'tenants', 500, (key) => /^[a-z0-9][a-z0-9_-]{0,62}$/.test(key));
      const rows = await listTenants(db, page);
      const shown = rows.slice(0, page.size);
      const last = shown[shown.length - 1];
      const more = rows.length > page.size && last !== undefined;
      return { tenants: shown.map(toWire), nextPageToken: more ? pageToken('tenants', last.tenantId) : '' };
    },

    async updateTenant(request) {
      const input = request.tenant;
      if (input === undefined) throw invalidField('tenant', 'is required');
      const tenantId = parseTenantId(input.tenantId, 'tenant.tenant_id');
      const paths = request.updateMask?.paths ?? [];
      const known = ['display_name', 'metadata'];
      if (paths.length === 0) throw invalidField('update_mask', `is required: any of ${known.join(', ')}`);
      for (const path of paths) {
        if (known.includes(path)) continue;
        throw invalidField('update_mask', `has "${path.slice(0, 64)}"; it may have ${known.join(', ')}`);
      }
      const wrong = new Violations();
      checkSettings(input, wrong);
      wrong.throwIfAny();
      const tenant = await updateTenant(db, tenantId, (before) => ({
        displayName: paths.includes('display_name') ? input.displayName : before.displayName,
        metadata: paths.includes('metadata') ? input.metadata : before.metadata,
      }));
      return { tenant: toWire(tenant) };
    },

    async suspendTenant(request) {
      return { tenant: toWire(await setState(request.tenantId, 'suspended')) };
    },

    async resumeTenant(request) {
      return { tenant: toWire(await setState(request.tenantId, 'active')) };
    },

    async deleteTenant(request) {
      await setState(request.tenantId, 'deleting');
      return {};
    },

    async createApiKey(request) {
      const tenantId = parseTenantId(request.tenantId);
      const expiresAtMs = optionalMs(request.expireTime, 'expire_time');
      const wrong = new Violations();
      checkDescription(request.displayName, 128, 'display_name', wrong);
      if (expiresAtMs !== undefined)
        wrong.check(expiresAtMs > deps.now(), 'expire_time', 'must be in the future');
      wrong.throwIfAny();
      const keyId = deps.ids.next<KeyId>('key');
      const key = formatApiKey(keyId, deps.randomBytes(32));
      const { displayName } = request;
      const stored = await createApiKey(db, tenantId, {
        keyId,
        hash: hashApiKey(key),
        displayName,
        expiresAtMs,
      });
      return { apiKey: keyToWire(stored), key };
    },

    async listApiKeys(request) {
      const tenantId = parseTenantId(request.tenantId);
      const scope = `api-keys/${tenantId}`;
      const page = parsePage(request, scope, 500, isUuid);
      const rows = await listApiKeys(db, tenantId, page);
      const shown = rows.slice(0, page.size);
      const last = shown[shown.length - 1];
      const more = rows.length > page.size && last !== undefined;
      return {
        apiKeys: shown.map(keyToWire),
        nextPageToken: more ? pageToken(scope, uuidOf(last.keyId)) : '',
      };
    },

    async revokeApiKey(request) {
      const key = await revokeApiKey(db, parseTenantId(request.tenantId), parseKeyId(request.keyId));
      return { apiKey: keyToWire(key) };
    },
  });
}

function checkSettings(input: TenantSettings, wrong: Violations): void {
  checkDescription(input.displayName, 128, 'tenant.display_name', wrong);
  checkMetadata(input.metadata, 'tenant.metadata', wrong);
}

const WIRE_STATES: Readonly<Record<TenantState, WireState>> = {
  active: WireState.ACTIVE,
  suspended: WireState.SUSPENDED,
  deleting: WireState.DELETING,
};

function toWire(tenant: Tenant): WireTenant {
  return create(TenantSchema, {
    tenantId: tenant.tenantId,
    displayName: tenant.displayName,
    metadata: { ...tenant.metadata },
    state: WIRE_STATES[tenant.state],
    createTime: timestampFromMs(tenant.createdAtMs),
    updateTime: timestampFromMs(tenant.updatedAtMs),
  });
}

function keyToWire(key: ApiKey): WireApiKey {
  return create(ApiKeySchema, {
    keyId: key.keyId,
    tenantId: key.tenantId,
    displayName: key.displayName,
    createTime: timestampFromMs(key.createdAtMs),
    ...(key.expiresAtMs === undefined ? {} : { expireTime: timestampFromMs(key.expiresAtMs) }),
    ...(key.revokedAtMs === undefined ? {} : { revokeTime: timestampFromMs(key.revokedAtMs) }),
  });
}
