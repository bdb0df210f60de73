package idempotencytest_test

import (
	"context"
	"errors"
	"time"

	"github.com/idempotency-go/idempotency"
)

func (m *model) Lookup(ctx context.Context, key idempotency.Key) (idempotency.Record, time.Duration, bool, error) {
	if err := m.begin(ctx, "Lookup"); err != nil {
		return idempotency.Record{}, 0, false, err
	}
	defer m.mu.Unlock()
	r := m.live(key)
	if over := m.row(key); r == nil && over != nil && m.has("Lookup shows what is over") {
		r = over
	}
	if r == nil {
		switch {
		case m.has("Lookup of nothing is an error"):
			return idempotency.Record{}, 0, false, errors.New("not found")
		case m.has("Lookup of nothing leaves a record"):
			_ = m.leave(key, &row{}, idempotency.Forever)
		}
		return idempotency.Record{}, 0, m.has("Lookup of nothing returns true"), nil
	}
	rec := m.shown(r, r.claim)
	left := idempotency.Forever
	if !r.end.IsZero() {
		left = time.Until(r.end)
	}
	switch {
	case m.has("Lookup shows interrupted claims as outstanding") && rec.State == interrupted:
		rec.State = outstanding
	case m.has("Lookup shows no fingerprint"):
		rec.Claim.Fingerprint = [32]byte{}
	case m.has("Lookup shows no progress"):
		rec.Progress = nil
	case m.has("Lookup shows no response"):
		rec.Response = nil
	case m.has("Lookup tells what is left of the lease") && rec.State != completed:
		left = time.Until(r.leaseEnd)
	case m.has("Lookup tells what is left without the trace") && rec.State != completed && r.trace != idempotency.Forever:
		left = time.Until(r.end.Add(-r.trace))
	case m.has("Lookup tells when a record ends") && left != idempotency.Forever:
		left = time.Duration(r.end.UnixNano())
	case m.has("Lookup tells 0 for ever") && left == idempotency.Forever:
		left = 0
	case m.has("Lookup tells whole days"):
		left = left.Truncate(24 * time.Hour)
	case m.has("Lookup deletes"):
		delete(m.rows, m.name(key))
	case m.has("Lookup prolongs") && !r.end.IsZero():
		r.end = r.end.Add(time.Hour)
		if rec.State == outstanding {
			r.leaseEnd = r.end
		}
	case m.has("Lookup shortens") && !r.end.IsZero():
		r.end = time.Now().Add(10 * time.Millisecond)
	}
	return rec, left, true, nil
}

func (m *model) Forget(ctx context.Context, key idempotency.Key, seen idempotency.Record) (bool, error) {
	if err := m.begin(ctx, "Forget"); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	r := m.live(key)
	if r == nil {
		switch {
		case m.has("Forget of nothing is an error"):
			return false, errors.New("not found")
		case m.has("Forget of nothing returns true"):
			return true, nil
		}
		return false, nil
	}
	token, state := r.claim.Token == seen.Claim.Token, m.state(r) == seen.State
	switch {
	case m.has("Forget ignores the token"), m.has("Forget compares fingerprints") && r.claim.Fingerprint == seen.Claim.Fingerprint:
		token = true
	case m.has("Forget ignores the state"), m.has("Forget ignores whether a lease is over") && !r.completed && seen.State != completed:
		state = true
	case m.has("Forget leaves outstanding claims") && m.state(r) == outstanding, m.has("Forget leaves responses") && r.completed,
		m.has("Forget leaves claims that took over") && r.tookOver:
		return false, nil
	}
	if !token || !state {
		if m.has("Forget of what was not seen is an error") {
			return false, errors.New("another record")
		}
		return m.has("Forget of what was not seen returns true"), nil
	}
	m.pause("Forget is not atomic")
	switch {
	case m.has("Forget deletes nothing"):
		return true, nil
	case m.has("Forget leaves a trace"):
		_ = m.leave(key, r, time.Hour)
		return true, nil
	case m.has("Forget returns false"):
		delete(m.rows, m.name(key))
		return false, nil
	}
	delete(m.rows, m.name(key))
	return true, nil
}

// wrapper is a backend around another, which shows what that is besides.
type wrapper struct{ idempotency.Backend }

func (w wrapper) Unwrap() idempotency.Backend { return w.Backend }

// bare is a backend that is nothing besides.
type bare struct{ idempotency.Backend }
