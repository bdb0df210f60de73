package idempotency

import (
	"context"
	"errors"
	"sync"
	"time"
)

// renewal renews one claim while its handler runs, by a timer that runs in a
// goroutine only while it renews.
type renewal struct {
	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	running sync.WaitGroup
}

// start calls renew every interval until renew returns false or stop is called.
func (l *renewal) start(interval time.Duration, renew func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = time.AfterFunc(interval, func() {
		if !l.begin() {
			return
		}
		defer l.running.Done()
		if renew() {
			l.again(interval)
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
	l.stopped = true
	l.timer.Stop()
}

// wait waits, after stop, for a renewal that is under way: it could otherwise
// take the key again after it was released.
func (l *renewal) wait() { l.running.Wait() }

// renew renews the claim once. Where another request holds it, the handler's
// context ends.
func (x *exchange) renew() bool {
	ctx, cancel := context.WithTimeout(x.detached, min(x.h.renewEvery, settleTime))
	defer cancel()
	err := guard(func() error { return x.h.backend.Renew(ctx, x.storageKey, x.claim, x.h.hold) })
	if err == nil {
		return true
	}
	x.h.logFault(x.detached, "claim not renewed", x.storageKey, err)
	if errors.Is(err, ErrClaimLost) {
		x.lose(ErrClaimLost)
		return false
	}
	return true
}
