-- Quotas, usage, roles of keys, endpoint credentials, breakers, instances and the audit log (docs/adr/0009–0012).
-- Only adds: version 0.1 serves beside it.

ALTER TABLE tenants
  -- What SetQuota set; a field that is missing follows DISPATCH_DEFAULT_QUOTA.
  ADD COLUMN quota jsonb NOT NULL DEFAULT '{}';

ALTER TABLE api_keys
  ADD COLUMN role text NOT NULL DEFAULT 'tenant-admin'
    CHECK (role IN ('platform-admin', 'tenant-admin', 'publisher', 'viewer')),
  -- Coarse: written at most once an hour.
  ADD COLUMN last_used_at timestamptz,
  -- The platform's own keys belong to the pseudo-tenant '*', which no tenant can be called.
  ADD CONSTRAINT api_keys_platform CHECK ((tenant_id = '*') = (role = 'platform-admin'));

ALTER TABLE subscriptions
  ADD COLUMN signature_schemes text[] NOT NULL DEFAULT '{v1}'
    CHECK (signature_schemes <@ '{v1,v1a}' AND cardinality(signature_schemes) > 0),
  ADD COLUMN compatibility_headers boolean NOT NULL DEFAULT false,
  ADD COLUMN max_per_second float8,
  ADD COLUMN max_in_flight integer;

ALTER TABLE subscription_secrets
  ADD COLUMN scheme text NOT NULL DEFAULT 'v1' CHECK (scheme IN ('v1', 'v1a')),
  -- Of v1a: 32 bytes that everybody may know.
  ADD COLUMN public_key bytea;

-- How endpoints are authenticated to: one sealed JSON document a subscription.
CREATE TABLE subscription_credentials (
  tenant_id text NOT NULL,
  subscription_id uuid NOT NULL,
  master_key_id text NOT NULL,
  sealed bytea NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, subscription_id)
);

-- The last transition of each breaker that ever opened. Redis counts; this is what the API shows, and how workers
-- that had nothing to do with it learn of it.
CREATE TABLE breakers (
  tenant_id text NOT NULL,
  subscription_id uuid NOT NULL,
  phase text NOT NULL CHECK (phase IN ('open', 'closed')),
  reason text NOT NULL,
  open_count integer NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT now(),
  -- Of an open one: when a probe may go out.
  until timestamptz,
  PRIMARY KEY (tenant_id, subscription_id)
);

-- What was accepted, by hour. Each lane of each instance has a slot of its own, so that no two commits wait for one
-- row; maintenance folds past hours into slot 0. A total is the sum over the slots.
CREATE TABLE usage (
  tenant_id text NOT NULL,
  hour timestamptz NOT NULL,
  slot integer NOT NULL,
  events bigint NOT NULL,
  bytes bigint NOT NULL,
  deliveries bigint NOT NULL,
  PRIMARY KEY (tenant_id, hour, slot)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
-- What is not folded yet: a handful of rows.
CREATE INDEX usage_unfolded ON usage (tenant_id, hour) WHERE slot <> 0;
CREATE SEQUENCE usage_slots MINVALUE 1 MAXVALUE 100000000 CYCLE;

CREATE TABLE audit_log (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  actor text NOT NULL,
  action text NOT NULL,
  resource text NOT NULL,
  address text NOT NULL,
  detail jsonb NOT NULL,
  PRIMARY KEY (tenant_id, id)
);

-- Who is running: not tenant data. Limits that are not shared through Redis are divided by their number.
CREATE TABLE instances (
  id uuid PRIMARY KEY,
  roles text[] NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL
);

DO $$
DECLARE
  tenant_table text;
BEGIN
  FOREACH tenant_table IN ARRAY ARRAY['subscription_credentials', 'breakers', 'usage', 'audit_log']
  LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', tenant_table);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', tenant_table);
    EXECUTE format($f$CREATE POLICY tenant_only ON %I TO dispatch_tenant
      USING (tenant_id = NULLIF(current_setting('app.tenant_id', true), ''))
      WITH CHECK (tenant_id = NULLIF(current_setting('app.tenant_id', true), ''))$f$, tenant_table);
    EXECUTE format('CREATE POLICY engine_all ON %I TO dispatch_engine USING (true) WITH CHECK (true)', tenant_table);
    IF tenant_table <> 'audit_log' THEN
      EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO dispatch_tenant, dispatch_engine', tenant_table);
    END IF;
  END LOOP;
END $$;

-- The service may add to the audit log and read it, and nothing else; retention is the owner's.
GRANT SELECT, INSERT ON audit_log TO dispatch_tenant, dispatch_engine;
CREATE POLICY owner_prunes ON audit_log TO CURRENT_USER USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON instances TO dispatch_engine;
GRANT USAGE ON SEQUENCE usage_slots TO dispatch_engine;
