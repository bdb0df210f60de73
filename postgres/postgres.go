// Package postgres keeps the records of package idempotency in PostgreSQL 14 or
// newer, by way of pgx: claims, responses, and with [NewTransactional] the
// handler's own writes in one transaction with its response.
//
//	pool, err := pgxpool.New(ctx, "postgres://…")
//	backend := postgres.New(pool)
//	err = backend.Migrate(ctx)
//	http.ListenAndServe(addr, idempotency.New(backend)(mux))
//
// Records whose time is over are no longer seen, but stay in the table until
// [Backend.Sweep] deletes them: run [Backend.SweepEvery] in one process or more.
//
// Leases and expiries are counted by the database's clock.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
)

// Backend is an [idempotency.Backend] in one table of PostgreSQL. A claim, a
// replay and a refusal are one round trip each. It is safe for concurrent use,
// by any number of processes.
type Backend struct {
	pool  *pgxpool.Pool
	table table
	tx    pgx.TxOptions
	sql   statements
}

var _ idempotency.Backend = (*Backend)(nil)

// An Option is a setting of [New] and [NewTransactional].
type Option func(*Backend)

// WithTable sets the table's name, with or without its schema: "billing.keys".
// Give the schema where handlers change the search path. The default is
// "idempotency_records".
func WithTable(name string) Option {
	return func(b *Backend) { b.table = newTable(name) }
}

// WithTxOptions sets how the handlers' transactions begin. The default is that
// of the database, most often read committed. With a stricter level a
// transaction that outlasts a third of the lease, after which its claim is
// renewed, cannot commit: the client gets 503 and the request is processed
// again. Set [idempotency.WithLease] to more than three times the longest. It
// has no effect with [New].
func WithTxOptions(opts pgx.TxOptions) Option {
	if opts.AccessMode == pgx.ReadOnly {
		panic("postgres: WithTxOptions: read only, but the record is written")
	}
	return func(b *Backend) { b.tx = opts }
}

// New returns a backend that keeps its records in the database of pool, which
// it does not close. The table must be there; see [Backend.Migrate]. It panics
// if pool is nil or an option has a bad value.
func New(pool *pgxpool.Pool, opts ...Option) *Backend {
	if pool == nil {
		panic("postgres: New: nil pool")
	}
	b := &Backend{pool: pool, table: newTable("idempotency_records")}
	for _, opt := range opts {
		if opt == nil {
			panic("postgres: New: nil option")
		}
		opt(b)
	}
	b.sql = newStatements(b.table)
	return b
}

// Claim implements [idempotency.Backend].
func (b *Backend) Claim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (held idempotency.Record, claimed bool, err error) {
	err = again(ctx, func() error {
		held, claimed, err = b.tryClaim(ctx, key, claim, lease)
		return err
	})
	return held, claimed, err
}

func (b *Backend) tryClaim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	var row record
	err := b.pool.QueryRow(ctx, b.sql.claim, key, claim.Token, claim.Fingerprint[:], microseconds(lease)).
		Scan(&row.token, &row.fingerprint, &row.status, &row.header, &row.body)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errRaced
	}
	if err != nil {
		return idempotency.Record{}, false, full(err)
	}
	if row.token == claim.Token && row.status == nil {
		return idempotency.Record{}, true, nil
	}
	held, err := row.decode()
	return held, false, err
}

// Renew implements [idempotency.Backend].
func (b *Backend) Renew(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
	return b.put(ctx, key, claim, record{}, lease)
}

// Complete implements [idempotency.Backend].
func (b *Backend) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	row, err := encode(resp)
	if err != nil {
		return err
	}
	return b.put(ctx, key, claim, row, expiry)
}

// Release implements [idempotency.Backend].
func (b *Backend) Release(ctx context.Context, key string, claim idempotency.Claim) error {
	return again(ctx, func() error {
		_, err := b.pool.Exec(ctx, b.sql.release, key, claim.Token)
		return err
	})
}

// put writes the claim for a time, with the response of row if it has one.
func (b *Backend) put(ctx context.Context, key string, claim idempotency.Claim, row record, d time.Duration) error {
	return again(ctx, func() error {
		var written bool
		var holder *string
		var settled *bool
		err := b.pool.QueryRow(ctx, b.sql.put, key, claim.Token, claim.Fingerprint[:], microseconds(d), row.status, row.header, row.body).
			Scan(&written, &holder, &settled)
		switch {
		case err != nil || written:
			return full(err)
		case holder != nil && *holder != claim.Token:
			return idempotency.ErrClaimLost
		case settled != nil && *settled:
			return nil // It has its response already.
		}
		return errRaced
	})
}

// errRaced is a statement that saw the table as it was before another one
// changed it.
var errRaced = errors.New("postgres: another request was faster")

// again calls f until it meets no other request's statement.
func again(ctx context.Context, f func() error) error {
	for {
		err := f()
		var pg *pgconn.PgError
		raced := errors.Is(err, errRaced) ||
			errors.As(err, &pg) && (pg.Code == serializationFailure || pg.Code == deadlockDetected)
		if !raced {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// Codes of PostgreSQL's errors.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	diskFull             = "53100"
)

// full returns err as ErrFull where the database has no room left.
func full(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == diskFull {
		return fmt.Errorf("%w: %w", idempotency.ErrFull, err)
	}
	return err
}

// microseconds returns a time as the statements take it: NULL is for ever.
func microseconds(d time.Duration) *int64 {
	if d == 0 {
		return nil
	}
	us := d.Microseconds()
	return &us
}
