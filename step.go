package idempotency

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Step is a recovery point of a handler, under [WithRecovery]. It runs f, and keeps the
// result with the claim before it returns. In a later run of the same request, after this
// one was interrupted, Step with the same name returns that result and does not run f. So
// a handler that does several things goes on where it was interrupted. Its recovery may
// do no more than to run it again:
//
//	idempotency.WithRecovery(func(next http.Handler) http.Handler { return next })
//
// A process can still die after what f did and before that is kept: f then runs again.
// Give what f calls DeriveKey(ctx, name); see [DeriveKey].
//
// Step costs one round trip to the store, and none if the result is there. Do not use it
// for work that is in one transaction, which a crash undoes as a whole. The result is no
// part of the transaction of a [Transactor]: it stays if that is undone. So f must not
// write in that transaction: the next run would not write it again.
//
// An error of f is returned and not kept: the next Step with its name runs f. A result
// that cannot be kept is an error too, after f had its effect:
//
//   - The names and results of a request are together over the limit of [WithBufferLimit].
//   - [ErrFull]: the store has no room.
//   - [ErrClaimLost]: another request holds the claim.
//   - The store failed, for 5 s. The result may be kept all the same.
//
// In this run a later Step with that name does not run f again. It tries again to keep the
// result, unless that was too large. A later run may run f again.
//
// f gets ctx, with the mark of this Step. If ctx has ended, or the claim is known to be
// lost, f does not run, and the error is the cause. Call Step before the handler returns,
// and wait for it: what comes later is not kept. What Step returns is the caller's own, and
// nil if it is empty.
//
// Step is safe for concurrent use. Of several at once with one name one runs its f; the
// others wait, until their ctx ends, and get the same result or error. If f panics, or ends
// its goroutine, those get an error. f may call Step with another name. With its own name
// that is an error if it passes on the ctx that it got; else it waits for itself.
//
// Without WithRecovery, or without a key, Step just runs f. If the middleware stands more
// than once in a chain, Step belongs to the innermost one that did not step aside.
func Step(ctx context.Context, name string, f func(ctx context.Context) ([]byte, error)) ([]byte, error) {
	x := fromContext(ctx)
	if x == nil || !x.h.terms.TakeOver {
		return f(ctx)
	}
	s, isNew, err := x.findStep(ctx, name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("idempotency: step %q not run: %w", name, err)
	case isNew:
		s.do(ctx, f)
	case !s.await(ctx):
		return nil, fmt.Errorf("idempotency: step %q not awaited: %w", name, context.Cause(ctx))
	}
	if s.err != nil {
		return nil, s.err
	}
	if err := x.keep(s); err != nil {
		return nil, fmt.Errorf("idempotency: result of step %q not kept: %w", name, err)
	}
	return bytes.Clone(s.result), nil
}

var (
	errStepInItself = errors.New("it was called by itself")
	errStepLate     = errors.New("the handler has returned")
	errStepLarge    = errors.New("the names and results of the request's steps are over the limit of WithBufferLimit")
	errStepDied     = errors.New("idempotency: the function of another Step with this name did not return")
)

// steps are the recovery points of one run.
type steps struct {
	mu      sync.Mutex
	named   map[string]*step
	done    []*step       // those that have a result. What is sent contains all of them.
	size    int           // bytes of their names and results
	kept    int           // how many of them the store is known to have
	ended   bool          // The handler has returned.
	sending chan struct{} // has an element while a Renew is under way; nil before the first step
	unknown time.Time     // when the last Renew ended of which it is not known what it did
}

// step is one recovery point.
type step struct {
	run    *run
	name   string
	over   chan struct{} // closed once result and err are known
	result []byte
	err    error
	place  int // in steps.done, from 1
}

// stepKey is where the context of f carries its step, by run and name.
type stepKey struct {
	run  *run
	name string
}

// findStep returns the step of a name. If it is new, its function is to run.
func (x *run) findStep(ctx context.Context, name string) (s *step, isNew bool, err error) {
	if ctx.Value(stepKey{x, name}) != nil {
		return nil, false, errStepInItself
	}
	l := &x.steps
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.named[name]; s != nil {
		return s, false, nil
	}
	switch {
	case l.ended:
		return nil, false, errStepLate
	case ctx.Err() != nil:
		return nil, false, context.Cause(ctx)
	case x.running.Err() != nil:
		return nil, false, context.Cause(x.running)
	case l.sending == nil:
		l.sending = make(chan struct{}, 1)
	}
	s = &step{run: x, name: name, over: make(chan struct{})}
	l.name(s)
	return s, true, nil
}

func (l *steps) name(s *step) {
	if l.named == nil {
		l.named = make(map[string]*step)
	}
	l.named[s.name] = s
}

// await waits until the step is over, and returns false if ctx ends before that.
func (s *step) await(ctx context.Context) bool {
	select {
	case <-s.over:
		return true
	default: // A result that is there counts, also if ctx has ended.
	}
	select {
	case <-s.over:
		return true
	case <-ctx.Done():
		return false
	}
}

// do runs the function of the step. A step that has no result is forgotten.
func (s *step) do(ctx context.Context, f func(ctx context.Context) ([]byte, error)) {
	l, result := &s.run.steps, []byte(nil)
	s.err = errStepDied // Assume a panic; what f returns replaces this.
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if s.err != nil {
			delete(l.named, s.name)
		} else if s.err = l.add(s, result, s.run.h.bufferLimit); s.err != nil {
			s.err = fmt.Errorf("idempotency: result of step %q not kept: %w", s.name, s.err)
		}
		close(s.over)
	}()
	result, s.err = f(context.WithValue(ctx, stepKey{s.run, s.name}, true))
}

// add adds the result of a step to those that are to be kept.
func (l *steps) add(s *step, result []byte, limit int) error {
	size := len(s.name) + len(result)
	if size > limit-l.size {
		return errStepLarge
	}
	s.result = append(s.result, result...)
	l.size += size
	l.done = append(l.done, s)
	s.place = len(l.done)
	return nil
}

// keep returns nil once the store has the result of a step. Of several at once one
// sends the results of all. It is tried for some time, unless no retry can mend the fault.
func (x *run) keep(s *step) error {
	l := &x.steps
	if l.has(s) {
		return nil
	}
	b := new(bounded)
	ctx := b.begin(x.root, time.Now(), callTime)
	defer b.stop()
	select {
	case l.sending <- struct{}{}:
		defer func() { <-l.sending }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return persist(ctx, func() error {
		progress, count, err := l.next(s)
		if progress == nil {
			return err
		}
		begun := time.Now()
		err = x.h.backend.Renew(ctx, x.storageKey, x.claim, x.h.terms, x.sealed(sealedProgress, progress))
		l.sent(count, time.Since(begun), err)
		if errors.Is(err, ErrClaimLost) {
			x.renewal.stop()
			x.lose(ErrClaimLost)
		}
		return err
	})
}

// has reports whether the store is known to have the result of a step.
func (l *steps) has(s *step) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.place <= l.kept
}

// next returns the progress to send, and how many results are in it. It is nil if the
// store has the result of the step, or if the handler has returned, which is an error.
func (l *steps) next(s *step) (progress []byte, count int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case s.place <= l.kept:
		return nil, 0, nil
	case l.ended:
		return nil, 0, errStepLate
	}
	return encodeProgress(l.done), len(l.done), nil
}

// sent notes what became of a Renew with the results of the first steps.
func (l *steps) sent(count int, took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.kept = count
	}
	// If it took long it was sent by two ways, and may land a second time.
	if err != nil && !errors.Is(err, ErrClaimLost) || took >= callTime/2 {
		l.unknown = time.Now()
	}
}

// end ends the steps, but for a Renew that is under way.
func (l *steps) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
}

// any reports whether the store may have a result.
func (l *steps) any() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.done) > 0
}

// wait waits, after end, for the Renew that is under way: it could claim the key again
// after it was released. It returns true if one still may.
func (l *steps) wait() (mayLand bool) {
	if l.sending == nil {
		return false
	}
	overdue := time.NewTimer(callTime)
	defer overdue.Stop()
	select {
	case l.sending <- struct{}{}:
		defer func() { <-l.sending }()
	case <-overdue.C: // The backend does not heed its context.
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.unknown.IsZero() && time.Since(l.unknown) < landingTime
}
