package postgres

import "strings"

// Values of the column state.
const (
	rowClaim     = 0
	rowTookOver  = 1 // a claim that took over the key of another
	rowCompleted = 2
)

// Parts of the statements. The time of a statement is statement_timestamp: one for
// all of it, and taken before it waits for another statement. A statement that had
// to wait takes a record for live a little too long. It then changes nothing, and is
// sent again. The ends that it sets have a time of their own: see fromNow.
const (
	// over tells of a row that the key holds nothing: its time is over.
	over = `r.ends + r.trace * interval '1 microsecond' <= statement_timestamp()`
	// stateOf is the idempotency.State of a row whose time is not over; 0 if the row
	// cannot be read.
	stateOf = `CASE WHEN r.state = 2 THEN 3 WHEN r.state NOT IN (0, 1) THEN 0
		WHEN r.ends > statement_timestamp() THEN 1 ELSE 2 END`
	// own tells of a row in conflict that it is this very claim.
	own = `r.token = excluded.token AND r.state IN (0, 1)`
	// matches compares a row with the fingerprint of a claim, $3. The zero one matches any.
	zero    = `decode(repeat('00', 32), 'hex')`
	matches = `(r.fingerprint = $3::bytea OR $3::bytea = ` + zero + ` OR r.fingerprint = ` + zero + `)`
	// keptTrace is the trace of a renewed claim: only one that took over keeps a longer one.
	keptTrace = `CASE WHEN r.state = 1 AND NOT (` + over + `) THEN greatest(r.trace, excluded.trace) ELSE excluded.trace END`
	// marker is the setting that tells the transaction of a claim from any other; see transaction.
	marker = `nullif(current_setting('idempotency.claim', true), '')`
)

// fromNow is the end of a time that begins now. It takes a number of microseconds;
// NULL is for ever. Now is when the row is written, not when the statement was sent:
// statements that wait for a row get it in any order, and an older one must not set
// back its end. An upsert has locked the row when it calls this after ON CONFLICT;
// what excluded has was computed before.
func fromNow(us string) string {
	return `coalesce(clock_timestamp() + ` + us + ` * interval '1 microsecond', 'infinity')`
}

// statements are what a backend sends.
type statements struct{ claim, renew, renewMany, complete, release, commit, look, lookup, forget, sweep string }

func newStatements(t table) statements {
	in := func(sql string) string { return strings.ReplaceAll(sql, "TABLE", t.name) }
	return statements{
		// Claim: key, token, fingerprint, lease, trace, take over. It reads before it
		// writes, so that a duplicate does not wait for a transaction that is about to
		// commit the response. It returns one row: claimed, and of the record what the
		// caller may need. If two race for a key, the slower one gets no row.
		claim: in(`
WITH held AS (
	SELECT r.*, ` + stateOf + ` AS known, ` + matches + ` AS same, r.state IN (0, 1) AND (
		r.token = $2::uuid OR $6::boolean AND r.ends <= statement_timestamp() AND ` + matches + `) AS claimable
	FROM TABLE AS r WHERE r.key = $1::bytea AND NOT (` + over + `)
), claimed AS (
	INSERT INTO TABLE AS r (key, token, fingerprint, state, ends, trace, sweep_from)
	SELECT $1::bytea, $2::uuid, $3::bytea, 0, ` + fromNow("$4::bigint") + `, $5::bigint, ` + fromNow("($4::bigint + $5::bigint)") + `
	WHERE NOT EXISTS (SELECT FROM held WHERE NOT claimable)
	ON CONFLICT (key) DO UPDATE SET token = excluded.token, fingerprint = excluded.fingerprint,
		ends = ` + fromNow("$4::bigint") + `,
		state = CASE WHEN ` + over + ` THEN 0 WHEN r.token = excluded.token THEN r.state ELSE 1 END,
		trace = CASE WHEN ` + over + ` OR r.state = 0 AND r.token = excluded.token THEN excluded.trace
			ELSE greatest(r.trace, excluded.trace) END,
		sweep_from = excluded.sweep_from,
		progress = CASE WHEN ` + over + ` THEN NULL ELSE r.progress END, response = NULL
	WHERE ` + over + ` OR ` + own + `
		OR $6::boolean AND r.state IN (0, 1) AND r.ends <= statement_timestamp() AND ` + matches + `
	RETURNING r.token, r.fingerprint, r.state, r.progress
)
SELECT false, token, fingerprint, known, CASE WHEN same THEN progress END, CASE WHEN same THEN response END
FROM held WHERE NOT claimable
UNION ALL
SELECT true, token, fingerprint, state, CASE WHEN state = 1 THEN progress END, NULL FROM claimed`),

		// Renew: key, token, fingerprint, lease, trace, progress. It also releases a
		// claim with a trace, by a lease of 0. It leaves the columns alone that are
		// indexed, so that its update is a heap-only one.
		renew: in(put(`
	INSERT INTO TABLE AS r (key, token, fingerprint, state, ends, trace, sweep_from, progress)
	VALUES ($1::bytea, $2::uuid, $3::bytea, 0, ` + fromNow("$4::bigint") + `, $5::bigint, ` + fromNow("($4::bigint + $5::bigint)") + `, $6::bytea)
	ON CONFLICT (key) DO UPDATE SET token = excluded.token, fingerprint = excluded.fingerprint,
		ends = ` + fromNow("$4::bigint") + `,
		state = CASE WHEN ` + over + ` THEN 0 ELSE r.state END,
		trace = ` + keptTrace + `,
		sweep_from = CASE WHEN ` + over + ` THEN excluded.sweep_from ELSE r.sweep_from END,
		progress = CASE WHEN ` + over + ` OR octet_length(excluded.progress) > coalesce(octet_length(r.progress), 0)
			THEN excluded.progress ELSE r.progress END,
		response = NULL`)),

		// Renew many claims: keys, tokens, leases, traces. It renews those that are there, and
		// returns their keys and tokens, and whether they were renewed: a row that is locked is
		// not, so that none waits for another's transaction, and no two statements for each
		// other.
		renewMany: in(`
WITH mine AS (
	SELECT r.key, r.token, asked.lease, asked.trace
	FROM TABLE AS r JOIN unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bigint[]) AS asked (key, token, lease, trace)
		ON r.key = asked.key AND r.token = encode(asked.token, 'hex')::uuid
	WHERE r.state IN (0, 1) AND NOT (` + over + `)
), due AS (
	SELECT r.key, mine.lease, mine.trace
	FROM TABLE AS r JOIN mine ON r.key = mine.key AND r.token = mine.token
	WHERE r.state IN (0, 1)
	FOR NO KEY UPDATE OF r SKIP LOCKED
), renewed AS (
	UPDATE TABLE AS r SET ends = ` + fromNow("due.lease") + `,
		trace = CASE WHEN r.state = 1 THEN greatest(r.trace, due.trace) ELSE due.trace END
	FROM due WHERE r.key = due.key
	RETURNING r.key
)
SELECT mine.key, decode(replace(mine.token::text, '-', ''), 'hex'), EXISTS (SELECT FROM renewed WHERE renewed.key = mine.key)
FROM mine`),

		// Complete: key, token, fingerprint, expiry, response.
		complete: in(put(`
	INSERT INTO TABLE AS r (key, token, fingerprint, state, ends, trace, sweep_from, response)
	VALUES ($1::bytea, $2::uuid, $3::bytea, 2, ` + fromNow("$4::bigint") + `, 0, ` + fromNow("$4::bigint") + `, $5::bytea)
	ON CONFLICT (key) DO UPDATE SET token = excluded.token, fingerprint = excluded.fingerprint,
		ends = ` + fromNow("$4::bigint") + `,
		state = 2, trace = 0, sweep_from = excluded.sweep_from, progress = NULL, response = excluded.response`)),

		// Release without a trace: key, token. A claim that took over stays.
		release: in(`
WITH deleted AS (DELETE FROM TABLE WHERE key = $1::bytea AND token = $2::uuid AND state = 0)
UPDATE TABLE AS r SET ends = statement_timestamp()
WHERE key = $1::bytea AND token = $2::uuid AND state = 1 AND NOT (` + over + `)`),

		// Complete in the claim's transaction, or if there was nothing to commit:
		// key, token, response, expiry, the marker of the transaction. It must be this
		// very claim: if that is gone, another request may have had the key, and its
		// response, meanwhile. It returns whether this is that transaction, whether it
		// wrote, and whether the response was there before.
		commit: in(`
WITH written AS (
	UPDATE TABLE SET state = 2, trace = 0, ends = ` + fromNow("$4::bigint") + `, sweep_from = ` + fromNow("$4::bigint") + `,
		progress = NULL, response = $3::bytea
	WHERE key = $1::bytea AND token = $2::uuid AND state IN (0, 1) AND ` + marker + ` IS NOT DISTINCT FROM $5::text
	RETURNING key
)
SELECT ` + marker + ` IS NOT DISTINCT FROM $5::text, EXISTS (SELECT FROM written),
	EXISTS (SELECT FROM TABLE WHERE key = $1::bytea AND token = $2::uuid AND state = 2)`),

		// The lock waits for a transaction that is about to commit.
		look: in(`SELECT state = 2 FROM TABLE WHERE key = $1::bytea AND token = $2::uuid FOR UPDATE`),

		// Lookup: key. What is left is in microseconds; NULL is for ever.
		lookup: in(`
SELECT r.token, r.fingerprint, ` + stateOf + `, r.progress, r.response,
	CASE WHEN r.ends < 'infinity' AND r.trace < $2::bigint THEN
		(extract(epoch FROM r.ends + r.trace * interval '1 microsecond' - statement_timestamp()) * 1000000)::bigint END
FROM TABLE AS r WHERE r.key = $1::bytea AND NOT (` + over + `)`),

		forget: in(`
DELETE FROM TABLE AS r WHERE r.key = $1::bytea AND r.token = $2::uuid AND NOT (` + over + `) AND ` + stateOf + ` = $3::integer`),

		// A time that does not change while the statement runs can be looked up in the
		// index.
		sweep: in(`
DELETE FROM TABLE WHERE key = ANY (ARRAY(
	SELECT key FROM TABLE AS r WHERE r.sweep_from <= statement_timestamp() AND ` + over + `
	ORDER BY sweep_from LIMIT $1 FOR UPDATE SKIP LOCKED
))`),
	}
}

// put makes the statement of an upsert that takes effect if the key holds this
// very claim, or nothing. It tells whether it did, and who held the key before.
func put(upsert string) string {
	return `
WITH written AS (` + upsert + `
	WHERE ` + over + ` OR ` + own + `
	RETURNING key
)
SELECT EXISTS (SELECT FROM written), held.token, held.state
FROM (SELECT) AS one LEFT JOIN TABLE AS held ON held.key = $1::bytea`
}
