-- What is parked, by its time alone (ADR 0035): what comes near is found by one look, however many queues hold some.
-- The condition on run_at holds for every row; the statement that is to use the index states it, and no other does (ADR 0021): those
-- that look for one subscription's go by deliveries_parked, as does the version before, which serves beside this one as it did.
CREATE INDEX deliveries_parked_by_time ON deliveries (run_at, id) WHERE is_parked AND run_at > '-infinity';
