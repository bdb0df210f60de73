package idempotency

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

const (
	// callTime bounds each call to the backend, and how long Complete is tried. The
	// client's leaving does not end them.
	callTime = 5 * time.Second
	// releaseGrace is how long an answer waits for the release of a claim that
	// failed: a backend that hangs takes no more of the client's time.
	releaseGrace = 200 * time.Millisecond
	// landingTime is how long a call whose outcome is unknown may still take effect.
	landingTime = 5 * time.Second
	// laterReleases is how often a release is tried that comes after such a call.
	laterReleases = 3
)

// tryClaim claims the key once, whatever becomes of the client. A claim whose
// reply came late may have little left of its lease, or nothing: it is renewed
// before anything runs. One that may take over is sent again: a renewal would not tell
// that another run began meanwhile, and was interrupted.
func (x *exchange) tryClaim(b *bounded) (held Record, claimed bool, err error) {
	defer b.stop()
	x.leaseFrom = time.Now()
	held, claimed, err = x.h.backend.Claim(b.begin(x, x.leaseFrom, callTime), x.storageKey, x.claim, x.h.terms)
	if !claimed || err != nil || time.Since(x.leaseFrom) <= x.h.lease/2 {
		return held, claimed, err
	}
	late := new(bounded)
	defer late.stop()
	x.leaseFrom = time.Now()
	ctx := late.begin(x, x.leaseFrom, min(callTime, x.h.lease/2))
	if x.h.terms.TakeOver {
		held, claimed, err = x.h.backend.Claim(ctx, x.storageKey, x.claim, x.h.terms)
	} else {
		err = x.h.backend.Renew(ctx, x.storageKey, x.claim, x.h.terms, nil)
	}
	switch {
	case err != nil:
		return Record{}, false, fmt.Errorf("%w, and not renewed: %w", errLate, err)
	case claimed && time.Since(x.leaseFrom) > x.h.lease/2:
		return Record{}, false, fmt.Errorf("%w, and so was its renewal", errLate)
	}
	return held, claimed, nil
}

// serveClaimed serves a request that has claimed its key. If that took over a progress
// that cannot be read, nothing runs: the record is put back as it was, interrupted.
func (x *exchange) serveClaimed(w http.ResponseWriter, r *http.Request, held Record) Event {
	run := x.newRun()
	if err := run.resume(held); err != nil {
		if x.releaseOnce(x, 0) != nil {
			x.releaseLater(x, 0)
		}
		return x.unreadable(w, r, err)
	}
	x.recovers = held.State == StateInterrupted
	return run.serve(w, r)
}

var errLate = errors.New("idempotency: claim was answered late for its lease")

// releaseFailed releases a claim that failed and may have landed all the same. If it
// lands after that, it runs out, which takes one with a trace long: that is released again.
func (x *exchange) releaseFailed() {
	released := make(chan struct{})
	go func() {
		defer close(released)
		_ = x.releaseOnce(x, 0)
	}()
	if x.h.terms.Trace > 0 {
		x.releaseLater(x, 0)
	}
	grace := time.NewTimer(releaseGrace)
	defer grace.Stop()
	select {
	case <-released:
	case <-grace.C:
	}
}

// releaseOnce releases the claim, with the values of root.
func (x *exchange) releaseOnce(root context.Context, trace time.Duration) error {
	ctx := new(bounded)
	defer ctx.stop()
	return guard(func() error {
		return x.h.backend.Release(ctx.begin(root, time.Now(), callTime), x.storageKey, x.claim, trace)
	})
}

// releaseLater releases the claim, again, once no call that was sent before can land any
// more. It holds nobody up.
func (x *exchange) releaseLater(root context.Context, trace time.Duration) {
	time.AfterFunc(landingTime, func() {
		for n := 1; x.releaseOnce(root, trace) != nil && n < laterReleases; n++ {
			time.Sleep(landingTime << n)
		}
	})
}

// guard calls f, and returns a panic of f as an error: in a goroutine of its own
// it would end the process.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("idempotency: backend panicked: %v", p)
		}
	}()
	return f()
}

// sleep waits for d and returns true, or returns false once ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
