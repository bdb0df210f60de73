package idempotency

import (
	"context"
	"errors"
	"sync"
	"time"
)

// renewal renews one claim while its handler runs, by a timer: between
// two renewals there is no goroutine.
type renewal struct {
	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	running sync.WaitGroup
}

// startRenewal renews the claim at intervals, until it is lost or stop is called.
func (x *run) startRenewal() {
	x.renewal.mu.Lock()
	defer x.renewal.mu.Unlock()
	x.renewal.timer = time.AfterFunc(time.Until(x.leaseFrom.Add(x.h.renewEvery)), func() {
		if !x.renewal.begin() {
			return
		}
		defer x.renewal.running.Done()
		if x.renew() {
			x.renewal.again(x.h.renewEvery)
		}
	})
}

func (l *renewal) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped {
		l.running.Add(1)
	}
	return !l.stopped
}

func (l *renewal) again(interval time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped {
		l.timer.Reset(interval)
	}
}

// stop ends the renewing, but for a renewal that is under way.
func (l *renewal) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped {
		l.stopped = true
		l.timer.Stop()
	}
}

// wait waits, after stop, for a renewal that is under way: it could otherwise
// claim the key again after it was released.
func (l *renewal) wait() { l.running.Wait() }

// renew renews the claim once. If another request holds it, the handler's
// context ends.
func (x *run) renew() bool {
	ctx, cancel := context.WithTimeout(x.root, min(x.h.renewEvery, callTime))
	defer cancel()
	err := guard(func() error { return x.h.backend.Renew(ctx, x.storageKey, x.claim, x.h.terms, nil) })
	if err == nil {
		return true
	}
	x.logFault("claim not renewed", err)
	if errors.Is(err, ErrClaimLost) {
		x.lose(ErrClaimLost)
		return false
	}
	return true
}
