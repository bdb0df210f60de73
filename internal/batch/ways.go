package batch

import (
	"context"
	"time"
)

// Ways are two ways to the store for the renewals of claims with one lease: their own, and
// another, over connections that are there already, if no new one can be had. Of batches by
// the other way one is under way at once, as long as none hangs: they take what other calls
// need too. It is safe for concurrent use.
type Ways[Call comparable] struct {
	own, other *queue[Call]
	lease      time.Duration
}

// NewWays returns the ways for renewals of claims with this lease.
func NewWays[Call comparable](lease time.Duration) *Ways[Call] {
	return &Ways[Call]{own: &queue[Call]{lease: lease}, other: &queue[Call]{lease: lease, shared: true}, lease: lease}
}

// Late is how long a call may take by its own way before it is sent by the other too. It may
// then take effect twice.
func Late(lease time.Duration) time.Duration { return max(Time(lease)/2, 500*time.Millisecond) }

// Do sends a call with a batch by its own way. If it fails, or is [Late], it is sent by the
// other way too. Do returns the first answer that is no failure, or the cause of ctx if that
// ends first. own and other get the calls of a batch, and return an error for each, in their
// order, under a context that does not end with ctx: a call that was given up is sent all the
// same.
func (w *Ways[Call]) Do(ctx context.Context, call Call, own, other func(context.Context, []Call) []error, failed func(error) bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	first, i := w.own.add(ctx, call, own)
	late := time.NewTimer(Late(w.lease))
	defer late.Stop()
	select {
	case <-first.done:
		if err := first.errs[i]; !failed(err) {
			return err
		}
	case <-late.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	second, j := w.other.add(ctx, call, other)
	firstDone, secondDone := first.done, second.done
	for firstDone != nil || secondDone != nil {
		select {
		case <-firstDone:
			if err := first.errs[i]; !failed(err) {
				return err
			}
			firstDone = nil
		case <-secondDone:
			if err := second.errs[j]; !failed(err) {
				return err
			}
			secondDone = nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return first.errs[i]
}
