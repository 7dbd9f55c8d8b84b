-- Order, batches, verification, health, replays of history, policies of tenants (docs/adr/0013–0016).
-- Only adds: the version before serves beside it.

ALTER TABLE tenants
  -- What UpdateTenant set; a field that is missing follows DISPATCH_DEFAULT_POLICY.
  ADD COLUMN policy jsonb NOT NULL DEFAULT '{}';

ALTER TABLE subscriptions
  ADD COLUMN ordering text NOT NULL DEFAULT 'none' CHECK (ordering IN ('none', 'subscription', 'key')),
  ADD COLUMN on_dead_letter text NOT NULL DEFAULT 'skip' CHECK (on_dead_letter IN ('skip', 'stop')),
  ADD COLUMN batch jsonb,
  ADD COLUMN verified_at timestamptz,
  -- Whether it was disabled because of its endpoint, which probes may mend.
  ADD COLUMN is_probed boolean NOT NULL DEFAULT false,
  DROP CONSTRAINT subscriptions_state_check,
  ADD CONSTRAINT subscriptions_state_check CHECK (state IN ('active', 'paused', 'disabled', 'pending_verification'));

ALTER TABLE events ADD COLUMN ordering_key text;

ALTER TABLE attempts
  -- Null: it did not happen, or no response came.
  ADD COLUMN dns_us integer,
  ADD COLUMN connect_us integer,
  ADD COLUMN tls_us integer,
  ADD COLUMN first_byte_us integer,
  -- A JSON object.
  ADD COLUMN response_headers text,
  -- Deliveries in the same request; null: one.
  ADD COLUMN batch_size smallint;

ALTER TABLE deliveries
  -- What it waits in line with: its event's ordering key, or '' for a whole subscription; null: nothing.
  ADD COLUMN order_key text,
  -- Its place in that line. From delivery_order, so it grows with time whatever the clocks of instances say.
  ADD COLUMN order_seq bigint;
-- The head of each line is found in it, however long the lines are.
CREATE INDEX deliveries_order ON deliveries (tenant_id, subscription_id, order_key, order_seq)
  WHERE order_key IS NOT NULL;
-- Each statement that stores events takes one number, and gives its deliveries places behind it.
CREATE SEQUENCE delivery_order INCREMENT BY 1048576 MINVALUE 1048576 START 1048576;
-- The last three bytes of the ids of deliveries that replays of events make (ADR 0003): the upper half of what is there.
CREATE SEQUENCE replay_ordinals MINVALUE 8388608 MAXVALUE 16777215 CYCLE;

ALTER TABLE dead_letters
  ADD COLUMN order_key text,
  ADD COLUMN order_seq bigint,
  ADD COLUMN archived_at timestamptz;

ALTER TABLE replays
  ADD COLUMN kind text NOT NULL DEFAULT 'dead_letters' CHECK (kind IN ('dead_letters', 'events')),
  -- Of events: to whom.
  ADD COLUMN subscription_id uuid,
  ADD COLUMN max_per_second float8,
  ADD COLUMN total_count bigint NOT NULL DEFAULT 0,
  -- When the next step's first delivery is due, if the job has a rate.
  ADD COLUMN next_at timestamptz,
  DROP CONSTRAINT replays_state_check,
  ADD CONSTRAINT replays_state_check CHECK (state IN ('running', 'finished', 'cancelled'));

-- Subscriptions whose endpoints fail, and since when: a success removes the row.
CREATE TABLE subscription_health (
  tenant_id text NOT NULL,
  subscription_id uuid NOT NULL,
  failing_since timestamptz NOT NULL,
  failure_count bigint NOT NULL,
  PRIMARY KEY (tenant_id, subscription_id)
);

-- When disabled subscriptions are probed next.
CREATE TABLE subscription_probes (
  tenant_id text NOT NULL,
  subscription_id uuid NOT NULL,
  next_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, subscription_id)
);

-- Thresholds of quotas that a tenant was told of: once for each period.
CREATE TABLE quota_alerts (
  tenant_id text NOT NULL,
  quota text NOT NULL,
  period text NOT NULL,
  threshold integer NOT NULL,
  alerted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, quota, period, threshold)
);

DO $$
DECLARE
  tenant_table text;
BEGIN
  FOREACH tenant_table IN ARRAY ARRAY['subscription_health', 'subscription_probes', 'quota_alerts']
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

GRANT USAGE ON SEQUENCE delivery_order, replay_ordinals TO dispatch_engine, dispatch_tenant;
