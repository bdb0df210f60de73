-- The table of the idempotency records, for migration tools. It is what
-- Backend.Migrate makes, and may be run again.
--
-- Only key and sweep_from are indexed. A renewal changes neither, so that
-- PostgreSQL can make it a heap-only tuple (HOT) update: no index is written, and
-- no vacuum is needed for what it leaves. The fillfactor keeps room for that.
CREATE TABLE IF NOT EXISTS idempotency_records (
	key         bytea PRIMARY KEY,    -- idempotency.Key, a hash of 32 bytes
	token       uuid NOT NULL,        -- the claim that holds the key
	state       smallint NOT NULL,    -- 0 a claim, 1 a claim that took over the key of another, 2 completed
	trace       bigint NOT NULL,      -- microseconds that a claim is remembered after its lease; 0 if completed
	ends        timestamptz NOT NULL, -- the end of the lease, or of the expiry; the record ends a trace later
	sweep_from  timestamptz NOT NULL, -- the sweep looks at the record from then on
	fingerprint bytea NOT NULL,       -- SHA-256 of the request
	progress    bytea,
	response    bytea
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX IF NOT EXISTS idempotency_records_sweep_from ON idempotency_records (sweep_from);
