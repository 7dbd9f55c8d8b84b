-- What a worker holds waits in an index of its own (ADR 0034): of each tenant by the end of its lease, which grows with time,
-- so that a delivery that is claimed or handed over is written to the end of its tenant's and not to a page of its queue's.
-- Neither claims nor the walk over all queues meet it in deliveries_due.
-- The version before serves beside it: what is due and it claims stays in deliveries_due, what it makes due again of this version's
-- leases is put back once it is due, and its claims and its walk do not use the new index, and are slow where queues are long.
ALTER TABLE deliveries ADD COLUMN is_leased boolean NOT NULL DEFAULT false;
ALTER INDEX deliveries_due RENAME TO deliveries_due_0006;
CREATE INDEX deliveries_due ON deliveries (tenant_id, subscription_id, run_at, id) WHERE NOT is_parked AND NOT is_leased;
DROP INDEX deliveries_due_0006;
-- As no look-up by key speaks of is_leased, the condition keeps the index out of their plans (ADR 0021).
CREATE INDEX deliveries_leased ON deliveries (tenant_id, run_at) WHERE is_leased;
