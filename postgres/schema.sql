-- The table of the idempotency records, for migration tools. It is what
-- Backend.Migrate makes, and may be run again.
CREATE TABLE IF NOT EXISTS idempotency_records (
	key         text COLLATE "C" PRIMARY KEY, -- idempotency.StorageKey, a hash
	token       text NOT NULL,                -- the claim that holds the key
	fingerprint bytea NOT NULL,               -- SHA-256 of the request
	status      integer,                      -- NULL while the request is outstanding, 0 for a response that was not kept
	header      text,                         -- JSON; each character is one byte of the header
	body        bytea,
	expires     timestamptz                   -- the end of the lease or of the expiry; NULL is never
);
CREATE INDEX IF NOT EXISTS idempotency_records_expires ON idempotency_records (expires);
