package idempotency

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// The pauses between looks while waiting double from the first to the last.
const firstLook, lastLook = 10 * time.Millisecond, 200 * time.Millisecond

// claimKey claims the key. While another request has it outstanding, it waits as
// long as the user allows and the client stays.
func (x *exchange) claimKey() (held Record, claimed bool, err error) {
	held, claimed, err = x.tryClaim(&x.claiming)
	if x.h.wait == 0 || !x.mustWait(held, claimed, err) {
		return held, claimed, err
	}
	x.body.shrink()
	ctx, cancel := context.WithTimeout(x.values, x.h.wait)
	defer cancel()
	w := x.h.waits.join(waitKey{x.storageKey, x.claim.Fingerprint})
	defer x.h.waits.leave(w)
	select {
	case _, mine := <-w.turn:
		if !mine {
			return w.held, false, nil
		}
		return x.look(ctx, w, held)
	case <-ctx.Done():
		if x.values.Err() != nil {
			return held, false, nil
		}
		return x.tryClaim(new(bounded))
	}
}

// look looks at the key, by claims, until there is no more to wait for. If that is a
// record, it is what the other requests wait for too.
func (x *exchange) look(ctx context.Context, w *wait, held Record) (_ Record, claimed bool, err error) {
	over := false
	defer func() { x.h.waits.pass(w, over) }()
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		// The processes that wait for one key do not all look at once.
		waited := sleep(ctx, pause/2+rand.N(pause))
		if x.values.Err() != nil {
			return held, false, nil
		}
		held, claimed, err = x.tryClaim(new(bounded))
		if !x.mustWait(held, claimed, err) {
			w.held, over = held, !claimed && err == nil // A claim and an error are this request's alone.
			return held, claimed, err
		}
		if !waited {
			return held, false, nil
		}
	}
}

// mustWait reports whether the key is held by the same request, outstanding.
func (x *exchange) mustWait(held Record, claimed bool, err error) bool {
	return err == nil && !claimed && held.State == StateOutstanding && held.Claim.matches(x.claim)
}

// waits are the requests of one instance that wait. Of those that wait for the same, one
// looks at a time: a store is asked as often for a thousand as for one. It is safe for
// concurrent use.
type waits struct {
	mu  sync.Mutex
	all map[waitKey]*wait
}

// waitKey is what requests wait for that get the same answer.
type waitKey struct {
	key         Key
	fingerprint [32]byte
}

// wait is one or more requests that wait for the same.
type wait struct {
	key      waitKey
	requests int
	turn     chan struct{} // has the turn to look while nobody does; closed once held is there
	held     Record        // what all of them have waited for
}

// join adds a request.
func (s *waits) join(key waitKey) *wait {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.all[key]
	if w == nil {
		w = &wait{key: key, turn: make(chan struct{}, 1)}
		w.turn <- struct{}{}
		if s.all == nil {
			s.all = make(map[waitKey]*wait)
		}
		s.all[key] = w
	}
	w.requests++
	return w
}

// leave takes a request away.
func (s *waits) leave(w *wait) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.requests--; w.requests == 0 {
		s.forget(w)
	}
}

// pass gives the turn to another request, or ends the waiting of all.
func (s *waits) pass(w *wait, over bool) {
	if !over {
		w.turn <- struct{}{}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(w) // A request that comes from here on waits for another record.
	close(w.turn)
}

// forget makes the next request for the same wait anew.
func (s *waits) forget(w *wait) {
	if s.all[w.key] == w {
		delete(s.all, w.key)
	}
}
