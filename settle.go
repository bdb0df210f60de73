package idempotency

import (
	"context"
	"sync"
	"time"
)

// settling is the context in which a claim is completed or released. It has the
// values of another context and ends settleTime after it began, as one of
// [context.WithTimeout] would; but it takes no timer before somebody waits for
// its end, which a backend that answers at once does not.
type settling struct {
	context.Context
	end time.Time

	mu     sync.Mutex
	timed  context.Context // what is waited for, once somebody does
	cancel context.CancelFunc
}

// begin begins the time.
func (s *settling) begin(values context.Context) context.Context {
	s.Context, s.end = values, time.Now().Add(settleTime)
	return s
}

// stop ends the context.
func (s *settling) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timed == nil {
		s.timed, s.cancel = stopped, func() {}
	}
	s.cancel()
}

// stopped is a context that has ended.
var stopped = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (s *settling) waitedFor() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timed == nil {
		s.timed, s.cancel = context.WithDeadline(s.Context, s.end)
	}
	return s.timed
}

func (s *settling) Deadline() (time.Time, bool) { return s.end, true }

func (s *settling) Done() <-chan struct{} { return s.waitedFor().Done() }

func (s *settling) Err() error {
	s.mu.Lock()
	idle := s.timed == nil
	s.mu.Unlock()
	if idle && time.Until(s.end) > 0 {
		return nil
	}
	return s.waitedFor().Err()
}

// AfterFunc spares a goroutine for each context that is made from this one; see
// [context.AfterFunc].
func (s *settling) AfterFunc(f func()) func() bool { return context.AfterFunc(s.waitedFor(), f) }
