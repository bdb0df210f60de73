package idempotency_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

const century = 100 * 365 * 24 * time.Hour

// memoryProbe makes the calls of a test on a Memory. Each key has a claim of its
// own.
type memoryProbe struct {
	*testing.T
	m *idempotency.Memory
}

func newProbe(t *testing.T, opts ...idempotency.MemoryOption) *memoryProbe {
	return &memoryProbe{T: t, m: idempotency.NewMemory(opts...)}
}

func (p *memoryProbe) claim(key string, terms idempotency.Terms) error {
	p.Helper()
	_, claimed, err := p.m.Claim(p.Context(), keyOf(key), claimOf(key), terms)
	require.Equal(p, err == nil, claimed, key)
	return err
}

func (p *memoryProbe) renew(key string, terms idempotency.Terms, progress []byte) error {
	return p.m.Renew(p.Context(), keyOf(key), claimOf(key), terms, progress)
}

func (p *memoryProbe) complete(key string, response []byte, expiry time.Duration) error {
	return p.m.Complete(p.Context(), keyOf(key), claimOf(key), response, expiry)
}

func (p *memoryProbe) release(key string, trace time.Duration) error {
	return p.m.Release(p.Context(), keyOf(key), claimOf(key), trace)
}

// store claims and completes.
func (p *memoryProbe) store(key string, response []byte, expiry time.Duration) {
	p.Helper()
	require.NoError(p, p.claim(key, lease(time.Minute)))
	require.NoError(p, p.complete(key, response, expiry))
}

func (p *memoryProbe) lookup(key string) (rec idempotency.Record, left time.Duration, ok bool) {
	p.Helper()
	rec, left, ok, err := p.m.Lookup(p.Context(), keyOf(key))
	require.NoError(p, err)
	return rec, left, ok
}

func (p *memoryProbe) requireRecord(key string, want idempotency.Record) {
	p.Helper()
	rec, _, ok := p.lookup(key)
	require.True(p, ok, "%s is gone", key)
	want.Claim = claimOf(key)
	require.Equal(p, want, rec, key)
}

func (p *memoryProbe) requireOutstanding(key string) {
	p.Helper()
	p.requireRecord(key, idempotency.Record{State: idempotency.StateOutstanding})
}

func (p *memoryProbe) requireInterrupted(key string, progress []byte) {
	p.Helper()
	p.requireRecord(key, idempotency.Record{State: idempotency.StateInterrupted, Progress: progress})
}

func (p *memoryProbe) requireStored(key string, response []byte) {
	p.Helper()
	p.requireRecord(key, idempotency.Record{State: idempotency.StateCompleted, Response: response})
}

// requireProgress claims a key for an hour and keeps a progress with it.
func (p *memoryProbe) requireProgress(key string, progress []byte) {
	p.Helper()
	require.NoError(p, p.claim(key, traced(time.Hour, time.Hour)))
	require.NoError(p, p.renew(key, traced(time.Hour, time.Hour), progress))
	p.requireRecord(key, idempotency.Record{State: idempotency.StateOutstanding, Progress: progress})
}

func (p *memoryProbe) requireGone(key string) {
	p.Helper()
	_, _, ok := p.lookup(key)
	require.False(p, ok, "%s is still held", key)
}

func TestMemoryTimes(t *testing.T) {
	for _, d := range []time.Duration{1, time.Second, 24 * time.Hour, century} {
		t.Run(d.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProbe(t)
				time.Sleep(time.Minute)
				require.NoError(t, p.claim("claim", lease(d)))
				require.NoError(t, p.claim("claimed again", lease(2*d)))
				require.NoError(t, p.claim("claimed again", lease(d)))
				require.NoError(t, p.claim("renewed", lease(2*d)))
				require.NoError(t, p.renew("renewed", lease(d), nil))
				require.NoError(t, p.renew("restored", lease(d), nil))
				require.NoError(t, p.claim("traced", traced(d, d)))
				require.NoError(t, p.claim("released", lease(2*d)))
				require.NoError(t, p.release("released", d))
				require.NoError(t, p.release("released where nothing was", d))
				p.store("response", []byte("{}"), d)
				// Neither a renewal, nor a second Complete, nor a Release alters a
				// response.
				require.NoError(t, p.renew("response", traced(2*d, d), []byte("progress")))
				require.NoError(t, p.complete("response", []byte("other"), 2*d))
				require.NoError(t, p.release("response", 0))
				require.NoError(t, p.release("response", 2*d))

				outstanding := []string{"claim", "claimed again", "renewed", "restored"}
				released := []string{"released", "released where nothing was"}
				time.Sleep(d - 1)
				for _, key := range outstanding {
					p.requireOutstanding(key)
				}
				for _, key := range released {
					p.requireInterrupted(key, nil)
				}
				p.requireOutstanding("traced")
				p.requireStored("response", []byte("{}"))
				time.Sleep(time.Nanosecond)
				for _, key := range append(append(outstanding, released...), "response") {
					p.requireGone(key)
				}
				for range 2 {
					p.requireInterrupted("traced", nil)
					time.Sleep(d / 2)
				}
				if d > 1 {
					p.requireGone("traced")
				}
			})
		})
	}
}

// Lookup tells how long it is until a record ends.
func TestMemoryLookupLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t)
		require.NoError(t, p.claim("claim", lease(time.Minute)))
		require.NoError(t, p.claim("traced", traced(time.Minute, time.Hour)))
		require.NoError(t, p.claim("traced for ever", traced(time.Minute, idempotency.Forever)))
		require.NoError(t, p.release("released", 2*time.Hour))
		p.store("response", nil, 3*time.Hour)
		p.store("response for ever", nil, idempotency.Forever)
		time.Sleep(time.Second)
		for key, want := range map[string]time.Duration{
			"claim": 59 * time.Second, "traced": time.Hour + 59*time.Second, "traced for ever": idempotency.Forever,
			"released": 2*time.Hour - time.Second, "response": 3*time.Hour - time.Second, "response for ever": idempotency.Forever,
		} {
			_, left, ok := p.lookup(key)
			require.True(t, ok, key)
			require.Equal(t, want, left, key)
		}
	})
}

// A lease is renewed from the time of the call, as often as it is asked for.
func TestMemoryRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t)
		require.NoError(t, p.claim("k", lease(30*time.Second)))
		for range 100 {
			time.Sleep(20 * time.Second)
			require.NoError(t, p.renew("k", lease(30*time.Second), nil))
		}
		time.Sleep(30*time.Second - 1)
		p.requireOutstanding("k")
		time.Sleep(time.Nanosecond)
		p.requireGone("k")
		// Where nothing is held it takes effect as well.
		require.NoError(t, p.renew("k", lease(time.Second), nil))
		p.requireOutstanding("k")
		time.Sleep(time.Second)
		// A claim that is over is another's to claim, and then lost to its first owner.
		other := claimOf("other")
		require.Zero(t, mustClaim(t, p.m, keyOf("k"), other, lease(time.Minute)))
		require.ErrorIs(t, p.renew("k", lease(time.Minute), []byte("progress")), idempotency.ErrClaimLost)
		require.ErrorIs(t, p.complete("k", nil, time.Minute), idempotency.ErrClaimLost)
		require.NoError(t, p.release("k", 0))
		require.NoError(t, p.release("k", time.Hour))
		rec, left, ok := p.lookup("k")
		require.True(t, ok, "a Release deleted another's claim")
		require.Equal(t, idempotency.Record{Claim: other, State: idempotency.StateOutstanding}, rec)
		require.Equal(t, time.Minute, left)
	})
}

// A run that was interrupted is its own token's to renew, claim again and
// complete, until another takes it over.
func TestMemoryInterruptedRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t)
		terms := traced(time.Minute, time.Hour)
		require.NoError(t, p.claim("k", terms))
		time.Sleep(time.Minute)
		p.requireInterrupted("k", nil)
		require.NoError(t, p.renew("k", terms, []byte("step 1")))
		p.requireRecord("k", idempotency.Record{State: idempotency.StateOutstanding, Progress: []byte("step 1")})
		time.Sleep(time.Minute)
		p.requireInterrupted("k", []byte("step 1"))
		require.Zero(t, mustClaim(t, p.m, keyOf("k"), claimOf("k"), terms))
		p.requireRecord("k", idempotency.Record{State: idempotency.StateOutstanding, Progress: []byte("step 1")})
		time.Sleep(time.Minute)

		first := claimOf("k")
		retry := retryOf(first, "retry")
		shown := idempotency.Record{Claim: first, State: idempotency.StateInterrupted, Progress: []byte("step 1")}
		require.Equal(t, shown, mustHold(t, p.m, keyOf("k"), retry, terms), "without TakeOver it is shown")
		takeOver := idempotency.Terms{Lease: time.Minute, Trace: time.Minute, TakeOver: true}
		require.Equal(t, shown.Claim, mustHold(t, p.m, keyOf("k"), claimOf("another request"), takeOver).Claim)
		taken := idempotency.Record{Claim: retry, State: idempotency.StateInterrupted, Progress: []byte("step 1")}
		require.Equal(t, taken, mustClaim(t, p.m, keyOf("k"), retry, takeOver))
		require.ErrorIs(t, p.complete("k", nil, time.Hour), idempotency.ErrClaimLost)

		// The longest trace stays, through renewals and a release.
		_, left, _ := p.lookup("k")
		require.Equal(t, time.Minute+time.Hour, left)
		require.NoError(t, p.m.Renew(t.Context(), keyOf("k"), retry, lease(time.Minute), []byte("step 1, step 2")))
		require.NoError(t, p.m.Release(t.Context(), keyOf("k"), retry, time.Second))
		rec, left, ok := p.lookup("k")
		require.True(t, ok)
		taken.Progress = []byte("step 1, step 2")
		require.Equal(t, taken, rec)
		require.Equal(t, time.Hour, left)
		require.NoError(t, p.m.Release(t.Context(), keyOf("k"), retry, 2*time.Hour))
		_, left, _ = p.lookup("k")
		require.Equal(t, 2*time.Hour, left)
		require.NoError(t, p.m.Complete(t.Context(), keyOf("k"), retry, []byte("{}"), time.Minute))
		rec, _, _ = p.lookup("k")
		require.Equal(t, idempotency.Record{Claim: retry, State: idempotency.StateCompleted, Response: []byte("{}")}, rec)
	})
}

// A claim that takes over keeps the trace that a Release has left.
func TestMemoryTraces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t)
		require.NoError(t, p.claim("k", lease(time.Minute)))
		require.NoError(t, p.release("k", time.Hour))
		takeOver := idempotency.Terms{Lease: time.Minute, Trace: time.Second, TakeOver: true}
		mustClaim(t, p.m, keyOf("k"), retryOf(claimOf("k"), "retry"), takeOver)
		_, left, _ := p.lookup("k")
		require.Equal(t, time.Minute+time.Hour, left)

		// Any other claim has the trace that its last terms say.
		require.NoError(t, p.claim("other", traced(time.Minute, time.Hour)))
		for _, trace := range []time.Duration{time.Second, 0, time.Hour} {
			require.NoError(t, p.renew("other", traced(time.Minute, trace), nil))
			_, left, _ = p.lookup("other")
			require.Equal(t, time.Minute+trace, left)
		}
	})
}

// Sums of times saturate at Forever.
func TestMemoryForever(t *testing.T) {
	for _, d := range []time.Duration{idempotency.Forever, idempotency.Forever - 1} {
		t.Run(d.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProbe(t)
				time.Sleep(time.Hour) // so that the sum of times overflows
				require.NoError(t, p.claim("claim", lease(d)))
				require.NoError(t, p.claim("renewed", lease(time.Second)))
				require.NoError(t, p.renew("renewed", traced(d, d), nil))
				require.NoError(t, p.claim("traced", traced(time.Second, d)))
				require.NoError(t, p.release("released", d))
				p.store("response", []byte("{}"), d)
				time.Sleep(time.Second)
				for range 2 {
					p.requireOutstanding("claim")
					p.requireOutstanding("renewed")
					p.requireInterrupted("traced", nil)
					p.requireInterrupted("released", nil)
					p.requireStored("response", []byte("{}"))
					time.Sleep(century)
					for i := range 20 { // Other calls drop what is over.
						require.NoError(t, p.claim(numbered(i), lease(time.Second)))
					}
				}
				require.NoError(t, p.renew("claim", lease(time.Second), nil), "a lease for ever can be made shorter")
				time.Sleep(time.Second)
				p.requireGone("claim")
			})
		})
	}
}

// Records whose time is over are dropped by later claims of other keys, long
// before the bound is met, and no goroutine does it.
func TestMemoryDropsWhatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t)
		const n = 200
		var texts []weak.Pointer[byte]
		for i := range n {
			// Tiny ones would share their memory. Every other one is interrupted:
			// they lie apart from responses.
			text := filled(64)
			if i%2 == 0 {
				p.store(numbered(i), text, time.Hour)
			} else {
				require.NoError(t, p.renew(numbered(i), lease(time.Minute), text))
				require.NoError(t, p.release(numbered(i), time.Hour))
			}
			texts = append(texts, weak.Make(&text[0]))
		}
		alive := func() (n int) {
			runtime.GC()
			for _, r := range texts {
				if r.Value() != nil {
					n++
				}
			}
			return n
		}
		require.Equal(t, n, alive())
		time.Sleep(time.Hour)
		synctest.Wait()
		var stacks strings.Builder
		require.NoError(t, pprof.Lookup("goroutine").WriteTo(&stacks, 2))
		require.NotContains(t, stacks.String(), "idempotency.(*Memory)", "a goroutine of its own")
		require.NotContains(t, stacks.String(), "idempotency.NewMemory", "a goroutine of its own")
		for i := range n / 4 { // More are dropped than are claimed.
			require.NoError(t, p.claim(numbered(n+i), lease(time.Hour)))
		}
		require.Zero(t, alive(), "records whose time is over are still held")
		runtime.KeepAlive(p)
	})
}

// A record that a caller holds is never altered, whatever becomes of the key.
func TestMemoryRecordsAreNotAltered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t, idempotency.WithMaxBytes(50_000))
		other := claimOf("other")
		hold := func() idempotency.Record { return mustHold(t, p.m, keyOf("k"), other, lease(time.Minute)) }
		terms := traced(time.Minute, time.Hour)
		require.NoError(t, p.claim("k", terms))
		outstanding := hold()
		require.NoError(t, p.renew("k", terms, []byte("step 1")))
		withProgress := hold()
		require.NoError(t, p.renew("k", terms, []byte("step 1, step 2")))
		time.Sleep(time.Minute)
		interrupted := hold()
		require.NoError(t, p.complete("k", []byte("{}"), time.Hour))
		completed := hold()
		require.NoError(t, p.complete("k", []byte("another"), time.Hour))
		for i := range 10 { // It is dropped under pressure.
			p.store(numbered(i), filled(20_000), 24*time.Hour)
		}
		p.requireGone("k")
		p.store("k", []byte("another"), time.Hour)

		mine := claimOf("k")
		require.Equal(t, idempotency.Record{Claim: mine, State: idempotency.StateOutstanding}, outstanding)
		require.Equal(t, idempotency.Record{Claim: mine, State: idempotency.StateOutstanding, Progress: []byte("step 1")}, withProgress)
		require.Equal(t, idempotency.Record{Claim: mine, State: idempotency.StateInterrupted, Progress: []byte("step 1, step 2")}, interrupted)
		require.Equal(t, idempotency.Record{Claim: mine, State: idempotency.StateCompleted, Response: []byte("{}")}, completed)
	})
}

// One of many owns a key. What the others are shown they read without a lock,
// while its owner renews and completes.
func TestMemoryConcurrentUse(t *testing.T) {
	const workers, keys, rounds = 8, 5, 400
	m := idempotency.NewMemory(idempotency.WithMaxBytes(20_000)) // so little that responses are dropped all the time
	var owners [keys]atomic.Int32
	var ran, shown atomic.Int32
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			ctx := context.Background()
			for round := range rounds {
				i := rand.IntN(keys)
				key, claim := keyOf(numbered(i)), claimOf(fmt.Sprint(worker, " ", round))
				text := bytes.Repeat(claim.Token[:], 10)
				terms := traced(time.Hour, time.Hour)
				rec, claimed, err := m.Claim(ctx, key, claim, terms)
				switch {
				case err != nil:
					t.Errorf("claim: %v", err)
				case !claimed:
					shown.Add(1)
					for _, got := range [][]byte{rec.Progress, rec.Response} {
						if len(got) > 0 && !bytes.HasPrefix(bytes.Repeat(rec.Claim.Token[:], 300), got) {
							t.Errorf("a torn record: %x", got)
						}
					}
				case claimed:
					ran.Add(1)
					if n := owners[i].Add(1); n != 1 {
						t.Errorf("%d own one key", n)
					}
					for n := 1; n <= 3; n++ {
						if err := m.Renew(ctx, key, claim, terms, text[:20*n]); err != nil {
							t.Errorf("renew: %v", err)
						}
						runtime.Gosched()
					}
					owners[i].Add(-1)
					if rand.IntN(3) == 0 {
						err = m.Release(ctx, key, claim, 0)
					} else {
						err = m.Complete(ctx, key, claim, bytes.Repeat(claim.Token[:], 250), time.Hour)
					}
					if err != nil {
						t.Errorf("complete or release: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	require.Positive(t, ran.Load())
	require.Positive(t, shown.Load())
}

func TestMemoryContextEnded(t *testing.T) {
	p := newProbe(t)
	p.store("stored", []byte("{}"), time.Hour)
	require.NoError(t, p.claim("claimed", lease(time.Hour)))
	seen, _, _ := p.lookup("claimed")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, claimed, err := p.m.Claim(ctx, keyOf("new"), claimOf("new"), lease(time.Hour))
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, claimed)
	p.requireGone("new")
	key, claim := keyOf("claimed"), claimOf("claimed")
	require.ErrorIs(t, p.m.Complete(ctx, key, claim, nil, time.Hour), context.Canceled)
	require.ErrorIs(t, p.m.Renew(ctx, key, claim, lease(time.Hour), []byte("progress")), context.Canceled)
	require.ErrorIs(t, p.m.Release(ctx, key, claim, 0), context.Canceled)
	_, _, ok, err := p.m.Lookup(ctx, key)
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, ok)
	forgotten, err := p.m.Forget(ctx, key, seen)
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, forgotten)
	p.requireOutstanding("claimed")
}

func TestNewMemoryPanics(t *testing.T) {
	for _, test := range []struct {
		name, text string
		opts       []idempotency.MemoryOption
	}{
		{"no room", "idempotency: WithMaxBytes: ", []idempotency.MemoryOption{idempotency.WithMaxBytes(0)}},
		{"less than no room", "idempotency: WithMaxBytes: ", []idempotency.MemoryOption{idempotency.WithMaxBytes(-1)}},
		{"the least number", "idempotency: WithMaxBytes: ", []idempotency.MemoryOption{idempotency.WithMaxBytes(math.MinInt64)}},
		{"nil option", "idempotency: NewMemory: nil option", []idempotency.MemoryOption{nil}},
		{"nil option after another", "idempotency: NewMemory: nil option", []idempotency.MemoryOption{idempotency.WithMaxBytes(1), nil}},
	} {
		t.Run(test.name, func(t *testing.T) {
			requirePanics(t, test.text, func() { idempotency.NewMemory(test.opts...) })
		})
	}
	t.Run("the last of two wins", func(t *testing.T) {
		p := newProbe(t, idempotency.WithMaxBytes(0), idempotency.WithMaxBytes(1))
		require.ErrorIs(t, p.claim("k", lease(time.Hour)), idempotency.ErrFull, "there is no room in one byte")
		p = newProbe(t, idempotency.WithMaxBytes(1), idempotency.WithMaxBytes(math.MaxInt64))
		require.NoError(t, p.claim("k", lease(time.Hour)))
	})
	t.Run("64 MiB by default", func(t *testing.T) {
		p := newProbe(t)
		require.NoError(t, p.claim("k", lease(time.Hour)))
		require.ErrorIs(t, p.complete("k", filled(64<<20), time.Hour), idempotency.ErrFull)
		require.NoError(t, p.complete("k", filled(63<<20), time.Hour))
	})
}
