import { expect, test } from 'vitest';
import { idFromUuid, type SubscriptionId, type TenantId } from '../../src/domain/ids.ts';
import { openDatabase } from '../../src/storage/database.ts';
import { disableSubscriptions } from '../../src/storage/subscriptions.ts';
import { cloneDatabase } from '../support/database.ts';

test('10,000 subscriptions of a tenant are disabled together, each with its entry in the audit log, and no other', async () => {
  await using database = await cloneDatabase();
  await using db = await openDatabase(database.url, 2, () => {});
  const [a, b] = ['a', 'b'] as TenantId[] as [TenantId, TenantId];
  for (const tenantId of [a, b]) {
    await database.owner.query(
      "INSERT INTO tenants (tenant_id, display_name, metadata, state) VALUES ($1, '', '{}', 'active')",
      [tenantId],
    );
  }
  const { rows } = await database.owner.query<{ tenant_id: TenantId; id: string }>(
    `INSERT INTO subscriptions (tenant_id, id, url, event_types, description, headers, attempt_timeout_ms, metadata, state)
     SELECT t, gen_random_uuid(), 'https://example.com', '{x}', '', '{}', 1000, '{}', 'active'
     FROM unnest($1::text[]) AS t, generate_series(1, 10001) RETURNING tenant_id, id`,
    [[a, b]],
  );
  const ids = (of: TenantId) =>
    rows.filter((r) => r.tenant_id === of).map((r) => idFromUuid('sub', r.id) as SubscriptionId);
  const [spared, ...gone] = ids(a);
  const others = ids(b);
  const reasons = new Map([...gone, others[0]!].map((id) => [id, `${id} is gone`]));
  const changes = gone.map((resource) => ({
    actor: 'dispatch',
    address: '',
    action: 'subscription.disable',
    resource,
    detail: { reason: 'gone' },
  }));
  const disabled = await disableSubscriptions(db.audited(...changes), a, reasons);
  expect(new Set(disabled)).toEqual(new Set(gone));
  const { rows: active } = await database.owner.query<{ id: string }>(
    "SELECT id FROM subscriptions WHERE state = 'active' AND disabled_reason = ''",
  );
  expect(new Set(active.map((r) => idFromUuid('sub', r.id)))).toEqual(new Set([spared, ...others]));
  const { rows: audit } = await database.owner.query<{ resource: string; detail: unknown }>(
    "SELECT resource, detail FROM audit_log WHERE tenant_id = 'a'",
  );
  expect(new Set(audit.map((r) => r.resource))).toEqual(new Set(gone));
  expect(audit[0]!.detail).toEqual({ reason: 'gone' });
  expect(await disableSubscriptions(db, a, reasons)).toEqual([]);
});
