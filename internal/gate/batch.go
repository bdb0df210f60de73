package gate

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Batches sends calls together: those that come while a batch is under way go with the
// next. One batch is under way at once, and another beside each that hangs. It is safe for
// concurrent use.
type Batches[Call any] struct {
	gate     Gate
	mu       sync.Mutex
	next     *batch[Call]  // nil while no call waits
	patience time.Duration // the shortest of all calls
}

// batch is calls that are sent together.
type batch[Call any] struct {
	calls []Call
	errs  []error
	done  chan struct{} // closed once errs are there
}

// NewBatches returns batches of calls.
func NewBatches[Call any]() *Batches[Call] { return &Batches[Call]{gate: New(1)} }

// Do sends a call with a batch, and returns its error, or the cause of ctx if that ends
// first. send gets the calls of a batch and returns an error for each, in their order. It
// is that of the batch's first call, and goes on if the context of that ends. A batch that
// takes longer than the shortest patience of all calls, so far, hangs.
func (b *Batches[Call]) Do(ctx context.Context, call Call, patience time.Duration, send func([]Call) []error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.mu.Lock()
	if b.patience == 0 || patience < b.patience {
		b.patience = patience
	}
	mine := b.next
	if mine == nil {
		mine = &batch[Call]{done: make(chan struct{})}
		b.next = mine
		go b.run(mine, b.patience, send)
	}
	i := len(mine.calls)
	mine.calls = append(mine.calls, call)
	b.mu.Unlock()
	select {
	case <-mine.done:
		return mine.errs[i]
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run sends a batch when it is its turn. Until then calls are added to it.
func (b *Batches[Call]) run(mine *batch[Call], patience time.Duration, send func([]Call) []error) {
	leave := b.gate.Enter(patience)
	defer leave()
	b.mu.Lock()
	b.next = nil
	b.mu.Unlock()
	defer close(mine.done)
	defer func() {
		if p := recover(); p != nil { // Here it would end the process.
			mine.errs = slices.Repeat([]error{fmt.Errorf("panic: %v", p)}, len(mine.calls))
		}
	}()
	mine.errs = send(mine.calls)
}
