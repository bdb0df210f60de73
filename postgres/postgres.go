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
// Leases, traces and expiries are counted by the database's clock, in whole
// microseconds, rounded up.
//
// # Isolation
//
// The default_transaction_isolation of the pool's connections may be any; read committed
// is best. Under repeatable read and serializable, statements of requests that run at once
// can conflict, also about different keys. They are repeated, after pauses of up to 50 ms,
// so that a claim or a completion may take several round trips. Renewals that conflict are
// repeated in a transaction that is read committed, which takes three more. For a stricter
// isolation of the handlers' own transactions see [WithTxOptions].
//
// # Vacuum
//
// A request leaves two dead row versions: the claim, when its response replaces it,
// and the response, when the sweep deletes it. Autovacuum must be on; the table's
// own settings let it begin when 5 % of the rows are dead. A renewal is a heap-only
// (HOT) update as long as its page has room, which the fillfactor of 80 keeps: it
// writes to no index, and what it leaves is removed without a vacuum. What a vacuum
// and a HOT update can remove is what no open transaction may see: a transaction
// that stays open for hours lets the table grow, as any table in that database.
package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/batch"
)

// Backend is an [idempotency.Backend] in one table of PostgreSQL. A claim, a
// replay and a refusal are one round trip each, and so is all else. It is an
// [idempotency.Inspector], safe for concurrent use by any number of processes.
//
// Renewals have a connection of their own, which is made like those of the pool when a
// claim is first renewed: a pool whose connections are all in use costs no claim. Those
// that come at once share a statement. While some hang there are more connections, at most
// 256 for each lease that claims have. If no connection can be had, such as over the limit
// of a role, one batch at a time is sent by the pool. See [Backend.Close].
//
// A full disk is [idempotency.ErrFull]. While the database is full or read-only, a
// stored response is still replayed.
type Backend struct {
	pool  *pgxpool.Pool
	table table
	tx    pgx.TxOptions
	sql   statements

	renewals batch.Leases[*renewals]
}

var _ idempotency.Inspector = (*Backend)(nil)

// An Option is a setting of [New] and [NewTransactional].
type Option func(*Backend)

// WithTable sets the table's name, with or without its schema: "billing.keys".
// Give the schema if handlers change the search path. The default is
// "idempotency_records".
func WithTable(name string) Option {
	return func(b *Backend) { b.table = newTable(name) }
}

// WithTxOptions sets how the handlers' transactions begin. The default is that
// of the database, most often read committed. With a stricter level a
// transaction that outlasts a twentieth of the lease, after which its claim is
// renewed, cannot commit: the client gets 503 and the request is processed
// again. Set [idempotency.WithLease] to more than twenty times the longest. An
// [idempotency.Step] after the first statement keeps it from its COMMIT in the same way;
// the next run, which has the result, commits. It has no effect with [New].
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

const (
	// maxRenewalConns is how many connections there are for the renewals of one lease: one,
	// and those that hang.
	maxRenewalConns = 256
	// leastIdle and mostIdle bound how long a connection is kept that is not used.
	leastIdle, mostIdle = 100 * time.Millisecond, 3 * time.Second
	// mostConnecting bounds how long a connection is being made. That is longer than a try to
	// renew a claim may take: a database that is slow would else never have made one.
	mostConnecting = 5 * time.Second
)

// renewals renews the claims with one lease.
type renewals struct {
	pool *pgxpool.Pool // connections that only these renewals use
	due  *batch.Ways[renewal]
}

// renewalsOf returns what renews the claims with a lease.
func (b *Backend) renewalsOf(lease time.Duration) (*renewals, error) {
	return b.renewals.Get(lease, func() (*renewals, error) {
		config := b.pool.Config()
		config.MaxConns, config.MinConns, config.MinIdleConns = maxRenewalConns, 0, 0
		// A connection that has gone silent costs a try. Of those that an outage has left none
		// is kept for long, and none is asked twice. One that was slow to be made is kept until
		// the next try, which is an eighth of a lease later at most.
		config.MaxConnIdleTime = min(max(lease/5, leastIdle), mostIdle)
		config.HealthCheckPeriod = config.MaxConnIdleTime
		config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
		connect := &config.ConnConfig.ConnectTimeout
		if *connect == 0 || *connect > mostConnecting {
			*connect = mostConnecting
		}
		pool, err := pgxpool.NewWithConfig(context.Background(), config) // It makes no connection yet.
		return &renewals{pool, batch.NewWays[renewal](lease)}, err
	})
}

// Close closes the connections that renewals have, and waits for the renewals that
// are under way. Call it when the server has shut down, before or after the pool is
// closed, which stays its caller's. A process that ends need not call it. A claim
// that is renewed afterwards makes new connections; a renewal that comes just then may
// fail, and is tried again.
func (b *Backend) Close() {
	for _, renewals := range b.renewals.Take() {
		renewals.pool.Close()
	}
}
