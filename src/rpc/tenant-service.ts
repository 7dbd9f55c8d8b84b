// TenantService: tenants, their keys, quotas and usage, and the audit log.
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  TenantService,
  TenantState as WireState,
  type Tenant as WireTenant,
} from '../../gen/dispatch/v1/tenant_service_pb.ts';
import { formatApiKey, hashApiKey } from '../domain/api-key.ts';
import { PLATFORM } from '../domain/audit.ts';
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
import { checkPolicy } from '../domain/policy.ts';
import { checkQuota, type Quota, quotaProblem, wireName } from '../domain/quota.ts';
import { checkDescription } from '../domain/subscription.ts';
import type { Tenant, TenantState } from '../domain/tenant.ts';
import { createApiKey, listApiKeys, revokeApiKey } from '../storage/api-keys.ts';
import { listAuditLog } from '../storage/audit.ts';
import type { Database } from '../storage/database.ts';
import {
  createTenant,
  getOwnQuota,
  getTenant,
  listTenants,
  setOwnQuota,
  setTenantState,
  updateTenant,
} from '../storage/tenants.ts';
import { readUsage } from '../storage/usage.ts';
import { bindService, type CallContext, tenantOf } from './call-path.ts';
import { optionalMs, optionalRange, shortText } from './pages.ts';
import {
  auditToWire,
  keyToWire,
  mergeQuota,
  parseQuotaMask,
  parseUsageRequest,
  policyFromWire,
  quotaAnswer,
  quotaFromWire,
  roleOf,
  toWire,
} from './tenant-messages.ts';

export type TenantServiceDeps = {
  readonly db: Database;
  readonly ids: IdSource;
  readonly randomBytes: (size: number) => Buffer;
  readonly defaultQuota: Quota;
  /** How long the installation keeps history. */
  readonly historyDays: number;
  /** Ms since 1970. */
  readonly now: () => number;
  /** Tells every instance that a tenant changed. */
  readonly changed: (tenantId: TenantId) => void;
};

export function createTenantService(deps: TenantServiceDeps) {
  const { db, changed } = deps;

  async function setState(
    text: string,
    state: TenantState,
    action: string,
    context: CallContext,
  ): Promise<Tenant> {
    const tenantId = parseTenantId(text);
    const tenant = await setTenantState(db.audited(context.change(action, tenantId)), tenantId, state);
    changed(tenant.tenantId);
    return tenant;
  }

  return bindService(TenantService, {
    async createTenant(request, context) {
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
      const audited = db.audited(context.change('tenant.create', tenantId));
      const settings = { ...input, policy: policyFromWire(input.policy) };
      return { tenant: toWire(await createTenant(audited, tenantId, settings)) };
    },

    async getTenant(_request, context) {
      return { tenant: toWire(await getTenant(db, tenantOf(context))) };
    },

    async listTenants(request) {
      const page = parsePage(request, 'tenants', 500, (key) => /^[a-z0-9][a-z0-9_-]{0,62}$/.test(key));
      const rows = await listTenants(db, page);
      const shown = rows.slice(0, page.size);
      const last = shown[shown.length - 1];
      const more = rows.length > page.size && last !== undefined;
      return { tenants: shown.map(toWire), nextPageToken: more ? pageToken('tenants', last.tenantId) : '' };
    },

    async updateTenant(request, context) {
      const input = request.tenant;
      if (input === undefined) throw invalidField('tenant', 'is required');
      const tenantId = parseTenantId(input.tenantId, 'tenant.tenant_id');
      const paths = request.updateMask?.paths ?? [];
      const known = ['display_name', 'metadata', 'policy'];
      if (paths.length === 0) throw invalidField('update_mask', `is required: any of ${known.join(', ')}`);
      for (const path of paths) {
        if (known.includes(path)) continue;
        throw invalidField('update_mask', `has "${path.slice(0, 64)}"; it may have ${known.join(', ')}`);
      }
      const wrong = new Violations();
      checkSettings(input, wrong);
      wrong.throwIfAny();
      const audited = db.audited(
        context.change('tenant.update', tenantId, { fields: [...new Set(paths)].join(',') }),
      );
      const tenant = await updateTenant(audited, tenantId, (before) => ({
        displayName: paths.includes('display_name') ? input.displayName : before.displayName,
        metadata: paths.includes('metadata') ? input.metadata : before.metadata,
        policy: paths.includes('policy') ? policyFromWire(input.policy) : before.policy,
      }));
      return { tenant: toWire(tenant) };
    },

    async suspendTenant(request, context) {
      return { tenant: toWire(await setState(request.tenantId, 'suspended', 'tenant.suspend', context)) };
    },

    async resumeTenant(request, context) {
      return { tenant: toWire(await setState(request.tenantId, 'active', 'tenant.resume', context)) };
    },

    async deleteTenant(request, context) {
      await setState(request.tenantId, 'deleting', 'tenant.delete', context);
      return {};
    },

    async createApiKey(request, context) {
      const tenantId = tenantOf(context);
      const expiresAtMs = optionalMs(request.expireTime, 'expire_time');
      const wrong = new Violations();
      checkDescription(request.displayName, 128, 'display_name', wrong);
      if (expiresAtMs !== undefined)
        wrong.check(expiresAtMs > deps.now(), 'expire_time', 'must be in the future');
      const role = roleOf(request.role);
      if (role === undefined) {
        wrong.add('role', 'must be ROLE_TENANT_ADMIN, ROLE_PUBLISHER, ROLE_VIEWER or ROLE_PLATFORM_ADMIN');
      } else if (tenantId === PLATFORM && role !== 'platform-admin') {
        wrong.add('tenant_id', `is required for a ${role} key`);
      } else if (tenantId !== PLATFORM && role === 'platform-admin') {
        const advice =
          context.principal.tenantId === undefined
            ? 'belongs to no tenant: leave tenant_id empty'
            : 'needs a platform-admin key to create';
        wrong.add('role', `ROLE_PLATFORM_ADMIN ${advice}`);
      }
      wrong.throwIfAny();
      const keyId = deps.ids.next<KeyId>('key');
      const key = formatApiKey(keyId, deps.randomBytes(32));
      const made = {
        keyId,
        hash: hashApiKey(key),
        displayName: request.displayName,
        expiresAtMs,
        role: role ?? 'tenant-admin',
      };
      const audited = db.audited(context.change('api_key.create', keyId, { role: made.role }));
      return { apiKey: keyToWire(await createApiKey(audited, tenantId, made)), key };
    },

    async listApiKeys(request, context) {
      const tenantId = tenantOf(context);
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

    async revokeApiKey(request, context) {
      const keyId = parseKeyId(request.keyId);
      const audited = db.audited(context.change('api_key.revoke', keyId));
      return { apiKey: keyToWire(await revokeApiKey(audited, tenantOf(context), keyId)) };
    },

    async getQuota(_request, context) {
      const own = await getOwnQuota(db, tenantOf(context));
      return quotaAnswer(own, deps.defaultQuota);
    },

    async setQuota(request, context) {
      const tenantId = parseTenantId(request.tenantId);
      if (request.quota === undefined) throw invalidField('quota', 'is required');
      const fields = parseQuotaMask(request.updateMask?.paths ?? []);
      const given = quotaFromWire(request.quota);
      const wrong = new Violations();
      checkQuota(given, 'quota', wrong);
      const { historyDays = 0 } = given;
      if (historyDays > deps.historyDays && quotaProblem('historyDays', historyDays) === undefined) {
        wrong.add(
          'quota.history_days',
          `must be at most the ${deps.historyDays} that the installation keeps`,
        );
      }
      wrong.throwIfAny();
      const detail = Object.fromEntries(
        Object.entries(given).map(([field, value]) => [wireName(field), value]),
      );
      const audited = db.audited(context.change('quota.set', tenantId, detail));
      const own = await setOwnQuota(audited, tenantId, (before) => mergeQuota(before, given, fields));
      changed(tenantId);
      return quotaAnswer(own, deps.defaultQuota);
    },

    async getUsage(request, context) {
      const { interval, startMs, endMs } = parseUsageRequest(request, deps.now());
      const { rows, totals } = await readUsage(db, tenantOf(context), interval, startMs, endMs);
      return {
        usage: rows.map((row) => ({
          startTime: timestampFromMs(row.startMs),
          eventCount: BigInt(row.events),
          payloadBytes: BigInt(row.bytes),
          deliveryCount: BigInt(row.deliveries),
        })),
        eventsToday: BigInt(totals.today),
        eventsThisMonth: BigInt(totals.thisMonth),
      };
    },

    async listAuditLog(request, context) {
      const tenantId = tenantOf(context);
      const filter = {
        actor: shortText(request.actor, 'actor'),
        action: shortText(request.action, 'action'),
        ...optionalRange(request),
      };
      const scope = `audit/${tenantId}/${JSON.stringify(filter)}`;
      const page = parsePage(request, scope, 500, isUuid);
      const rows = await listAuditLog(db, tenantId, page, filter);
      const shown = rows.slice(0, page.size);
      const last = shown[shown.length - 1];
      const more = rows.length > page.size && last !== undefined;
      return {
        entries: shown.map(auditToWire),
        nextPageToken: more ? pageToken(scope, uuidOf(last.auditId)) : '',
      };
    },
  });
}

function checkSettings(input: WireTenant, wrong: Violations): void {
  checkDescription(input.displayName, 128, 'tenant.display_name', wrong);
  checkMetadata(input.metadata, 'tenant.metadata', wrong);
  checkPolicy(policyFromWire(input.policy), 'tenant.policy', wrong);
}
