package idempotency

import (
	"errors"
	"sync"
	"time"

	"github.com/idempotency-go/idempotency/internal/batch"
)

// A claim is renewed when a twentieth of its lease is over, and a fortieth later if that has
// not succeeded by then. So a store that takes calls again after nine tenths of a lease,
// with whatever faults before, takes a renewal in time.
const (
	renewals = 20          // in a lease, if all goes well
	tries    = batch.Tries // in a lease, if none succeeds
)

// tryTime bounds one try to renew a claim. Others begin beside it.
func tryTime(lease time.Duration) time.Duration { return min(lease/3, callTime) }

// renewal renews one claim while its handler runs, by a timer: between two tries
// there is no goroutine. A try that hangs or fails keeps no other from its time.
type renewal struct {
	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	tried   time.Time     // when the last try was sent
	failing bool          // The last try that ended has failed.
	unknown time.Time     // when the last try ended of which it is not known what it did
	pending int           // tries under way
	idle    chan struct{} // closed once none is; nil unless somebody waits
}

// startRenewal renews the claim at intervals, until it is lost or stop is called.
func (x *run) startRenewal() {
	l := &x.renewal
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = time.AfterFunc(time.Until(x.leaseFrom.Add(x.h.lease/renewals)), x.renew)
}

// renew tries to renew the claim once. If another request holds it, the handler's
// context ends.
func (x *run) renew() {
	l := &x.renewal
	sent, ok := l.begin(x.h.lease)
	if !ok {
		return
	}
	ctx := new(bounded)
	defer ctx.stop()
	err := guard(func() error {
		return x.h.backend.Renew(ctx.begin(x.root, sent, tryTime(x.h.lease)), x.storageKey, x.claim, x.h.terms, nil)
	})
	if errors.Is(err, ErrClaimLost) {
		l.stop()
		x.lose(ErrClaimLost)
	}
	if first := l.end(sent, err, x.h.lease); first {
		x.logFault("claim not renewed", err)
	}
}

// begin begins a try, unless it is too late, and sees to the next.
func (l *renewal) begin(lease time.Duration) (sent time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return sent, false
	}
	l.pending++
	l.tried = time.Now()
	l.timer.Reset(lease / tries)
	return l.tried, true
}

// end ends a try. It reports whether this is the first fault after a success.
func (l *renewal) end(sent time.Time, err error, lease time.Duration) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending--; l.pending == 0 && l.idle != nil {
		close(l.idle)
	}
	if err != nil {
		first, l.failing = !l.failing, true
		if !errors.Is(err, ErrClaimLost) {
			l.unknown = time.Now()
		}
		return first
	}
	l.failing = false
	if time.Since(sent) > batch.Late(lease) {
		l.unknown = time.Now() // It was sent by two ways, and may land a second time.
	}
	if !l.stopped {
		next := sent.Add(lease / renewals)
		if soonest := l.tried.Add(lease / tries); next.Before(soonest) {
			next = soonest // A reply that comes late does not hurry the tries.
		}
		l.timer.Reset(time.Until(next))
	}
	return false
}

// stop ends the renewing, but for tries that are under way.
func (l *renewal) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped {
		l.stopped = true
		l.timer.Stop()
	}
}

// wait waits, after stop, for the tries that are under way: one of them could claim the
// key again after it was released. It returns true if one still may.
func (l *renewal) wait() (mayLand bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending > 0 {
		l.idle = make(chan struct{})
		l.mu.Unlock()
		overdue := time.NewTimer(callTime)
		select {
		case <-l.idle:
		case <-overdue.C: // The backend does not heed its context.
		}
		overdue.Stop()
		l.mu.Lock()
	}
	return l.pending > 0 || !l.unknown.IsZero() && time.Since(l.unknown) < landingTime
}
