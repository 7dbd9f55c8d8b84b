-- What changed of a tenant's configuration is read alone (ADR 0031): each subscription says in which version of it the
-- subscription, its secrets or its credentials changed last.
-- The version before serves beside it: its changes grow config_version and not marked_changes, so everybody reads all.

-- How many of the versions are marked. Versions begin at a time (µs since 1970): that of a tenant which was deleted and
-- is created again is never one that it had before. This table first, as changes lock it first.
ALTER TABLE tenants
  ADD COLUMN marked_changes bigint NOT NULL DEFAULT 0,
  ALTER COLUMN config_version SET DEFAULT (extract(epoch FROM now()) * 1000000)::bigint;

ALTER TABLE subscriptions ADD COLUMN config_version bigint NOT NULL DEFAULT 0;
-- Its condition keeps it out of the plans of look-ups by key (ADR 0021): those that were made while the table was empty
-- would take it for as good as the primary key, and read all of a tenant's subscriptions for each.
CREATE INDEX subscriptions_changed ON subscriptions (tenant_id, config_version) INCLUDE (id) WHERE config_version > 0;
CREATE INDEX breakers_changed ON breakers (tenant_id, changed_at) INCLUDE (subscription_id);
