package batch

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errOwn, errOther = errors.New("own"), errors.New("other")

func TestOther(t *testing.T) {
	failed := func(err error) bool { return errors.Is(err, errOwn) || errors.Is(err, errOther) }
	answer := errors.New("an answer")
	send := func(o *Other, own, other func() []error) []error {
		ctx, end := context.WithTimeout(context.Background(), Time(lease))
		defer end()
		return o.Send(ctx, lease, own, other, failed)
	}
	returns := func(errs ...error) func() []error { return func() []error { return errs } }
	takes := func(d time.Duration, errs ...error) func() []error {
		return func() []error {
			time.Sleep(d)
			return errs
		}
	}
	never := func() []error { panic("it was not to be sent") }
	for _, test := range []struct {
		name       string
		own, other func() []error
		want       []error
		takes      time.Duration
	}{
		{"not needed", returns(nil, answer), never, []error{nil, answer}, 0},
		{"own fails", returns(errOwn, errOwn), returns(nil, answer), []error{nil, answer}, 0},
		{"own fails for some", returns(nil, answer, errOwn), returns(errOther, nil, nil), []error{nil, answer, nil}, 0},
		{"both fail", returns(errOwn, errOwn), returns(errOther, nil), []error{errOwn, nil}, 0},
		{"own hangs", takes(Time(lease), errOwn), takes(roundTrip, nil), []error{nil}, Time(lease)},
		{"own is slow", takes(Time(lease)/2+roundTrip, nil), takes(time.Hour, errOther), []error{nil}, Time(lease)/2 + roundTrip},
		{"own fails, the other hangs", takes(roundTrip, errOwn), takes(time.Hour, nil), []error{errOwn}, Time(lease)},
		{"own fails, the other panics", returns(errOwn), func() []error { panic("boom") }, []error{errOwn}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				require.Equal(t, test.want, send(new(Other), test.own, test.other))
				require.Equal(t, test.takes, time.Since(start))
				time.Sleep(time.Hour)
			})
		})
	}
	t.Run("one at a time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			o := new(Other)
			first := make(chan []error, 1)
			go func() { first <- send(o, returns(errOwn), takes(roundTrip, nil)) }()
			synctest.Wait()
			require.Equal(t, []error{errOwn}, send(o, returns(errOwn), never))
			require.Equal(t, []error{nil}, <-first)
			synctest.Wait()
			require.Equal(t, []error{nil}, send(o, returns(errOwn), returns(nil)))
		})
	})
}
