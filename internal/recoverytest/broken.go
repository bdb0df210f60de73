package recoverytest

import (
	"context"
	"time"

	"github.com/idempotency-go/idempotency"
)

// The builds that break a promise on purpose, to show that the proof finds it.
const (
	brokenTwice    = "recovers twice"   // An outstanding key is recovered too.
	brokenAnother  = "recovers another" // The fingerprint is not compared.
	brokenRepeated = "recovers once"    // A claim that is sent again does not tell that it took over.
	brokenTrace    = "no trace"         // A crash frees the key.
	brokenForgets  = "keeps no step"    // The result of a step is not kept.
	brokenFence    = "no fence"         // The result is kept with the claim of whoever has the key.
	brokenNot      = "not broken"       // has the same parts as those
)

// A Breakage is a broken build, and what must find it.
type Breakage struct {
	Name, What string
	Repeat     bool // Every claim is sent twice.
	Prove      func(p *Proof)
	Finds      string // the kind of violation; "" is none of any kind
}

// Breakages are the broken builds, and one that is not.
var Breakages = []Breakage{
	{brokenTwice, "an outstanding key is recovered too", false, func(p *Proof) { p.Crowds(6) }, "doubled"},
	{brokenAnother, "a key is recovered for another request", false, func(p *Proof) { p.Payments(8) }, "another"},
	{brokenRepeated, "after a repeated claim the recovery does not run", true, func(p *Proof) { p.Payments(8) }, "doubled"},
	{brokenTrace, "a crash leaves no trace", false, func(p *Proof) { p.Payments(8) }, "doubled"},
	{brokenForgets, "the result of a step is not kept", false, func(p *Proof) { p.Trips(12) }, "again"},
	{brokenFence, "the result of a step is kept with the claim of another", false, func(p *Proof) { p.LateOwners(1) }, "unfenced"},
	{brokenNot, "nothing", true, func(p *Proof) {
		p.Payments(8)
		p.Trips(12)
	}, ""},
}

// broken is a backend that breaks one of its promises.
type broken struct {
	idempotency.Backend
	name string
}

// brokenTransactor is one that is a Transactor.
type brokenTransactor struct {
	*broken
	transactor idempotency.Transactor
}

func (b brokenTransactor) Begin(ctx context.Context, key idempotency.Key, claim idempotency.Claim, expiry time.Duration) context.Context {
	return b.transactor.Begin(ctx, key, claim, expiry)
}

// Lease returns a lease for the servers of the build: a short one, unless no claim may be lost
// on a busy machine.
func (b Breakage) Lease() time.Duration {
	if b.Name == brokenNot {
		return 3 * time.Second
	}
	return time.Second
}

// breakBackend returns a broken build of a backend; "" is none.
func breakBackend(name string, b idempotency.Backend) idempotency.Backend {
	if name == "" {
		return b
	}
	if transactor, ok := b.(idempotency.Transactor); ok {
		return brokenTransactor{&broken{b, name}, transactor}
	}
	return &broken{b, name}
}

// Claim implements [idempotency.Backend].
func (b *broken) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	switch b.name {
	case brokenAnother:
		claim.Fingerprint = [32]byte{}
	case brokenTrace:
		terms.Trace = 0
	}
	held, claimed, err := b.Backend.Claim(ctx, key, claim, terms)
	switch {
	case b.name == brokenTwice && err == nil && !claimed && held.State == idempotency.StateOutstanding && held.Claim.Fingerprint == claim.Fingerprint:
		return idempotency.Record{Claim: claim, State: idempotency.StateInterrupted, Progress: held.Progress}, true, nil
	case b.name == brokenRepeated && claimed:
		// It tells the first time, whose reply is lost.
		return idempotency.Record{}, true, err
	}
	return held, claimed, err
}

// Renew implements [idempotency.Backend].
func (b *broken) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	switch {
	case b.name == brokenAnother:
		claim.Fingerprint = [32]byte{}
	case b.name == brokenTrace:
		terms.Trace = 0
	case b.name == brokenForgets:
		progress = nil
	case b.name == brokenFence && progress != nil:
		if held, _, ok, err := b.Backend.(idempotency.Inspector).Lookup(ctx, key); ok && err == nil {
			claim = held.Claim
		}
	}
	return b.Backend.Renew(ctx, key, claim, terms, progress)
}

// Complete implements [idempotency.Backend].
func (b *broken) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	if b.name == brokenAnother {
		claim.Fingerprint = [32]byte{}
	}
	return b.Backend.Complete(ctx, key, claim, response, expiry)
}

// Release implements [idempotency.Backend].
func (b *broken) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	if b.name == brokenTrace {
		trace = 0
	}
	return b.Backend.Release(ctx, key, claim, trace)
}
