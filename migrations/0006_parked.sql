-- Deliveries that are due much later wait in an index of their own (ADR 0023): neither claims nor the walk over all queues
-- meet them in deliveries_due. The version before serves beside it: it parks nothing, and claims what is parked once it is
-- due; its claims do not use the new index, and are slow where a queue is long.
ALTER TABLE deliveries ADD COLUMN is_parked boolean NOT NULL DEFAULT false;
ALTER INDEX deliveries_due RENAME TO deliveries_due_0005;
-- As no look-up by key speaks of is_parked, the condition keeps the index out of their plans, as that of 0005 did (ADR 0021).
CREATE INDEX deliveries_due ON deliveries (tenant_id, subscription_id, run_at, id) WHERE NOT is_parked;
DROP INDEX deliveries_due_0005;
CREATE INDEX deliveries_parked ON deliveries (tenant_id, subscription_id, run_at, id) WHERE is_parked;
