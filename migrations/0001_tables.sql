-- The tables of dispatch. Why they look like this: docs/adr/0002 (hot and cold apart), 0003 (ids), 0004 (roles).
-- Parents only: leaves are made by storage/partitions.ts with the counts and widths in `installation`.
-- Rules: every key and index of tenant data begins with tenant_id; the two service roles own nothing.

DO $$ BEGIN
  CREATE ROLE dispatch_tenant NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
DO $$ BEGIN
  CREATE ROLE dispatch_engine NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
GRANT dispatch_tenant, dispatch_engine TO CURRENT_USER;

-- One row: what was fixed at install.
CREATE TABLE installation (
  only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  hash_partitions integer NOT NULL CHECK (hash_partitions BETWEEN 1 AND 64),
  partition_days integer NOT NULL CHECK (partition_days BETWEEN 1 AND 90),
  installed_at timestamptz NOT NULL DEFAULT now()
);

-- Who leads a piece of background work: not tenant data.
CREATE TABLE leaders (
  name text PRIMARY KEY,
  holder uuid NOT NULL,
  expires_at timestamptz NOT NULL
);

CREATE TABLE tenants (
  tenant_id text PRIMARY KEY CHECK (tenant_id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
  display_name text NOT NULL,
  metadata jsonb NOT NULL,
  state text NOT NULL CHECK (state IN ('active', 'suspended', 'deleting')),
  -- Grows with every change to the tenant or its subscriptions: publishing checks it in its own statement.
  config_version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  hash bytea NOT NULL,
  display_name text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz,
  revoked_at timestamptz,
  PRIMARY KEY (tenant_id, id)
);
-- A presented key names its id and not its tenant: the one index that cannot begin with tenant_id.
CREATE INDEX api_keys_by_id ON api_keys (id);

CREATE TABLE subscriptions (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  url text NOT NULL,
  event_types text[] NOT NULL,
  description text NOT NULL,
  headers jsonb NOT NULL,
  retry_policy jsonb,
  attempt_timeout_ms integer NOT NULL,
  metadata jsonb NOT NULL,
  state text NOT NULL CHECK (state IN ('active', 'paused', 'disabled')),
  disabled_reason text NOT NULL DEFAULT '',
  version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  -- Set by DeleteSubscription: invisible from then on, removed by maintenance once its queue is empty.
  deleted_at timestamptz,
  PRIMARY KEY (tenant_id, id)
);

CREATE TABLE subscription_secrets (
  tenant_id text NOT NULL,
  subscription_id uuid NOT NULL,
  id uuid NOT NULL,
  master_key_id text NOT NULL,
  sealed bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  -- Null for the newest; the end of the overlap for those it replaced.
  expires_at timestamptz,
  PRIMARY KEY (tenant_id, subscription_id, id)
);

CREATE TABLE replays (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  filter jsonb NOT NULL,
  state text NOT NULL CHECK (state IN ('running', 'finished')),
  replayed_count bigint NOT NULL DEFAULT 0,
  -- The delivery id that the job has come to; it walks from new to old.
  reached uuid,
  created_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  PRIMARY KEY (tenant_id, id)
);

-- Cold: append-only history. Range-partitioned by the UUIDv7 of the event, so that a key prunes to one leaf and
-- retention drops leaves.
CREATE TABLE events (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  type text NOT NULL,
  payload bytea NOT NULL,
  -- Null: application/json.
  content_type text,
  source text,
  subject text,
  idempotency_key text,
  metadata jsonb,
  deliver_after timestamptz,
  PRIMARY KEY (tenant_id, id)
) PARTITION BY HASH (tenant_id);

-- An attempt lies with its delivery's other attempts, in the leaf of the event's time.
CREATE TABLE attempts (
  tenant_id text NOT NULL,
  delivery_id uuid NOT NULL,
  attempt smallint NOT NULL,
  subscription_id uuid NOT NULL,
  outcome text NOT NULL,
  status smallint,
  error_class text,
  error_message text,
  started_at timestamptz NOT NULL,
  duration_us integer NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT now(),
  next_attempt_at timestamptz,
  response_body bytea,
  PRIMARY KEY (tenant_id, delivery_id, attempt)
) PARTITION BY HASH (tenant_id);

-- Hot: unfinished work only. Inserted at publish, deleted when done.
CREATE TABLE deliveries (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  subscription_id uuid NOT NULL,
  -- When it is due. A claim pushes it to the end of the lease: an expired lease is simply due again.
  run_at timestamptz NOT NULL,
  -- When the retry schedule started, if not at publish: after deliver_after, or at the last replay.
  round_at timestamptz,
  -- The token of the claim that may write to this row; null when nobody holds it.
  lease uuid,
  attempt_count smallint NOT NULL DEFAULT 0,
  -- attempt_count when the retry schedule started: 0, or more after a replay.
  retry_base smallint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, id)
) PARTITION BY HASH (tenant_id);
CREATE INDEX deliveries_due ON deliveries (tenant_id, subscription_id, run_at, id);

CREATE TABLE dead_letters (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  subscription_id uuid NOT NULL,
  event_type text NOT NULL,
  reason text NOT NULL,
  last_status smallint,
  last_error_class text NOT NULL,
  last_error_message text NOT NULL,
  last_response_body bytea,
  attempt_count smallint NOT NULL,
  dead_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, id)
) PARTITION BY HASH (tenant_id);
CREATE INDEX dead_letters_of_subscription ON dead_letters (tenant_id, subscription_id, id);

-- Deliveries that ended without an attempt saying so: cancelled ones and discarded dead letters.
CREATE TABLE closed_deliveries (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  subscription_id uuid NOT NULL,
  state text NOT NULL CHECK (state IN ('cancelled', 'discarded')),
  attempt_count smallint NOT NULL,
  closed_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, id)
) PARTITION BY HASH (tenant_id);

CREATE TABLE idempotency_keys (
  tenant_id text NOT NULL,
  key text NOT NULL,
  event_id uuid NOT NULL,
  fingerprint bytea NOT NULL,
  delivery_count integer NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, key)
) PARTITION BY HASH (tenant_id);
-- Rows come in the order of their expiry: a block-range index finds the expired ones and costs next to nothing.
CREATE INDEX idempotency_keys_expiry ON idempotency_keys USING brin (tenant_id, expires_at);
