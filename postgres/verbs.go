package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/idempotency-go/idempotency"
)

// Claim implements [idempotency.Backend].
func (b *Backend) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (held idempotency.Record, claimed bool, err error) {
	if err := checkTerms(terms); err != nil {
		return idempotency.Record{}, false, err
	}
	err = again(ctx, func() error {
		held, claimed, err = b.tryClaim(ctx, key, claim, terms)
		return err
	})
	if isCode(err, diskFull, readOnly) {
		// A response that is stored is replayed all the same.
		rec, _, ok, readErr := b.Lookup(ctx, key)
		switch {
		case errors.Is(readErr, idempotency.ErrUnreadable):
			err = fmt.Errorf("%w: %w", readErr, err)
		case readErr != nil || !ok:
		case rec.State == idempotency.StateCompleted && fingerprintsMatch(rec.Claim, claim):
			return rec, false, nil
		case rec.Claim.Token != claim.Token: // Nothing may run beside another request's record.
			err = fmt.Errorf("%w: %w", idempotency.ErrOutstanding, err)
		}
	}
	return held, claimed, err
}

func (b *Backend) tryClaim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (held idempotency.Record, claimed bool, err error) {
	var r row
	err = b.pool.QueryRow(ctx, b.sql.claim, key[:], claim.Token.String(), claim.Fingerprint[:],
		microseconds(terms.Lease), traceOf(terms.Trace), terms.TakeOver).
		Scan(&claimed, &r.token, &r.fingerprint, &r.state, &r.progress, &r.response)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return idempotency.Record{}, false, errRaced
	case err != nil:
		return idempotency.Record{}, false, err
	case claimed && r.state == rowTookOver:
		return idempotency.Record{Claim: claim, State: idempotency.StateInterrupted, Progress: r.progress}, true, nil
	case claimed:
		return idempotency.Record{}, true, nil
	}
	held, err = r.record(claim)
	return held, false, err
}

// Complete implements [idempotency.Backend].
func (b *Backend) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	if err := checkExpiry(expiry); err != nil {
		return err
	}
	return b.put(ctx, b.pool, b.sql.complete, key, claim, microseconds(expiry), present(response))
}

// Release implements [idempotency.Backend].
func (b *Backend) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	if err := checkTrace(trace); err != nil {
		return err
	}
	if trace == 0 {
		return again(ctx, func() error {
			_, err := b.pool.Exec(ctx, b.sql.release, key[:], claim.Token.String())
			return err
		})
	}
	// Its lease ends now.
	err := b.put(ctx, b.pool, b.sql.renew, key, claim, int64(0), traceOf(trace), []byte(nil))
	if errors.Is(err, idempotency.ErrClaimLost) {
		return nil
	}
	return err
}

// querier is a pool, or one of its connections.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// put runs a statement that takes effect if the key holds this very claim, or
// nothing.
func (b *Backend) put(ctx context.Context, db querier, sql string, key idempotency.Key, claim idempotency.Claim, args ...any) error {
	args = append([]any{key[:], claim.Token.String(), claim.Fingerprint[:]}, args...)
	return again(ctx, func() error {
		var written bool
		var holder *[16]byte
		var state *int16
		err := db.QueryRow(ctx, sql, args...).Scan(&written, &holder, &state)
		switch {
		case err != nil || written:
			return err
		case holder == nil:
			return errRaced
		case *holder != claim.Token:
			return idempotency.ErrClaimLost
		case *state == rowCompleted:
			return nil // It has its response already.
		case *state == rowClaim || *state == rowTookOver:
			return errRaced
		}
		return unreadable("an unknown state")
	})
}

// present returns a response that is not NULL in the database.
func present(response []byte) []byte {
	if response == nil {
		return []byte{}
	}
	return response
}

// Lookup implements [idempotency.Inspector].
func (b *Backend) Lookup(ctx context.Context, key idempotency.Key) (rec idempotency.Record, remaining time.Duration, ok bool, err error) {
	var r row
	var us *int64
	err = again(ctx, func() error {
		return b.pool.QueryRow(ctx, b.sql.lookup, key[:], foreverTrace).
			Scan(&r.token, &r.fingerprint, &r.state, &r.progress, &r.response, &us)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return idempotency.Record{}, 0, false, nil
	}
	if err == nil {
		rec, err = r.record(idempotency.Claim{})
	}
	if err != nil {
		return idempotency.Record{}, 0, false, err
	}
	return rec, left(us), true, nil
}

// Forget implements [idempotency.Inspector].
func (b *Backend) Forget(ctx context.Context, key idempotency.Key, seen idempotency.Record) (forgotten bool, err error) {
	err = again(ctx, func() error {
		tag, err := b.pool.Exec(ctx, b.sql.forget, key[:], seen.Claim.Token.String(), int32(seen.State))
		forgotten = err == nil && tag.RowsAffected() == 1
		return err
	})
	return forgotten, err
}
