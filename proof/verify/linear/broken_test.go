package linear_test

import (
	"context"
	"sync"
	"time"

	"github.com/idempotency-go/idempotency"
)

// faults are the ways in which a broken backend can be broken.
var faults = []string{
	"Claim looks first and claims later",
	"Claim claims what is outstanding",
	"Claim claims over its own response",
	"Claim refuses its own token",
	"Claim refuses its own token once interrupted",
	"Claim repeated keeps the lease",
	"Claim shows the response before",
	"Claim shows its caller's fingerprint",
	"Claim shows no progress",
	"Claim shows what is interrupted as outstanding",
	"Claim judges by the terms of who asks",
	"Claim finds what is interrupted free",
	"Claim looks first and takes over later",
	"Claim takes over what is outstanding",
	"Claim takes over unasked",
	"Claim takes over another fingerprint",
	"Claim lets the zero fingerprint match none",
	"Claim never takes over",
	"Claim takes over from no claim that took over",
	"Claim that took over does not tell",
	"Claim that took over forgets it",
	"Claim that took over does not tell when it is repeated",
	"Claim that took over forgets it when it is repeated",
	"Claim that took over drops the progress",
	"Claim that took over keeps the token before",
	"Claim that took over keeps the trace before",
	"Claim that took over has its own trace only",
	"Renew revives a lost claim",
	"Renew revives a claim that was taken over",
	"Renew revives a claim over a response",
	"Renew makes its own response outstanding",
	"Renew prolongs its own response",
	"Renew does nothing",
	"Renew of a lost claim is silent",
	"Renew of an interrupted claim is refused",
	"Renew forgets that its claim took over",
	"Renew keeps the trace before",
	"Renew keeps no progress",
	"Renew keeps shorter progress",
	"Renew without progress clears it",
	"Renew restores without progress",
	"Renew restores without a trace",
	"Complete looks first and writes later",
	"Complete is not fenced from claims",
	"Complete is not fenced from a claim that took over",
	"Complete is not fenced from responses",
	"Complete of a lost claim is silent",
	"Complete of an interrupted claim is refused",
	"Complete repeated overwrites",
	"Complete keeps the lease",
	"Release deletes another's claim",
	"Release deletes its own response",
	"Release looks first and deletes later",
	"Release does nothing",
	"Release of an interrupted claim does nothing",
	"Release ignores its trace",
	"Release with a trace leaves a claim outstanding",
	"Release with a trace leaves nothing where there is nothing",
	"Release without a trace leaves one",
	"Release deletes a claim that took over",
	"Release forgets that its claim took over",
	"Release of a claim that took over shortens the trace",
	"Release drops the progress",
	"leases never end",
	"leases end at half",
	"leases end a millisecond early",
	"leases end a millisecond late",
	"traces are ignored",
	"traces never end",
	"traces end a millisecond early",
	"traces end a millisecond late",
	"traces begin with the lease",
	"responses never end",
	"responses end a millisecond early",
}

// broken is a plain backend in memory with one fault, or none.
type broken struct {
	fault string

	mu     sync.Mutex
	rows   map[idempotency.Key]row
	before map[idempotency.Key][]byte // each key's last response but one
}

type row struct {
	idempotency.Record // while it is not completed, StateOutstanding
	tookOver           bool
	trace              time.Duration
	leaseEnd, end      time.Time
}

func newBroken(fault string) *broken {
	return &broken{fault: fault, rows: make(map[idempotency.Key]row), before: make(map[idempotency.Key][]byte)}
}

func (b *broken) has(fault string) bool { return b.fault == fault }

// later lets others in between what a verb finds and what it does.
func (b *broken) later(fault string) {
	if b.has(fault) {
		b.mu.Unlock()
		time.Sleep(time.Millisecond)
		b.mu.Lock()
	}
}

// find returns a key's row, and what it is to a claim.
func (b *broken) find(key idempotency.Key, claim idempotency.Claim) (r row, held, own, completed bool) {
	r, held = b.rows[key]
	if !held || !r.end.After(time.Now()) {
		return row{}, false, false, false
	}
	if r.State == idempotency.StateOutstanding && !r.leaseEnd.After(time.Now()) {
		r.State = idempotency.StateInterrupted
	}
	return r, true, r.Claim.Token == claim.Token, r.State == idempotency.StateCompleted
}

// lease sets a row whose lease begins now.
func (b *broken) lease(key idempotency.Key, r row, lease, trace time.Duration) {
	switch {
	case b.has("leases never end"):
		lease = time.Hour
	case b.has("leases end at half"):
		lease /= 2
	case b.has("leases end a millisecond early"):
		lease -= time.Millisecond
	case b.has("leases end a millisecond late"):
		lease += time.Millisecond
	}
	r.State = idempotency.StateOutstanding
	r.trace = trace
	r.leaseEnd = time.Now().Add(lease)
	r.end = r.leaseEnd.Add(b.traceOf(trace))
	if b.has("traces begin with the lease") && trace > 0 {
		r.end = time.Now().Add(max(lease, trace))
	}
	b.rows[key] = r
}

func (b *broken) traceOf(trace time.Duration) time.Duration {
	switch {
	case trace == 0:
	case b.has("traces are ignored"):
		return 0
	case b.has("traces never end"):
		return time.Hour
	case b.has("traces end a millisecond early"):
		return trace - time.Millisecond
	case b.has("traces end a millisecond late"):
		return trace + time.Millisecond
	}
	return trace
}

func (b *broken) match(r row, c idempotency.Claim) bool {
	none := [32]byte{}
	one := r.Claim.Fingerprint == none || c.Fingerprint == none
	return r.Claim.Fingerprint == c.Fingerprint || one && !b.has("Claim lets the zero fingerprint match none")
}

func (b *broken) Claim(_ context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, held, own, completed := b.find(key, claim)
	interrupted := held && r.State == idempotency.StateInterrupted
	over := interrupted && (terms.TakeOver || b.has("Claim takes over unasked")) && !b.has("Claim never takes over") &&
		(b.match(r, claim) || b.has("Claim takes over another fingerprint")) && !(r.tookOver && b.has("Claim takes over from no claim that took over"))
	over = over || held && !own && !completed && terms.TakeOver && b.match(r, claim) && b.has("Claim takes over what is outstanding")
	refused := b.has("Claim refuses its own token") || interrupted && b.has("Claim refuses its own token once interrupted")
	switch {
	case !held:
		b.later("Claim looks first and claims later")
		r = row{}
	case own && !completed && !refused:
		return b.claimAgain(key, r, terms)
	case own && completed && b.has("Claim claims over its own response"):
		return idempotency.Record{}, true, nil
	case over && !own:
		b.later("Claim looks first and takes over later")
		return b.takeOver(key, r, claim, terms)
	case held && !completed && !interrupted && b.has("Claim claims what is outstanding"),
		interrupted && terms.Trace == 0 && b.has("Claim judges by the terms of who asks"),
		interrupted && b.has("Claim finds what is interrupted free"):
		r = row{}
	default:
		return b.show(key, r, claim), false, nil
	}
	r.Record = idempotency.Record{Claim: claim}
	b.lease(key, r, terms.Lease, terms.Trace)
	return idempotency.Record{}, true, nil
}

// show is what a Claim returns of a record that holds the key.
func (b *broken) show(key idempotency.Key, r row, claim idempotency.Claim) idempotency.Record {
	switch {
	case b.has("Claim shows its caller's fingerprint"):
		r.Claim.Fingerprint = claim.Fingerprint
	case b.has("Claim shows the response before") && r.State == idempotency.StateCompleted && b.before[key] != nil:
		r.Response = b.before[key]
	case b.has("Claim shows no progress"):
		r.Progress = nil
	case b.has("Claim shows what is interrupted as outstanding") && r.State == idempotency.StateInterrupted:
		r.State = idempotency.StateOutstanding
	}
	return r.Record
}

// claimAgain is a Claim of what it has claimed.
func (b *broken) claimAgain(key idempotency.Key, r row, terms idempotency.Terms) (idempotency.Record, bool, error) {
	trace := terms.Trace
	tell := r.tookOver && !b.has("Claim that took over does not tell when it is repeated")
	if r.tookOver {
		trace = max(trace, r.trace)
	}
	if b.has("Claim that took over forgets it when it is repeated") {
		r.tookOver = false
	}
	if !b.has("Claim repeated keeps the lease") || r.State == idempotency.StateInterrupted {
		b.lease(key, r, terms.Lease, trace)
	}
	if !tell {
		return idempotency.Record{}, true, nil
	}
	return idempotency.Record{Claim: r.Claim, State: idempotency.StateInterrupted, Progress: r.Progress}, true, nil
}

func (b *broken) takeOver(key idempotency.Key, r row, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	trace := max(terms.Trace, r.trace)
	switch {
	case b.has("Claim that took over keeps the trace before"):
		trace = r.trace
	case b.has("Claim that took over has its own trace only"):
		trace = terms.Trace
	}
	shown := idempotency.Record{Claim: claim, State: idempotency.StateInterrupted, Progress: r.Progress}
	if b.has("Claim that took over drops the progress") {
		r.Progress = nil
	}
	if !b.has("Claim that took over keeps the token before") {
		r.Claim = claim
	}
	r.tookOver = !b.has("Claim that took over forgets it")
	b.lease(key, r, terms.Lease, trace)
	if b.has("Claim that took over does not tell") {
		return idempotency.Record{}, true, nil
	}
	return shown, true, nil
}
