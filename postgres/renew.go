package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/batch"
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
	for {
		err := b.tryRenew(ctx, renewals, renewal{key, claim, terms}, progress)
		// The time of a try may be over before that of the call.
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
	}
}

// tryRenew renews a claim with others, or alone if it has progress or is not there.
func (b *Backend) tryRenew(ctx context.Context, renewals *renewals, r renewal, progress []byte) error {
	if progress == nil {
		err := again(ctx, func() error {
			own := func(ctx context.Context, due []renewal) []error { return b.renewBatch(ctx, renewals.pool, due) }
			byPool := func(ctx context.Context, due []renewal) []error { return b.renewBatch(ctx, b.pool, due) }
			return renewals.due.Do(ctx, r, own, byPool, failed)
		})
		if !errors.Is(err, errGone) {
			return err
		}
	}
	put := func(ctx context.Context, db querier) error {
		return b.put(ctx, db, b.sql.renew, r.key, r.claim, microseconds(r.terms.Lease), traceOf(r.terms.Trace), progress)
	}
	try, end := context.WithTimeout(ctx, batch.Time(r.terms.Lease))
	defer end()
	soon, stop := context.WithTimeout(try, batch.Late(r.terms.Lease))
	conn, err := renewals.pool.Acquire(soon)
	stop()
	if err != nil {
		return put(ctx, b.pool)
	}
	defer conn.Release()
	return put(try, conn)
}

// failed reports whether a renewal may succeed over other connections.
func failed(err error) bool {
	return err != nil && !errors.Is(err, errGone) && !errors.Is(err, errRaced) && !errors.Is(err, idempotency.ErrClaimLost)
}

// errGone is a renewal whose claim is not there. It is sent alone, and may restore that.
var errGone = errors.New("postgres: the claim is not there")

// readCommitted is for a batch that has met a serialization failure: the database's
// default isolation is a stricter one, under which it may conflict with any claim.
var readCommitted = pgx.TxOptions{IsoLevel: pgx.ReadCommitted}

// renewBatch renews the claims that are there, by one statement. One that is locked goes with
// a later batch: if each waited by itself, a database that is slow to commit would be asked for
// a connection for each claim.
func (b *Backend) renewBatch(ctx context.Context, pool *pgxpool.Pool, due []renewal) []error {
	var keys, tokens [][]byte
	var leases []*int64
	var traces []int64
	for _, r := range due {
		keys, tokens = append(keys, r.key[:]), append(tokens, r.claim.Token[:])
		leases, traces = append(leases, microseconds(r.terms.Lease)), append(traces, traceOf(r.terms.Trace))
	}
	type owned struct{ key, token string }
	renewed := make(map[owned]bool, len(due)) // false is one that is locked
	renew := func(db interface {
		Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	}) error {
		clear(renewed) // What a try has returned is undone if its COMMIT fails.
		rows, err := db.Query(ctx, b.sql.renewMany, keys, tokens, leases, traces)
		if err != nil {
			return err
		}
		var key, token []byte
		var written bool
		_, err = pgx.ForEachRow(rows, []any{&key, &token, &written}, func() error {
			renewed[owned{string(key), string(token)}] = written
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
		written, there := renewed[owned{string(r.key[:]), string(r.claim.Token[:])}]
		switch {
		case err != nil:
			errs[i] = err
		case !there:
			errs[i] = errGone
		case !written:
			errs[i] = errRaced
		}
	}
	return errs
}
