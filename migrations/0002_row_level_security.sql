-- Row-level security, forced on every table of tenant data. dispatch_tenant sees the tenant in app.tenant_id and
-- nothing without it; dispatch_engine works for many tenants at once (storage/ingest.ts, claims.ts, the recorder,
-- maintenance). Leaves get the same from storage/partitions.ts: a parent's policy does not guard a leaf that is
-- read directly.

DO $$
DECLARE
  tenant_table text;
BEGIN
  FOREACH tenant_table IN ARRAY ARRAY['tenants', 'api_keys', 'subscriptions', 'subscription_secrets', 'replays',
    'events', 'attempts', 'deliveries', 'dead_letters', 'closed_deliveries', 'idempotency_keys']
  LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', tenant_table);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', tenant_table);
    EXECUTE format($f$CREATE POLICY tenant_only ON %I TO dispatch_tenant
      USING (tenant_id = NULLIF(current_setting('app.tenant_id', true), ''))
      WITH CHECK (tenant_id = NULLIF(current_setting('app.tenant_id', true), ''))$f$, tenant_table);
    EXECUTE format('CREATE POLICY engine_all ON %I TO dispatch_engine USING (true) WITH CHECK (true)', tenant_table);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO dispatch_tenant, dispatch_engine', tenant_table);
  END LOOP;
END $$;

GRANT SELECT ON installation TO dispatch_engine;
GRANT SELECT, INSERT, UPDATE, DELETE ON leaders TO dispatch_engine;
