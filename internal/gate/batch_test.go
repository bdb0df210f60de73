package gate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBatches(t *testing.T) {
	const patience, roundTrip = time.Second, 100 * time.Millisecond
	var (
		mu   sync.Mutex
		sent [][]int
	)
	send := func(takes time.Duration) func([]int) []error {
		return func(calls []int) []error {
			mu.Lock()
			sent = append(sent, calls)
			mu.Unlock()
			time.Sleep(takes)
			errs := make([]error, len(calls))
			for i, call := range calls {
				if call%2 == 1 {
					errs[i] = fmt.Errorf("of %d", call)
				}
			}
			return errs
		}
	}
	t.Run("what comes meanwhile goes with the next", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sent = nil
			b := NewBatches[int]()
			var all sync.WaitGroup
			start := time.Now()
			for call := range 100 {
				all.Go(func() {
					err := b.Do(t.Context(), call, patience, send(roundTrip))
					if call%2 == 1 {
						require.EqualError(t, err, fmt.Sprint("of ", call))
					} else {
						require.NoError(t, err)
					}
				})
				if call == 0 {
					synctest.Wait() // It is on its way alone.
				}
			}
			all.Wait()
			require.Len(t, sent, 2)
			require.Equal(t, []int{0}, sent[0])
			require.Len(t, sent[1], 99)
			require.Equal(t, 2*roundTrip, time.Since(start))
		})
	})
	t.Run("beside one that hangs another is sent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sent = nil
			b := NewBatches[int]()
			ctx, give := context.WithCancelCause(t.Context())
			hung := make(chan error)
			go func() { hung <- b.Do(ctx, 0, patience, send(time.Hour)) }()
			synctest.Wait()
			start := time.Now()
			require.NoError(t, b.Do(t.Context(), 2, patience, send(roundTrip)))
			require.Equal(t, patience+roundTrip, time.Since(start))
			give(errors.New("given up"))
			require.EqualError(t, <-hung, "given up")
			require.NoError(t, b.Do(t.Context(), 4, patience, send(roundTrip)))
			require.Equal(t, [][]int{{0}, {2}, {4}}, sent)
			time.Sleep(time.Hour)
		})
	})
	t.Run("the shortest patience counts for all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := NewBatches[int]()
			require.NoError(t, b.Do(t.Context(), 0, patience, send(roundTrip)))
			go func() { _ = b.Do(t.Context(), 2, time.Hour, send(2*time.Hour)) }() // It hangs.
			synctest.Wait()
			start := time.Now()
			require.NoError(t, b.Do(t.Context(), 4, patience, send(roundTrip)))
			require.Equal(t, patience+roundTrip, time.Since(start))
			time.Sleep(2 * time.Hour)
		})
	})
	t.Run("a panic is an error of each", func(t *testing.T) {
		b := NewBatches[int]()
		for range 2 {
			require.EqualError(t, b.Do(t.Context(), 0, patience, func([]int) []error { panic("boom") }), "panic: boom")
		}
	})
	t.Run("one that is given up is sent all the same", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sent = nil
			b := NewBatches[int]()
			go func() { _ = b.Do(t.Context(), 0, patience, send(roundTrip)) }()
			synctest.Wait()
			ctx, give := context.WithCancel(t.Context())
			time.AfterFunc(roundTrip/2, give)
			require.ErrorIs(t, b.Do(ctx, 2, patience, send(roundTrip)), context.Canceled)
			require.ErrorIs(t, b.Do(ctx, 6, patience, send(roundTrip)), context.Canceled, "it is not sent")
			require.NoError(t, b.Do(t.Context(), 4, patience, send(roundTrip)))
			require.Equal(t, [][]int{{0}, {2, 4}}, sent)
		})
	})
}
