package linear_test

import (
	"context"
	"time"

	"github.com/idempotency-go/idempotency"
)

func (b *broken) Renew(_ context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, held, own, completed := b.find(key, claim)
	trace := terms.Trace
	switch {
	case held && !own && !completed && b.has("Renew revives a lost claim"),
		held && !own && !completed && r.tookOver && b.has("Renew revives a claim that was taken over"),
		held && !own && completed && b.has("Renew revives a claim over a response"),
		held && own && completed && b.has("Renew makes its own response outstanding"):
		r = row{}
	case held && !own, r.State == idempotency.StateInterrupted && b.has("Renew of an interrupted claim is refused"):
		if b.has("Renew of a lost claim is silent") {
			return nil
		}
		return idempotency.ErrClaimLost
	case completed:
		if b.has("Renew prolongs its own response") {
			r.end = time.Now().Add(terms.Lease)
			b.rows[key] = r
		}
		return nil
	case b.has("Renew does nothing"):
		return nil
	case held:
		if r.tookOver {
			trace = max(trace, r.trace)
		}
		if b.has("Renew keeps the trace before") {
			trace = r.trace
		}
		r.tookOver = r.tookOver && !b.has("Renew forgets that its claim took over")
	case b.has("Renew restores without progress"):
		progress = nil
	case b.has("Renew restores without a trace"):
		trace = 0
	}
	shorter := progress != nil && b.has("Renew keeps shorter progress") || progress == nil && b.has("Renew without progress clears it")
	if (len(progress) > len(r.Progress) || shorter) && !b.has("Renew keeps no progress") {
		r.Progress = progress
	}
	r.Claim, r.Response = claim, nil
	b.lease(key, r, terms.Lease, trace)
	return nil
}

func (b *broken) Complete(_ context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, held, own, completed := b.find(key, claim)
	switch {
	case held && !own && !completed && b.has("Complete is not fenced from claims"),
		held && !own && !completed && r.tookOver && b.has("Complete is not fenced from a claim that took over"),
		held && !own && completed && b.has("Complete is not fenced from responses"):
	case held && !own, r.State == idempotency.StateInterrupted && b.has("Complete of an interrupted claim is refused"):
		if b.has("Complete of a lost claim is silent") {
			return nil
		}
		return idempotency.ErrClaimLost
	case completed && !b.has("Complete repeated overwrites"):
		return nil
	case held && !completed && b.has("Complete keeps the lease"):
		expiry = time.Until(r.end)
	}
	b.later("Complete looks first and writes later")
	if last := b.rows[key].Response; last != nil {
		b.before[key] = last
	}
	switch {
	case b.has("responses never end"):
		expiry = time.Hour
	case b.has("responses end a millisecond early"):
		expiry -= time.Millisecond
	}
	b.rows[key] = row{
		Record: idempotency.Record{Claim: claim, State: idempotency.StateCompleted, Response: response},
		end:    time.Now().Add(expiry),
	}
	return nil
}

func (b *broken) Release(_ context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, held, own, completed := b.find(key, claim)
	if b.has("Release ignores its trace") {
		trace = 0
	}
	switch {
	case b.has("Release does nothing"), held && r.State == idempotency.StateInterrupted && b.has("Release of an interrupted claim does nothing"):
		return nil
	case held && !own && !completed && b.has("Release deletes another's claim"),
		held && own && completed && b.has("Release deletes its own response"):
		delete(b.rows, key)
		return nil
	case held && (!own || completed), !held && trace == 0:
		return nil
	case !held && b.has("Release with a trace leaves nothing where there is nothing"):
		return nil
	case held && r.tookOver && !b.has("Release deletes a claim that took over"):
		if !b.has("Release of a claim that took over shortens the trace") || trace == 0 {
			trace = max(trace, r.trace)
		}
		r.tookOver = !b.has("Release forgets that its claim took over")
	case held && trace == 0 && b.has("Release without a trace leaves one"):
		trace = r.trace
	}
	b.later("Release looks first and deletes later")
	if trace == 0 {
		delete(b.rows, key)
		return nil
	}
	if b.has("Release drops the progress") {
		r.Progress = nil
	}
	r.Claim, r.State, r.trace = claim, idempotency.StateOutstanding, trace
	r.leaseEnd, r.end = time.Now(), time.Now().Add(b.traceOf(trace))
	if b.has("Release with a trace leaves a claim outstanding") {
		r.leaseEnd = r.end
	}
	b.rows[key] = r
	return nil
}
