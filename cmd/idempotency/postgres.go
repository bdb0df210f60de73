package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// postgresStore is a table of PostgreSQL.
type postgresStore struct {
	*postgres.Backend
	pool  *pgxpool.Pool
	table string
}

func newPostgresStore(pool *pgxpool.Pool, table string) (_ *postgresStore, err error) {
	defer func() {
		if p := recover(); p != nil {
			pool.Close()
			err = usageError(fmt.Sprint("-table: ", p)) // What WithTable says to a bad name.
		}
	}()
	return &postgresStore{postgres.New(pool, postgres.WithTable(table)), pool, table}, nil
}

func (s *postgresStore) close() { s.pool.Close() }

// countStatement counts the rows of a table by state, as the columns in schema.sql tell
// it, and finds the oldest outstanding claim: tokens are in the order of their times.
const countStatement = `
SELECT known, count(*),
	(array_agg(key ORDER BY token) FILTER (WHERE known = 'outstanding'))[1],
	(array_agg(token ORDER BY token) FILTER (WHERE known = 'outstanding'))[1]
FROM (
	SELECT key, token, CASE
		WHEN ends + trace * interval '1 microsecond' <= statement_timestamp() THEN 'over'
		WHEN state NOT IN (0, 1, 2) OR octet_length(key) <> 32 OR octet_length(fingerprint) <> 32 THEN 'unreadable'
		WHEN state = 2 AND response IS NULL THEN 'unreadable'
		WHEN state = 2 THEN 'completed'
		WHEN ends > statement_timestamp() THEN 'outstanding'
		ELSE 'interrupted'
	END AS known
	FROM TABLE
) AS r
GROUP BY known`

// count counts in one statement.
func (s *postgresStore) count(c *command, t *tally) error {
	table := pgx.Identifier(strings.Split(s.table, ".")).Sanitize()
	return c.within(func(ctx context.Context) error {
		rows, err := s.pool.Query(ctx, strings.Replace(countStatement, "TABLE", table, 1))
		if err != nil {
			return err
		}
		fields := map[string]*int64{"outstanding": &t.Outstanding, "interrupted": &t.Interrupted, "completed": &t.Completed,
			"unreadable": &t.Unreadable, "over": &t.Over}
		var known string
		var n int64
		var key []byte
		var token *[16]byte
		_, err = pgx.ForEachRow(rows, []any{&known, &n, &key, &token}, func() error {
			*fields[known] = n
			if token != nil {
				t.outstanding(idempotency.Key(key), *token)
			}
			return nil
		})
		return err
	})
}
