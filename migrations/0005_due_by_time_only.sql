-- The index that queues are read by must not serve look-ups by key: to a planner that knows a queue as empty it costs the same
-- as the primary key, and there each look-up reads through all of a tenant (ADR 0021). As no look-up speaks of run_at, the
-- condition, which every row meets, keeps it out of their plans. The version before serves beside it; its claims do not use
-- the index, and are slow where a queue is long.
ALTER INDEX deliveries_due RENAME TO deliveries_due_0004;
CREATE INDEX deliveries_due ON deliveries (tenant_id, subscription_id, run_at, id) WHERE run_at > '-infinity';
DROP INDEX deliveries_due_0004;
