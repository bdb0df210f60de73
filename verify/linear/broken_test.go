package linear_test

import (
	"context"
	"sync"
	"time"

	"github.com/idempotency-go/idempotency"
)

// faults are the ways in which a broken backend can be broken.
var faults = []string{
	"Claim looks first and takes later",
	"Claim takes what is outstanding",
	"Claim takes its own response for its claim",
	"Claim refuses its own token",
	"Claim shows the response before",
	"Claim shows its caller's fingerprint",
	"Renew revives a lost claim",
	"Renew revives a claim over a response",
	"Renew makes its own response outstanding",
	"Renew prolongs its own response",
	"Renew does nothing",
	"Renew of a lost claim is silent",
	"Complete looks first and writes later",
	"Complete is not fenced from claims",
	"Complete is not fenced from responses",
	"Complete of a lost claim is silent",
	"Complete repeated overwrites",
	"Complete keeps the lease",
	"Complete drops marks",
	"Release deletes another's claim",
	"Release deletes its own response",
	"Release looks first and deletes later",
	"Release does nothing",
	"leases never end",
	"leases end at half",
	"leases end a millisecond early",
	"leases end a millisecond late",
	"responses never end",
	"responses end a millisecond early",
}

// broken is a plain backend in memory with one fault, or none.
type broken struct {
	fault string

	mu     sync.Mutex
	rows   map[string]row
	before map[string]*idempotency.Response // each key's last response but one
}

type row struct {
	idempotency.Record
	end time.Time
}

func newBroken(fault string) *broken {
	return &broken{fault: fault, rows: make(map[string]row), before: make(map[string]*idempotency.Response)}
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
func (b *broken) find(key string, claim idempotency.Claim) (r row, held, own, outstanding bool) {
	r, held = b.rows[key]
	if !held || !r.end.After(time.Now()) {
		return row{}, false, false, false
	}
	return r, true, r.Claim.Token == claim.Token, r.Response == nil
}

func (b *broken) set(key string, rec idempotency.Record, life time.Duration) {
	switch outstanding := rec.Response == nil; {
	case outstanding && b.has("leases never end"), !outstanding && b.has("responses never end"):
		life = time.Hour
	case outstanding && b.has("leases end at half"):
		life /= 2
	case outstanding && b.has("leases end a millisecond early"), !outstanding && b.has("responses end a millisecond early"):
		life -= time.Millisecond
	case outstanding && b.has("leases end a millisecond late"):
		life += time.Millisecond
	}
	b.rows[key] = row{rec, time.Now().Add(life)}
}

func (b *broken) Claim(_ context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, held, own, outstanding := b.find(key, claim)
	switch {
	case !held:
		b.later("Claim looks first and takes later")
	case own && outstanding && !b.has("Claim refuses its own token"):
		return idempotency.Record{}, true, nil
	case own && b.has("Claim takes its own response for its claim"):
		return idempotency.Record{}, true, nil
	case outstanding && b.has("Claim takes what is outstanding"):
	default:
		if b.has("Claim shows its caller's fingerprint") {
			r.Claim.Fingerprint = claim.Fingerprint
		}
		if b.has("Claim shows the response before") && !outstanding && b.before[key] != nil {
			r.Response = b.before[key]
		}
		return r.Record, false, nil
	}
	b.set(key, idempotency.Record{Claim: claim}, lease)
	return idempotency.Record{}, true, nil
}

func (b *broken) Renew(_ context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, held, own, outstanding := b.find(key, claim)
	switch {
	case held && !own && outstanding && b.has("Renew revives a lost claim"),
		held && !own && !outstanding && b.has("Renew revives a claim over a response"),
		held && own && !outstanding && b.has("Renew makes its own response outstanding"):
	case held && !own:
		if b.has("Renew of a lost claim is silent") {
			return nil
		}
		return idempotency.ErrClaimLost
	case held && !outstanding:
		if b.has("Renew prolongs its own response") {
			b.set(key, r.Record, lease)
		}
		return nil
	case b.has("Renew does nothing"):
		return nil
	}
	b.set(key, idempotency.Record{Claim: claim}, lease)
	return nil
}

func (b *broken) Complete(_ context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, held, own, outstanding := b.find(key, claim)
	switch {
	case held && !own && outstanding && b.has("Complete is not fenced from claims"),
		held && !own && !outstanding && b.has("Complete is not fenced from responses"):
	case held && !own:
		if b.has("Complete of a lost claim is silent") {
			return nil
		}
		return idempotency.ErrClaimLost
	case held && !outstanding && !b.has("Complete repeated overwrites"):
		return nil
	case resp.Status == 0 && b.has("Complete drops marks"):
		return nil
	case held && outstanding && b.has("Complete keeps the lease"):
		expiry = time.Until(r.end)
	}
	b.later("Complete looks first and writes later")
	if last := b.rows[key].Response; last != nil {
		b.before[key] = last
	}
	b.set(key, idempotency.Record{Claim: claim, Response: resp}, expiry)
	return nil
}

func (b *broken) Release(_ context.Context, key string, claim idempotency.Claim) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, held, own, outstanding := b.find(key, claim)
	switch {
	case held && own && outstanding && !b.has("Release does nothing"),
		held && !own && outstanding && b.has("Release deletes another's claim"),
		held && own && !outstanding && b.has("Release deletes its own response"):
		b.later("Release looks first and deletes later")
		delete(b.rows, key)
	}
	return nil
}
