package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// handlerTx is a transaction as the handler gets it.
type handlerTx struct{ savepoint }

// errManaged is what a handler gets that would end the transaction itself.
var errManaged = errors.New("postgres: the middleware ends this transaction; answer with 500 or more, or call idempotency.NoStore, to undo it")

func (handlerTx) Commit(context.Context) error { return errManaged }

func (handlerTx) Rollback(context.Context) error { return errManaged }

// savepoint is a transaction, or a savepoint in it, whose statements do not run
// beside each other, nor while the transaction is being ended. Afterwards they
// fail: by then its connection may be another request's.
type savepoint struct {
	pgx.Tx
	in *transaction
}

// errInUse is what a goroutine gets that uses the transaction beside another one.
var errInUse = errors.New("postgres: the transaction is in use, or is being ended")

// Conn panics: see [Tx].
func (savepoint) Conn() *pgx.Conn {
	panic("postgres: Conn of a request's transaction: its connection is another request's afterwards; use the methods of the transaction")
}

// LargeObjects panics: see [Tx].
func (savepoint) LargeObjects() pgx.LargeObjects {
	panic("postgres: LargeObjects of a request's transaction: use SQL's functions, such as lo_put")
}

func (s savepoint) Begin(ctx context.Context) (pgx.Tx, error) {
	return use(s, func() (pgx.Tx, error) {
		tx, err := s.Tx.Begin(ctx)
		if err != nil {
			return nil, err
		}
		return savepoint{tx, s.in}, nil
	})
}

func (s savepoint) Commit(ctx context.Context) error {
	_, err := use(s, func() (any, error) { return nil, s.Tx.Commit(ctx) })
	return err
}

func (s savepoint) Rollback(ctx context.Context) error {
	_, err := use(s, func() (any, error) { return nil, s.Tx.Rollback(ctx) })
	return err
}

func (s savepoint) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	return use(s, func() (int64, error) { return s.Tx.CopyFrom(ctx, table, columns, rows) })
}

func (s savepoint) SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults {
	results, err := use(s, func() (pgx.BatchResults, error) {
		for _, query := range batch.QueuedQueries {
			s.in.note(ctx, query.SQL)
		}
		return s.Tx.SendBatch(ctx, batch), nil
	})
	if err != nil {
		return pgx.FailedBatchResults(batch, err)
	}
	return batchResults{results}
}

func (s savepoint) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	return use(s, func() (*pgconn.StatementDescription, error) {
		s.in.note(ctx, sql) // It is sent by its name.
		return s.Tx.Prepare(ctx, name, sql)
	})
}

func (s savepoint) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return use(s, func() (pgconn.CommandTag, error) {
		s.in.note(ctx, sql)
		return s.Tx.Exec(ctx, sql, args...)
	})
}

func (s savepoint) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	result, err := use(s, func() (pgx.Rows, error) {
		s.in.note(ctx, sql)
		return s.Tx.Query(ctx, sql, args...)
	})
	if result == nil { // It was not sent.
		return pgx.FailedBatchResults(new(pgx.Batch), err).Query() // Rows that have ended.
	}
	return rows{result}, err
}

func (s savepoint) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	row, err := use(s, func() (pgx.Row, error) {
		s.in.note(ctx, sql)
		return s.Tx.QueryRow(ctx, sql, args...), nil
	})
	if err != nil {
		return pgx.FailedBatchResults(new(pgx.Batch), err).QueryRow()
	}
	return row
}

// rows are Rows that do not show their connection.
type rows struct{ pgx.Rows }

func (rows) Conn() *pgx.Conn { return nil }

// batchResults are BatchResults whose Rows do not.
type batchResults struct{ pgx.BatchResults }

func (r batchResults) Query() (pgx.Rows, error) {
	result, err := r.BatchResults.Query()
	return rows{result}, err
}

// use calls f while nobody else uses the transaction.
func use[R any](s savepoint, f func() (R, error)) (result R, err error) {
	t := s.in
	if !t.mu.TryLock() {
		return result, errInUse
	}
	defer t.mu.Unlock()
	if t.ended {
		return result, pgx.ErrTxClosed
	}
	result, err = f()
	if t.conn.Conn().PgConn().TxStatus() == 'I' {
		t.suspect = true
	}
	return result, err
}
