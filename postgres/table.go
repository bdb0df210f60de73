package postgres

import (
	"context"
	_ "embed"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// schema makes the table under its default name.
//
//go:embed schema.sql
var schema string

// table is the name of a table, quoted.
type table struct {
	name  string // with its schema
	index string // of what may be swept, without
}

func newTable(name string) table {
	parts := strings.Split(name, ".")
	last := parts[len(parts)-1]
	const suffix = "_sweep_from"
	for _, part := range parts {
		// PostgreSQL would cut a name of more than 63 bytes.
		if len(parts) > 2 || part == "" || strings.Contains(part, "\x00") || len(part)+len(suffix) > 63 {
			panic("postgres: WithTable: give a name of at most 52 bytes, or schema.name")
		}
	}
	return table{pgx.Identifier(parts).Sanitize(), pgx.Identifier{last + suffix}.Sanitize()}
}

// Schema returns the SQL that makes the table and its index if they are not
// there. The file schema.sql has the same, under the default name.
func (b *Backend) Schema() string {
	return strings.NewReplacer(
		"idempotency_records_sweep_from", b.table.index,
		"idempotency_records", b.table.name,
	).Replace(schema)
}

// Migrate runs [Backend.Schema] if the table is not there. Any number of
// processes may call it at once, at every start.
func (b *Backend) Migrate(ctx context.Context) error {
	// To create an index locks the table even if it is there: that would wait
	// for every transaction that has written to the table, and all claims for it.
	var there bool
	err := b.pool.QueryRow(ctx, `
SELECT EXISTS (
	SELECT FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
	WHERE indrelid = to_regclass($1) AND '"' || replace(relname, '"', '""') || '"' = $2
)`, b.table.name, b.table.index).Scan(&there)
	if err != nil || there {
		return err
	}
	return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		// Two that create one table at the same time would fail, in spite of IF NOT EXISTS.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext($1))`, b.table.name); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, b.Schema())
		return err
	})
}

// sweepBatch is how many records are deleted at once.
const sweepBatch = 1000

// Sweep deletes the records whose time is over, and returns how many those were.
// It goes by batches of 1000 and locks nothing else, so that no request waits
// for it but one whose own record is just being deleted. Several processes may
// sweep at once: they share the work.
func (b *Backend) Sweep(ctx context.Context) (deleted int64, err error) {
	for {
		var tag pgconn.CommandTag
		err := again(ctx, func() (err error) {
			tag, err = b.pool.Exec(ctx, b.sql.sweep, sweepBatch)
			return err
		})
		deleted += tag.RowsAffected()
		if err != nil || tag.RowsAffected() < sweepBatch {
			return deleted, err
		}
	}
}

// SweepEvery sweeps at intervals until ctx ends, and then returns. Each error
// is given to failed, which may be nil; the next sweep follows all the same. It
// panics if every is not positive.
func (b *Backend) SweepEvery(ctx context.Context, every time.Duration, failed func(error)) {
	if every <= 0 {
		panic("postgres: SweepEvery: the interval must be positive")
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if _, err := b.Sweep(ctx); err != nil && ctx.Err() == nil && failed != nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
