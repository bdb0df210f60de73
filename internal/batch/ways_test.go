package batch

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errOwn, errOther = errors.New("own"), errors.New("other")

func failed(err error) bool { return errors.Is(err, errOwn) || errors.Is(err, errOther) }

// takes returns a way that takes so long, and has one error for each call.
func takes(d time.Duration, err error) func(context.Context, []int) []error {
	return func(_ context.Context, calls []int) []error {
		time.Sleep(d)
		errs := make([]error, len(calls))
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
}

func TestWays(t *testing.T) {
	answer := errors.New("an answer")
	half := Late(lease)
	for _, test := range []struct {
		name       string
		own, other func(context.Context, []int) []error
		want       error
		takes      time.Duration
	}{
		{"own succeeds", takes(half-1, nil), takes(0, errOther), nil, half - 1},
		{"own answers", takes(roundTrip, answer), takes(0, errOther), answer, roundTrip},
		{"own fails", takes(roundTrip, errOwn), takes(roundTrip, nil), nil, 2 * roundTrip},
		{"both fail", takes(roundTrip, errOwn), takes(roundTrip, errOther), errOwn, 2 * roundTrip},
		{"own hangs", takes(time.Hour, nil), takes(roundTrip, answer), answer, half + roundTrip},
		{"own is slow, the other slower", takes(half+roundTrip, nil), takes(time.Hour, nil), nil, half + roundTrip},
		{"own is slow and fails", takes(half+roundTrip, errOwn), takes(4*roundTrip, nil), nil, half + 4*roundTrip},
		{"both hang", takes(time.Hour, nil), takes(time.Hour, nil), context.DeadlineExceeded, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, end := context.WithTimeout(t.Context(), time.Minute)
				defer end()
				start := time.Now()
				require.Equal(t, test.want, NewWays[int](lease).Do(ctx, 0, test.own, test.other, failed))
				require.Equal(t, test.takes, time.Since(start))
				time.Sleep(time.Hour)
			})
		})
	}
}

// Calls that come while a batch goes by the other way go together with the next, however
// soon their own way fails.
func TestTheOtherWayTakesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := NewWays[int](lease), new(store)
		var all sync.WaitGroup
		start := time.Now()
		for call := range 100 {
			all.Go(func() {
				require.NoError(t, w.Do(t.Context(), 2*call, takes(0, errOwn), s.taking(Time(lease)-roundTrip), failed))
			})
			synctest.Wait()
		}
		all.Wait()
		require.Len(t, s.sent, 2)
		require.Len(t, s.sent[1], 99)
		require.Equal(t, 2*(Time(lease)-roundTrip), time.Since(start))
	})
}

// One by the other way that hangs holds up the next for a time, and ends after another.
func TestTheOtherWayThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWays[int](lease)
		start := time.Now()
		hangs := func(ctx context.Context, calls []int) []error {
			<-ctx.Done()
			return make([]error, len(calls))
		}
		var all sync.WaitGroup
		all.Go(func() { _ = w.Do(t.Context(), 0, takes(0, errOwn), hangs, failed) })
		synctest.Wait()
		require.NoError(t, w.Do(t.Context(), 2, takes(0, errOwn), takes(roundTrip, nil), failed))
		require.Equal(t, Time(lease)+roundTrip, time.Since(start))
		all.Wait()
		require.Equal(t, mostTime, time.Since(start))
	})
}
