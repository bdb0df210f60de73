package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
)

// renewal is a renewal without progress, which most are.
type renewal struct {
	key   idempotency.Key
	claim idempotency.Claim
	terms idempotency.Terms
}

// Renew implements [idempotency.Backend].
func (b *Backend) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	if err := checkTerms(terms); err != nil {
		return err
	}
	renewals, err := b.renewalsOf(terms.Lease)
	if err != nil {
		return err
	}
	if progress == nil {
		err := renewals.due.Do(ctx, renewal{key, claim, terms}, func(ctx context.Context, due []renewal) []error {
			return b.renewBatch(ctx, renewals.pool, due)
		})
		if !errors.Is(err, errAlone) {
			return err
		}
	}
	return b.put(ctx, renewals.pool, b.sql.renew, key, claim, microseconds(terms.Lease), traceOf(terms.Trace), progress)
}

// errAlone is a renewal that must be sent alone: its claim is not there, or locked.
var errAlone = errors.New("postgres: not renewed with others")

// readCommitted is for a batch that has met a serialization failure: the database's
// default isolation is a stricter one, under which it may conflict with any claim.
var readCommitted = pgx.TxOptions{IsoLevel: pgx.ReadCommitted}

// renewBatch renews the claims that are there, by one statement.
func (b *Backend) renewBatch(ctx context.Context, pool *pgxpool.Pool, due []renewal) []error {
	var keys, tokens [][]byte
	var leases []*int64
	var traces []int64
	for _, r := range due {
		keys, tokens = append(keys, r.key[:]), append(tokens, r.claim.Token[:])
		leases, traces = append(leases, microseconds(r.terms.Lease)), append(traces, traceOf(r.terms.Trace))
	}
	type owned struct{ key, token string }
	renewed := make(map[owned]bool, len(due))
	renew := func(db interface {
		Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	}) error {
		clear(renewed) // What a try has returned is undone if its COMMIT fails.
		rows, err := db.Query(ctx, b.sql.renewMany, keys, tokens, leases, traces)
		if err != nil {
			return err
		}
		var key, token []byte
		_, err = pgx.ForEachRow(rows, []any{&key, &token}, func() error {
			renewed[owned{string(key), string(token)}] = true
			return nil
		})
		return err
	}
	conflicted := false
	err := again(ctx, func() error {
		if conflicted {
			return pgx.BeginTxFunc(ctx, pool, readCommitted, func(tx pgx.Tx) error { return renew(tx) })
		}
		err := renew(pool)
		conflicted = isCode(err, serializationFailure)
		return err
	})
	errs := make([]error, len(due))
	for i, r := range due {
		switch {
		case err != nil:
			errs[i] = err
		case !renewed[owned{string(r.key[:]), string(r.claim.Token[:])}]:
			errs[i] = errAlone
		}
	}
	return errs
}
