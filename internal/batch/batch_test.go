package batch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// lease is one whose batches hold up the next for half a second at first, and for a tenth of
// a second in the end.
const lease, first, wait, roundTrip = Tries * wait, lease / 8, 100 * time.Millisecond, 20 * time.Millisecond

// store answers batches of calls: an odd call with an error.
type store struct {
	mu   sync.Mutex
	sent [][]int
}

// taking returns a send that takes so long.
func (s *store) taking(d time.Duration) func(context.Context, []int) []error {
	return func(_ context.Context, calls []int) []error {
		s.mu.Lock()
		s.sent = append(s.sent, calls)
		s.mu.Unlock()
		time.Sleep(d)
		errs := make([]error, len(calls))
		for i, call := range calls {
			if call%2 == 1 {
				errs[i] = fmt.Errorf("of %d", call)
			}
		}
		return errs
	}
}

// do sends a call, and returns its error, or the cause of ctx if that ends first.
func (q *queue[Call]) do(ctx context.Context, call Call, send func(context.Context, []Call) []error) error {
	mine, i := q.add(ctx, call, send)
	select {
	case <-mine.done:
		return mine.errs[i]
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// begin sends a call, and returns once it is on its way, or waits. After it, its error
// comes.
func begin(ctx context.Context, q *queue[int], call int, send func(context.Context, []int) []error) <-chan error {
	err := make(chan error, 1)
	go func() { err <- q.do(ctx, call, send) }()
	synctest.Wait()
	return err
}

func TestQueue(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, q *queue[int], s *store)
	}{
		{"what comes meanwhile goes with the next", goTogether},
		{"what waits already goes once", once},
		{"beside one that hangs another is sent", besideOneThatHangs},
		{"one that is given up is sent all the same", givenUpIsSent},
		{"one that is given up before is not sent", givenUpBefore},
		{"a batch has the values of its first call, and a time of its own", contextOfABatch},
		{"a panic is an error of each", panicIsAnError},
		{"no batch holds up the next for more than a second", atMostASecond},
		{"one that has succeeded is the beginning of a lease", successBegins},
		{"the less is left of the lease, the sooner another is sent beside those that hang", soonerAndSooner},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test.run(t, &queue[int]{lease: lease}, new(store)) })
		})
	}
}

func goTogether(t *testing.T, q *queue[int], s *store) {
	var all sync.WaitGroup
	start := time.Now()
	for call := range 100 {
		all.Go(func() {
			err := q.do(t.Context(), call, s.taking(roundTrip))
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
	require.Len(t, s.sent, 2)
	require.Equal(t, []int{0}, s.sent[0])
	require.Len(t, s.sent[1], 99)
	require.Equal(t, 2*roundTrip, time.Since(start))
}

func once(t *testing.T, q *queue[int], s *store) {
	begin(t.Context(), q, 0, s.taking(roundTrip))
	for _, call := range []int{2, 3, 2, 3} {
		begin(t.Context(), q, call, s.taking(roundTrip))
	}
	require.NoError(t, q.do(t.Context(), 2, s.taking(roundTrip)))
	require.Equal(t, [][]int{{0}, {2, 3}}, s.sent)
	require.EqualError(t, q.do(t.Context(), 3, s.taking(roundTrip)), "of 3")
}

func besideOneThatHangs(t *testing.T, q *queue[int], s *store) {
	ctx, give := context.WithCancelCause(t.Context())
	start := time.Now()
	end := start.Add(time.Hour)
	hung := begin(ctx, q, 0, s.taking(time.Hour))
	require.NoError(t, q.do(t.Context(), 2, s.taking(roundTrip)))
	require.Equal(t, first+roundTrip, time.Since(start))
	give(errors.New("given up"))
	require.EqualError(t, <-hung, "given up")
	start = time.Now()
	require.NoError(t, q.do(t.Context(), 4, s.taking(roundTrip)))
	require.Equal(t, roundTrip, time.Since(start), "what hangs holds up one batch only")
	require.Equal(t, [][]int{{0}, {2}, {4}}, s.sent)

	time.Sleep(time.Until(end) - wait/4)
	begin(t.Context(), q, 6, s.taking(wait/2))
	start = time.Now()
	require.NoError(t, q.do(t.Context(), 8, s.taking(roundTrip)))
	require.Equal(t, wait/2+roundTrip, time.Since(start), "the end of what has hung does not let the next go")
}

func givenUpIsSent(t *testing.T, q *queue[int], s *store) {
	begin(t.Context(), q, 0, s.taking(roundTrip))
	ctx, give := context.WithCancel(t.Context())
	waits := begin(ctx, q, 2, s.taking(roundTrip))
	give()
	require.ErrorIs(t, <-waits, context.Canceled)
	require.NoError(t, q.do(t.Context(), 4, s.taking(roundTrip)))
	require.Equal(t, [][]int{{0}, {2, 4}}, s.sent)
}

func givenUpBefore(t *testing.T, _ *queue[int], s *store) {
	ctx, give := context.WithCancelCause(t.Context())
	give(errors.New("given up"))
	w, send := NewWays[int](lease), s.taking(roundTrip)
	require.EqualError(t, w.Do(ctx, 0, send, send, failed), "given up")
	require.Empty(t, s.sent)
}

func contextOfABatch(t *testing.T, q *queue[int], s *store) {
	type value struct{}
	ctx, give := context.WithCancel(context.WithValue(t.Context(), value{}, "of the first"))
	start := time.Now()
	ended := make(chan time.Duration, 1)
	first := begin(ctx, q, 0, func(ctx context.Context, calls []int) []error {
		if ctx.Value(value{}) == "of the first" {
			<-ctx.Done()
			ended <- time.Since(start)
		}
		return make([]error, len(calls))
	})
	give()
	require.ErrorIs(t, <-first, context.Canceled)
	require.Equal(t, lease/3, <-ended)
	for given, want := range map[time.Duration]time.Duration{
		100 * time.Millisecond: 500 * time.Millisecond, 3 * time.Second: time.Second, time.Hour: 5 * time.Second,
	} {
		require.Equal(t, want, Time(given), given)
	}
}

func panicIsAnError(t *testing.T, q *queue[int], _ *store) {
	for range 2 {
		require.EqualError(t, q.do(t.Context(), 0, func(context.Context, []int) []error { panic("boom") }), "panic: boom")
	}
}

func atMostASecond(t *testing.T, _ *queue[int], s *store) {
	q := &queue[int]{lease: time.Hour}
	begin(t.Context(), q, 0, s.taking(time.Hour))
	start := time.Now()
	require.NoError(t, q.do(t.Context(), 2, s.taking(roundTrip)))
	require.Equal(t, time.Second+roundTrip, time.Since(start))
	time.Sleep(time.Hour)
}

func soonerAndSooner(t *testing.T, q *queue[int], _ *store) {
	var mu sync.Mutex
	var begun []time.Duration
	start := time.Now()
	hangs := func(ctx context.Context, calls []int) []error {
		mu.Lock()
		begun = append(begun, time.Since(start))
		mu.Unlock()
		time.Sleep(10 * lease)
		return slices.Repeat([]error{ctx.Err()}, len(calls))
	}
	for range 2 * lease / (wait / 4) { // Calls that wait are there at any time.
		begin(t.Context(), q, 0, hangs)
		time.Sleep(wait / 4)
	}
	time.Sleep(10 * lease) // They all end.
	mu.Lock()
	defer mu.Unlock()
	gap := func(i int) time.Duration { return begun[i+1] - begun[i] }
	require.Equal(t, first, gap(0))
	i := 0
	for ; begun[i+1] < lease; i++ {
		require.Equal(t, max((lease-begun[i])/8, wait), gap(i), "after %v", begun[i])
	}
	require.Equal(t, wait, gap(i-1))
	require.Less(t, i, Tries*2/3)
	i++ // The claims of that time are over: the next are at their beginning.
	require.Equal(t, first, gap(i))
}

func successBegins(t *testing.T, q *queue[int], s *store) {
	for range Tries * 3 / 4 { // Each hangs.
		begin(t.Context(), q, 0, s.taking(lease))
		time.Sleep(wait)
	}
	require.NoError(t, q.do(t.Context(), 0, s.taking(roundTrip)))
	begin(t.Context(), q, 0, s.taking(lease))
	start := time.Now()
	require.NoError(t, q.do(t.Context(), 0, s.taking(roundTrip)))
	require.Equal(t, first+roundTrip, time.Since(start))
	time.Sleep(lease)
}
