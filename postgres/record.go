package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/idempotency-go/idempotency"
)

// row is what the statements return of a row of the table.
type row struct {
	token       [16]byte
	fingerprint []byte
	state       int16
	progress    []byte
	response    []byte
}

// record returns the Record of a row. asked is the claim that came upon it.
func (r row) record(asked idempotency.Claim) (idempotency.Record, error) {
	rec := idempotency.Record{
		Claim:    idempotency.Claim{Token: r.token},
		State:    idempotency.State(r.state),
		Progress: r.progress,
		Response: r.response,
	}
	if len(r.fingerprint) != len(rec.Claim.Fingerprint) {
		return idempotency.Record{}, unreadable("a fingerprint of %d bytes", len(r.fingerprint))
	}
	copy(rec.Claim.Fingerprint[:], r.fingerprint)
	switch {
	case rec.State < idempotency.StateOutstanding || rec.State > idempotency.StateCompleted:
		return idempotency.Record{}, unreadable("an unknown state")
	case rec.State == idempotency.StateCompleted && r.response == nil && fingerprintsMatch(rec.Claim, asked):
		return idempotency.Record{}, unreadable("it is completed and has no response")
	}
	return rec, nil
}

// fingerprintsMatch reports whether two claims may be of the same request.
func fingerprintsMatch(a, b idempotency.Claim) bool {
	return a.Fingerprint == b.Fingerprint || a.Fingerprint == [32]byte{} || b.Fingerprint == [32]byte{}
}

func unreadable(format string, args ...any) error {
	return fmt.Errorf("%w: a row of PostgreSQL: %s", idempotency.ErrUnreadable, fmt.Sprintf(format, args...))
}

// foreverTrace is a trace that does not end, in microseconds: 292 years.
var foreverTrace = *microseconds(idempotency.Forever - 1)

// traceOf returns a trace as the statements take it.
func traceOf(trace time.Duration) int64 { return *microseconds(min(trace, idempotency.Forever-1)) }

// microseconds returns a time as the statements take it: NULL is for ever. It
// rounds up, so that nothing ends before its time.
func microseconds(d time.Duration) *int64 {
	if d == idempotency.Forever {
		return nil
	}
	us := int64(d / time.Microsecond)
	if d%time.Microsecond != 0 {
		us++
	}
	return &us
}

// left returns what is left of a record's time.
func left(us *int64) time.Duration {
	if us == nil || *us >= int64(idempotency.Forever/time.Microsecond) {
		return idempotency.Forever
	}
	return time.Duration(*us) * time.Microsecond
}

func checkTerms(terms idempotency.Terms) error {
	if terms.Lease <= 0 {
		return fmt.Errorf("postgres: lease of %v: it must be positive", terms.Lease)
	}
	return checkTrace(terms.Trace)
}

func checkTrace(trace time.Duration) error {
	if trace < 0 {
		return fmt.Errorf("postgres: trace of %v: it must not be negative", trace)
	}
	return nil
}

func checkExpiry(expiry time.Duration) error {
	if expiry <= 0 {
		return fmt.Errorf("postgres: expiry of %v: it must be positive, and is for ever with idempotency.Forever", expiry)
	}
	return nil
}

// errRaced is a statement that saw the table as it was before another one
// changed it.
var errRaced = errors.New("postgres: another request was faster")

// leastPause and mostPause bound the time between two tries of a statement.
const leastPause, mostPause = time.Millisecond, 50 * time.Millisecond

// again calls f until it meets no other request's statement, or ctx ends. Its pauses
// grow, and are random, so that two that met do not meet again.
func again(ctx context.Context, f func() error) error {
	for pause := leastPause; ; pause = min(2*pause, mostPause) {
		err := f()
		if !errors.Is(err, errRaced) && !isCode(err, serializationFailure, deadlockDetected) {
			return full(err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

// Codes of PostgreSQL's errors.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	diskFull             = "53100"
	readOnly             = "25006"
)

func isCode(err error, codes ...string) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	for _, code := range codes {
		if pg.Code == code {
			return true
		}
	}
	return false
}

// full returns err as ErrFull if the database has no room left.
func full(err error) error {
	if isCode(err, diskFull) {
		return fmt.Errorf("%w: %w", idempotency.ErrFull, err)
	}
	return err
}
