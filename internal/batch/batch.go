// Package batch sends renewals of claims together, and does not let a store that hangs
// hold them up.
package batch

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Tries is how many renewals of a claim are sent in a lease if none succeeds.
const Tries = 40

// mostTime bounds every batch. One over connections that others use has all of it: it may have
// to wait for one.
const mostTime = 5 * time.Second

// Time bounds a batch of renewals, and any other try to renew a claim.
func Time(lease time.Duration) time.Duration {
	return min(max(lease/3, 500*time.Millisecond), mostTime)
}

// patience is how long a batch that is under way holds up the next, if so much of the lease
// is left: at first for longer than until a claim is tried again, since a store that is slow,
// and makes connections for each that is thought to hang, gets slower. One second is enough
// to send many together, and lets a call that was given up end soon.
func patience(lease, left time.Duration) time.Duration {
	return min(max(left/8, lease/Tries), time.Second)
}

// queue sends the renewals of claims with one lease together: those that come while a batch
// is under way go with the next, each once. One batch is under way at once, and another
// beside each that hangs. It is safe for concurrent use.
type queue[Call comparable] struct {
	lease  time.Duration
	shared bool // What calls use is not theirs alone: see [Ways].
	mu     sync.Mutex
	next   *batch[Call] // nil unless calls wait
	sent   *batch[Call] // what is under way, and holds up the next; nil if nothing does
	since  time.Time    // when the first batch began of those that none has succeeded after; zero if the last has
}

// batch is calls that are sent together.
type batch[Call comparable] struct {
	calls []Call
	place map[Call]int    // of each in calls
	ctx   context.Context // of its first call
	send  func(context.Context, []Call) []error
	hangs *time.Timer   // ends its time to hold up the next
	errs  []error       // one for each call
	done  chan struct{} // closed once errs are there
}

// add adds a call to the next batch. It returns the batch and the call's place in it. send gets
// the calls of a batch, and returns an error for each, in their order. A batch is sent by its
// first call's send, under a context with that call's values that has a time of its own, and
// does not end with ctx.
func (q *queue[Call]) add(ctx context.Context, call Call, send func(context.Context, []Call) []error) (mine *batch[Call], i int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.next == nil {
		q.next = &batch[Call]{place: make(map[Call]int), ctx: context.WithoutCancel(ctx), send: send, done: make(chan struct{})}
	}
	mine = q.next
	i, waits := mine.place[call]
	if !waits {
		i = len(mine.calls)
		mine.place[call] = i
		mine.calls = append(mine.calls, call)
	}
	if q.sent == nil {
		q.begin()
	}
	return mine, i
}

// begin sends the next batch. It is called with mu held, while nothing holds that up.
func (q *queue[Call]) begin() {
	b := q.next
	q.next, q.sent = nil, b
	if time.Since(q.since) >= q.lease {
		q.since = time.Now()
	}
	hold, bound := patience(q.lease, q.lease-time.Since(q.since)), Time(q.lease)
	if q.shared {
		hold, bound = bound, mostTime
	}
	b.hangs = time.AfterFunc(hold, func() { q.end(b) })
	go func() {
		defer close(b.done)
		defer q.end(b)
		b.run(bound)
		if slices.Contains(b.errs, nil) {
			q.succeed()
		}
	}()
}

// succeed notes that the store takes renewals.
func (q *queue[Call]) succeed() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.since = time.Time{}
}

// end lets the next batch go, if b still holds it up.
func (q *queue[Call]) end(b *batch[Call]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sent != b {
		return
	}
	b.hangs.Stop()
	q.sent = nil
	if q.next != nil {
		q.begin()
	}
}

// run sends the calls. A panic of send is the error of each: here it would end the process.
func (b *batch[Call]) run(bound time.Duration) {
	defer func() {
		if p := recover(); p != nil {
			b.errs = slices.Repeat([]error{fmt.Errorf("panic: %v", p)}, len(b.calls))
		}
	}()
	ctx, cancel := context.WithTimeout(b.ctx, bound)
	defer cancel()
	b.errs = b.send(ctx, b.calls)
}
