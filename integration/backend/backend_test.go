package backend

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/idempotencytest"
)

// table is the smallest whole Backend: a map and a mutex, for a reader who writes
// one for a database. What it does under its mutex is there one statement or one
// transaction. Rows whose time is over stay until their key is asked for.
type table struct {
	mu   sync.Mutex
	rows map[idempotency.Key]row
}

// row is the record of a key. Its times are those of the store's clock.
type row struct {
	claim     idempotency.Claim
	tookOver  bool      // the claim took over an interrupted run
	completed bool      // by a response, which lasts until ends
	leaseEnds time.Time // of a claim; from then on it is interrupted
	trace     time.Duration
	ends      time.Time
	progress  []byte
	response  []byte
}

func newTable() *table { return &table{rows: make(map[idempotency.Key]row)} }

// get returns the row of a key, if there is one whose time is not over.
func (t *table) get(key idempotency.Key, now time.Time) (r row, held bool) {
	r, held = t.rows[key]
	if held && !now.Before(r.ends) {
		delete(t.rows, key)
		return row{}, false
	}
	return r, held
}

// record returns what a row tells at a time.
func (r row) record(now time.Time) idempotency.Record {
	state := idempotency.StateOutstanding
	switch {
	case r.completed:
		state = idempotency.StateCompleted
	case !now.Before(r.leaseEnds):
		state = idempotency.StateInterrupted
	}
	return idempotency.Record{Claim: r.claim, State: state, Progress: r.progress, Response: r.response}
}

// renewed returns the row of a claim whose lease begins now.
func (r row) renewed(now time.Time, terms idempotency.Terms) row {
	if !r.tookOver {
		r.trace = 0
	}
	r.trace = max(r.trace, terms.Trace)
	r.leaseEnds = after(now, terms.Lease)
	r.ends = after(r.leaseEnds, r.trace)
	return r
}

func (t *table) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	if err := check(ctx, terms.Lease > 0 && terms.Trace >= 0); err != nil {
		return idempotency.Record{}, false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	r, held := t.get(key, now)
	rec := r.record(now)
	switch {
	case !held:
		r = row{claim: claim}
	case !r.completed && r.claim.Token == claim.Token:
		// This very claim, sent twice.
	case terms.TakeOver && rec.State == idempotency.StateInterrupted && matches(r.claim, claim):
		r.claim, r.tookOver = claim, true
	default:
		return rec, false, nil
	}
	t.rows[key] = r.renewed(now, terms)
	if !r.tookOver {
		return idempotency.Record{}, true, nil
	}
	return idempotency.Record{Claim: claim, State: idempotency.StateInterrupted, Progress: r.progress}, true, nil
}

func (t *table) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	if err := check(ctx, terms.Lease > 0 && terms.Trace >= 0); err != nil {
		return err
	}
	return t.update(key, claim, func(r row, now time.Time) row {
		if len(progress) > len(r.progress) {
			r.progress = progress
		}
		return r.renewed(now, terms)
	})
}

func (t *table) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	if err := check(ctx, expiry > 0); err != nil {
		return err
	}
	return t.update(key, claim, func(_ row, now time.Time) row {
		return row{claim: claim, completed: true, response: response, ends: after(now, expiry)}
	})
}

func (t *table) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	if err := check(ctx, trace >= 0); err != nil {
		return err
	}
	err := t.update(key, claim, func(r row, now time.Time) row {
		if !r.tookOver {
			r.trace = 0
		}
		r.trace = max(r.trace, trace)
		r.leaseEnds, r.ends = now, after(now, r.trace)
		return r // Without a trace its time is over now: the key is free.
	})
	if errors.Is(err, idempotency.ErrClaimLost) {
		return nil
	}
	return err
}

// update changes the row of a key that holds this very claim, or nothing. It fences
// off a claim that was lost, and changes nothing where the claim has its response.
func (t *table) update(key idempotency.Key, claim idempotency.Claim, change func(r row, now time.Time) row) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	r, held := t.get(key, now)
	switch {
	case held && r.claim.Token != claim.Token:
		return idempotency.ErrClaimLost
	case held && r.completed:
		return nil
	}
	r.claim = claim
	t.rows[key] = change(r, now)
	return nil
}

func (t *table) Lookup(ctx context.Context, key idempotency.Key) (rec idempotency.Record, left time.Duration, ok bool, err error) {
	if err := check(ctx, true); err != nil {
		return idempotency.Record{}, 0, false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	r, held := t.get(key, now)
	if !held {
		return idempotency.Record{}, 0, false, nil
	}
	return r.record(now), r.ends.Sub(now), true, nil
}

func (t *table) Forget(ctx context.Context, key idempotency.Key, seen idempotency.Record) (forgotten bool, err error) {
	if err := check(ctx, true); err != nil {
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	r, held := t.get(key, now)
	if !held || r.claim.Token != seen.Claim.Token || r.record(now).State != seen.State {
		return false, nil
	}
	delete(t.rows, key)
	return true, nil
}

// never is further away than any Duration, so that a difference to it is Forever.
var never = time.Unix(1<<50, 0)

// after returns the time that is d after another.
func after(t time.Time, d time.Duration) time.Time {
	if d == idempotency.Forever {
		return never
	}
	return t.Add(d)
}

// check returns why a call must have no effect, if there is a reason.
func check(ctx context.Context, valid bool) error {
	if !valid {
		return errors.New("table: a lease and an expiry must be positive, and a trace must not be negative")
	}
	return ctx.Err()
}

// matches reports whether two claims may be of the same request: the zero
// fingerprint matches any.
func matches(a, b idempotency.Claim) bool {
	return a.Fingerprint == b.Fingerprint || a.Fingerprint == [32]byte{} || b.Fingerprint == [32]byte{}
}

func TestTable(t *testing.T) {
	idempotencytest.Run(t, func(t *testing.T) idempotency.Backend { return newTable() })
}
