package linear

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/idempotency-go/idempotency"
)

// errCut is the error of a call that was lost on its way.
var errCut = errors.New("linear: connection cut")

// Lossy is a backend behind a network: a call takes a while to arrive, and its
// answer to come back. Some calls are lost before they arrive, some answers
// after the call took effect, and some calls arrive after their caller was told
// that they failed.
type Lossy struct {
	backend idempotency.Backend
	faults  float64 // the share of calls that meet a fault
	delay   time.Duration

	mu     sync.Mutex
	random *rand.Rand
}

// NewLossy returns a network in front of a backend. The share of calls that meet
// a fault is from 0 to 1; the delay is the longest of a way, and a tenth of the
// longest of a call that arrives after its caller gave it up.
func NewLossy(b idempotency.Backend, seed uint64, faults float64, delay time.Duration) *Lossy {
	return &Lossy{backend: b, faults: faults, delay: delay, random: rand.New(rand.NewPCG(seed, 0))}
}

// travel waits as long as a way takes.
func (l *Lossy) travel(longest time.Duration) {
	l.mu.Lock()
	d := time.Duration(l.random.Int64N(int64(longest)+1)) / tick * tick
	l.mu.Unlock()
	time.Sleep(d)
}

// send takes a call to the backend and its answer back.
func (l *Lossy) send(ctx context.Context, call func(context.Context) error) error {
	l.mu.Lock()
	fault, kind := l.random.Float64() < l.faults, l.random.IntN(3)
	l.mu.Unlock()
	l.travel(l.delay)
	switch {
	case fault && kind == 0: // The call is lost.
		return errCut
	case fault && kind == 1: // The call arrives too late.
		go func() {
			l.travel(10 * l.delay)
			_ = call(context.WithoutCancel(ctx)) // There is nobody to be told.
		}()
		return errCut
	}
	err := call(ctx)
	l.travel(l.delay)
	if fault { // The answer is lost.
		return errCut
	}
	return err
}

// Claim implements [idempotency.Backend].
func (l *Lossy) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	var held idempotency.Record
	var claimed bool
	err := l.send(ctx, func(ctx context.Context) (err error) {
		held, claimed, err = l.backend.Claim(ctx, key, claim, terms)
		return err
	})
	if err != nil {
		return idempotency.Record{}, false, err // A call that arrives later may yet write the two.
	}
	return held, claimed, nil
}

// Renew implements [idempotency.Backend].
func (l *Lossy) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	return l.send(ctx, func(ctx context.Context) error { return l.backend.Renew(ctx, key, claim, terms, progress) })
}

// Complete implements [idempotency.Backend].
func (l *Lossy) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	return l.send(ctx, func(ctx context.Context) error { return l.backend.Complete(ctx, key, claim, response, expiry) })
}

// Release implements [idempotency.Backend].
func (l *Lossy) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	return l.send(ctx, func(ctx context.Context) error { return l.backend.Release(ctx, key, claim, trace) })
}
