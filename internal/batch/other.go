package batch

import (
	"context"
	"slices"
	"sync/atomic"
	"time"
)

// Other is another way to the store, for batches that do not get there by their own: over
// connections that are there already, when no new one can be had. One batch at a time takes
// it, so that those that hang do not use up what others need too. It is safe for concurrent
// use, and its zero value is ready for it.
type Other struct{ busy atomic.Bool }

// Send returns what own returns, an error for each call. If some of them failed, or own takes
// longer than half of [Time], the batch is sent by other too, unless that is busy. A call
// that failed by its own way has the error of the other, if it did not fail there.
func (o *Other) Send(ctx context.Context, lease time.Duration, own, other func() []error, failed func(error) bool) []error {
	found := make(chan []error, 1)
	send := func() {
		defer func() {
			_ = recover() // It failed. Here a panic would end the process.
			close(found)
		}()
		if o.busy.CompareAndSwap(false, true) {
			defer o.busy.Store(false)
			found <- other()
		}
	}
	late := time.AfterFunc(Time(lease)/2, send)
	errs := own()
	switch {
	case !slices.ContainsFunc(errs, failed):
		late.Stop()
		return errs
	case late.Stop():
		go send()
	}
	var others []error // none if the way is busy
	select {
	case others = <-found:
	case <-ctx.Done():
		select {
		case others = <-found: // It has come while own took all the time.
		default:
		}
	}
	for i, err := range others {
		if failed(errs[i]) && !failed(err) {
			errs[i] = err
		}
	}
	return errs
}
