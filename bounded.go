package idempotency

import (
	"context"
	"sync"
	"time"
)

// bounded is the context of one call to a [Backend]. It has the values of a context
// that does not end, and ends some time after it began, as one of
// [context.WithTimeout] would. It starts a timer only once Done is asked for, which a
// backend that answers at once does not: on memory that saves a third of a replay.
type bounded struct {
	context.Context
	end time.Time

	mu     sync.Mutex
	timed  context.Context // what is waited for, once somebody does
	cancel context.CancelFunc
}

// begin begins the time. A bounded context begins once.
func (b *bounded) begin(endless context.Context, now time.Time, d time.Duration) context.Context {
	b.Context, b.end = endless, now.Add(d)
	return b
}

// stop ends the context.
func (b *bounded) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed == nil {
		b.timed, b.cancel = stopped, func() {}
	}
	b.cancel()
}

// stopped is a context that has ended.
var stopped = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (b *bounded) waitedFor() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed == nil {
		b.timed, b.cancel = context.WithDeadline(b.Context, b.end)
	}
	return b.timed
}

func (b *bounded) Deadline() (time.Time, bool) { return b.end, true }

func (b *bounded) Done() <-chan struct{} { return b.waitedFor().Done() }

func (b *bounded) Err() error {
	b.mu.Lock()
	idle := b.timed == nil
	b.mu.Unlock()
	if idle && time.Until(b.end) > 0 {
		return nil
	}
	return b.waitedFor().Err()
}

// AfterFunc spares a goroutine for each context that is made from this one; see
// [context.AfterFunc].
func (b *bounded) AfterFunc(f func()) func() bool { return context.AfterFunc(b.waitedFor(), f) }
