package idempotencytest_test

import (
	"context"
	"errors"
	"time"

	"github.com/idempotency-go/idempotency"
)

func (m *model) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	if ctx.Err() != nil && m.has("an ended context releases nothing and says it did") {
		return nil
	}
	if err := m.begin(ctx, "Release"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	switch {
	case trace < 0 && m.has("Release takes a negative trace for none"):
		trace = 0
	case trace < 0 && m.has("Release takes a negative trace for its amount"):
		trace = -trace
	case trace < 0:
		return errors.New("negative trace")
	case m.has("Release ignores its trace"):
		trace = 0
	case m.has("traces end early"):
		trace /= 10
	}
	r := m.live(key)
	if over := m.row(key); r == nil && over != nil && trace > 0 && m.has("Release heeds "+kind(over, claim)+" that is over") {
		r = over
	}
	if r == nil {
		return m.releaseNothing(key, claim, trace)
	}
	state, own := m.state(r), m.same("Release", r.claim, claim)
	if !own {
		return m.releaseOther(key, r, claim, trace, state)
	}
	if state == completed {
		end, _ := m.after("Release", time.Now(), trace)
		switch {
		case m.has("Release deletes its response") && trace == 0, m.has("Release deletes the response of a claim that took over") && r.tookOver:
			delete(m.rows, m.name(key))
		case m.has("Release of its response is an error"):
			return m.claimLost()
		case m.has("Release with a trace interrupts its response") && trace > 0:
			m.leave(key, &row{claim: claim}, trace)
		case m.has("Release with a trace prolongs its response") && trace > 0 && end.After(r.end):
			r.end = end
		}
		return nil
	}
	m.pause("Release is not atomic")
	switch {
	case m.has("Release does nothing"), m.has("Release of an interrupted claim does nothing") && state == interrupted && trace == 0,
		m.has("Release with a trace does nothing to an interrupted claim") && state == interrupted && trace > 0 && !r.tookOver:
		return nil
	case m.has("Release leaves a record") && trace == 0:
		m.leave(key, &row{}, idempotency.Forever)
		return nil
	case m.has("Release without a trace heeds the claim's") && trace == 0:
		trace = r.trace
	case m.has("Release with a trace keeps the longer one") && trace > 0:
		trace = max(trace, r.trace)
	case m.has("Release with a trace deletes an interrupted claim") && state == interrupted && !r.tookOver:
		trace = 0
	case m.has("Release frees all claims"):
		for name, r := range m.rows {
			if !r.completed {
				delete(m.rows, name)
			}
		}
		return nil
	}
	if trace == 0 && (!r.tookOver || m.has("Release deletes a claim that took over")) {
		delete(m.rows, m.name(key))
		if m.has("a release is undone when its context ends") {
			undone := *r
			undone.from = ctx
			m.rows[m.name(key)] = &undone
		}
		return nil
	}
	if r.tookOver && !m.has("a claim that took over keeps the trace of its Release") {
		trace = max(trace, r.trace)
	}
	next := *r
	switch {
	case m.has("Release with a trace drops the progress"), m.has("Release of a claim that took over drops the progress") && r.tookOver,
		m.has("Release repeated with a trace drops the progress") && r.released && state == interrupted:
		next.progress = nil
	case m.has("Release of a claim that took over puts the former claim back") && r.tookOver:
		next.claim = r.formerClaim
	case m.has("Release of a claim that took over leaves it outstanding") && r.tookOver:
		return nil
	}
	if err := m.leave(key, &next, trace); err != nil {
		return err
	}
	switch {
	case m.has("Release with a trace adds it to the lease") && state == outstanding && !r.leaseEnd.IsZero() && !next.end.IsZero():
		next.end = r.leaseEnd.Add(trace)
	case m.has("Release with a trace leaves the time") && r.trace > 0:
		next.end = r.end
	case m.has("Release with a trace only extends that of an interrupted claim") && state == interrupted && (r.end.IsZero() || next.end.Before(r.end)):
		next.end = r.end
	case m.has("an interruption ends with its context"):
		next.until = ctx
	}
	return nil
}

// leave makes a row interrupted for a trace.
func (m *model) leave(key idempotency.Key, r *row, trace time.Duration) error {
	end, err := m.after("Release", time.Now(), trace)
	if err != nil {
		return err
	}
	r.released, r.leaseEnd, r.end, r.trace = true, time.Now(), end, trace
	m.write(key, r)
	return nil
}

// releaseNothing is Release of a key that holds nothing.
func (m *model) releaseNothing(key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	former := m.former[claim.Token]
	if trace == 0 {
		switch {
		case m.has("Release of nothing is an error"), m.has("Release repeated is an error") && former:
			return errors.New("not found")
		case m.has("Release of nothing leaves a record"), m.has("Release repeated leaves a record") && former:
			return m.leave(key, &row{}, idempotency.Forever)
		}
		return nil
	}
	switch {
	case m.has("Release with a trace ignores a key that holds nothing"), m.has("Release with a trace ignores a claim that lost its key") && former:
		return nil
	case m.has("Release of nothing loses the fingerprint"):
		claim.Fingerprint = [32]byte{}
	case m.has("Release of nothing leaves a trace that does not end"):
		trace = idempotency.Forever
	}
	return m.leave(key, &row{claim: claim}, trace)
}

// releaseOther is Release of a key that holds another claim.
func (m *model) releaseOther(key idempotency.Key, r *row, claim idempotency.Claim, trace time.Duration, state idempotency.State) error {
	end, _ := m.after("Release", time.Now(), trace)
	switch {
	case m.has("Release is not fenced from outstanding claims") && state == outstanding,
		m.has("Release is not fenced from interrupted claims") && state == interrupted,
		m.has("Release is not fenced from claims whose lease is over") && state == interrupted && !r.released,
		m.has("Release is not fenced from responses") && state == completed,
		m.has("the claim that was taken over releases still") && m.lost[claim.Token] && state != completed,
		m.has("Release by a former holder takes effect") && m.former[claim.Token]:
		delete(m.rows, m.name(key))
	case m.has("Release of another's claim is an error") && state == outstanding, m.has("Release of another's interrupted claim is an error") && state == interrupted,
		m.has("Release of another's response is an error") && state == completed:
		return m.claimLost()
	case m.has("Release with a trace interrupts another's claim") && state == outstanding && trace > 0:
		r.released, r.leaseEnd = true, time.Now()
	case m.has("Release with a trace is not fenced from interrupted claims") && state == interrupted && trace > 0,
		m.has("Release with a trace is not fenced from responses") && state == completed && trace > 0:
		return m.leave(key, &row{claim: claim}, trace)
	case m.has("Release by another sets the time of an interrupted record") && state == interrupted && trace > 0,
		m.has("Release by another prolongs an interrupted record") && state == interrupted && trace > 0 && end.After(r.end):
		r.end = end
	}
	return nil
}
