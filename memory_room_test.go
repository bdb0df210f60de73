package idempotency_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// filled returns n bytes, with no room for more behind them.
func filled(n int) []byte { return bytes.Repeat([]byte("b"), n) }

func numbered(i int) string { return fmt.Sprintf("key-%06d", i) }

// fillWithClaims claims keys until there is no more room, and returns how many.
func (p *memoryProbe) fillWithClaims(terms idempotency.Terms) int {
	p.Helper()
	for i := 0; ; i++ {
		if err := p.claim(numbered(i), terms); err != nil {
			require.ErrorIs(p, err, idempotency.ErrFull)
			return i
		}
	}
}

func TestMemoryDropsNearestToExpiry(t *testing.T) {
	const size, fit = 10_000, 10
	p := newProbe(t, idempotency.WithMaxBytes(size*(fit+1)-2000)) // room for 10 responses and a few claims
	order := rand.Perm(3 * fit)
	stored := []int{}
	for _, i := range order {
		p.store(numbered(i), filled(size), time.Duration(i+1)*time.Hour)
		// The one that is nearest to its expiry made room for the new one, and
		// no more than that one.
		slices.Sort(stored)
		stored = append(stored[max(0, len(stored)-fit+1):], i)
		for j := range 3 * fit {
			if slices.Contains(stored, j) {
				p.requireStored(numbered(j), filled(size))
			} else {
				p.requireGone(numbered(j))
			}
		}
	}
}

func TestMemoryDropsForeverLast(t *testing.T) {
	const size = 10_000
	p := newProbe(t, idempotency.WithMaxBytes(4*size))
	p.store("for ever", filled(size), idempotency.Forever)
	p.store("a year", filled(size), 365*24*time.Hour)
	p.store("an hour", filled(size), time.Hour)
	p.store("a century", filled(size), century)
	p.requireGone("an hour")
	p.store("two centuries", filled(size), 2*century)
	p.requireGone("a year")
	for _, name := range []string{"for ever", "a century", "two centuries"} {
		p.requireStored(name, filled(size))
	}
}

// However much is put into it, no more is found in it than the bound allows.
func TestMemoryIsBounded(t *testing.T) {
	const bound = 1 << 20
	for _, test := range []struct {
		name     string
		response func() []byte
	}{
		{"all sizes", func() []byte { return make([]byte, rand.IntN(40_000)) }},
		{"sizes that just fit", func() []byte { return make([]byte, bound*9/10) }},
		{"nothing", func() []byte { return nil }},
		{"a few bytes of a large array", func() []byte { return make([]byte, 10, 40_000) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProbe(t, idempotency.WithMaxBytes(bound))
			const perRecord = 100 // far less than what a record really takes
			count := 0
			for given := 0; given < 5*bound; count++ {
				response := test.response()
				p.store(numbered(count), response, time.Hour+rand.N(time.Hour))
				given += cap(response) + perRecord
			}
			total, found := 0, 0
			for i := range count {
				if rec, _, ok := p.lookup(numbered(i)); ok {
					found++
					total += cap(rec.Response) + perRecord
				}
			}
			require.LessOrEqual(t, total, bound)
			require.Positive(t, found, "what fits is kept")
			require.Less(t, found, count)
		})
	}
}

// Claims and responses share the bound.
func TestMemoryBoundIsShared(t *testing.T) {
	const bound = 1 << 20
	p := newProbe(t, idempotency.WithMaxBytes(bound))
	require.NoError(t, p.renew("claim", lease(time.Hour), filled(bound/2)))
	total := bound / 2
	for i := range 50 {
		p.store(numbered(i), filled(40_000), time.Hour)
	}
	for i := range 50 {
		if rec, _, ok := p.lookup(numbered(i)); ok {
			total += len(rec.Response)
		}
	}
	require.LessOrEqual(t, total, bound)
	require.Greater(t, total, bound-100_000)
}

// The bound is close to what records really take in the process's memory, small
// ones too, which are mostly overhead.
func TestMemoryBoundIsHonest(t *testing.T) {
	const bound = 8 << 20
	for _, test := range []struct {
		name string
		put  func(p *memoryProbe, k string)
	}{
		{"claims", func(p *memoryProbe, k string) { _ = p.claim(k, lease(time.Hour)) }},
		{"interrupted", func(p *memoryProbe, k string) { _ = p.m.Release(p.Context(), keyOf(k), claimOf(k), time.Hour) }},
		{"progress", func(p *memoryProbe, k string) { _ = p.renew(k, traced(time.Hour, time.Hour), make([]byte, 20)) }},
		{"small responses", func(p *memoryProbe, k string) { p.store(k, make([]byte, 40), time.Hour) }},
		{"responses of 1 kB", func(p *memoryProbe, k string) { p.store(k, make([]byte, 1000), time.Hour) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProbe(t, idempotency.WithMaxBytes(bound))
			before := heap()
			for i := range bound / 100 { // more than fit
				test.put(p, numbered(i))
			}
			after := heap()
			require.LessOrEqual(t, int(after-before), bound*4/3, "the records take %.2f times the bound", float64(after-before)/bound)
			runtime.KeepAlive(p)
		})
	}
}

func heap() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

func TestMemoryFullOfClaims(t *testing.T) {
	p := newProbe(t, idempotency.WithMaxBytes(100_000))
	terms := lease(idempotency.Forever)
	n := p.fillWithClaims(terms)
	require.Greater(t, n, 100_000/1000, "a claim takes less than 1 kB")
	require.Less(t, n, 100_000/100)

	// It stays full, and keeps what it holds.
	for i := n; i < 2*n; i++ {
		require.ErrorIs(t, p.claim(numbered(i), terms), idempotency.ErrFull)
	}
	require.ErrorIs(t, p.complete("new", nil, time.Minute), idempotency.ErrFull, "a response where nothing is held")
	require.ErrorIs(t, p.renew("new", terms, nil), idempotency.ErrFull, "a renewal where nothing is held")
	require.ErrorIs(t, p.release("new", time.Minute), idempotency.ErrFull, "a trace where nothing is held")
	require.NoError(t, p.release("new", 0))
	p.requireGone("new")
	for i := range n {
		p.requireOutstanding(numbered(i))
		// A claim that is held can be claimed again by its own token, and renewed.
		require.NoError(t, p.claim(numbered(i), terms))
		require.NoError(t, p.renew(numbered(i), terms, nil))
		require.NoError(t, p.renew(numbered(i), terms, []byte{}))
	}

	// A response or a progress that does not fit leaves its claim, which can be
	// released.
	require.ErrorIs(t, p.complete(numbered(0), filled(2000), time.Hour), idempotency.ErrFull)
	require.ErrorIs(t, p.renew(numbered(0), terms, filled(2000)), idempotency.ErrFull)
	p.requireOutstanding(numbered(0))

	// Each release makes room for one.
	for i := range n {
		require.NoError(t, p.release(numbered(i), 0))
		require.NoError(t, p.claim(numbered(n+i), terms))
		require.ErrorIs(t, p.claim(numbered(i), terms), idempotency.ErrFull)
	}
	for i := range n {
		p.requireOutstanding(numbered(n + i))
	}
}

// An interrupted record takes the room of its claim: neither a release with a
// trace nor a claim that takes over needs more.
func TestMemoryFullStillInterruptsAndTakesOver(t *testing.T) {
	p := newProbe(t, idempotency.WithMaxBytes(50_000))
	p.requireProgress("with progress", filled(1000))
	n := p.fillWithClaims(lease(time.Hour))
	for i := range n {
		require.NoError(t, p.release(numbered(i), time.Hour))
		p.requireInterrupted(numbered(i), nil)
	}
	require.NoError(t, p.release("with progress", time.Hour))
	p.requireInterrupted("with progress", filled(1000))
	require.ErrorIs(t, p.claim("new", lease(time.Hour)), idempotency.ErrFull)

	first := claimOf("with progress")
	retry := retryOf(first, "retry")
	terms := idempotency.Terms{Lease: time.Hour, Trace: time.Hour, TakeOver: true}
	want := idempotency.Record{Claim: retry, State: idempotency.StateInterrupted, Progress: filled(1000)}
	for range 2 {
		require.Equal(t, want, mustClaim(t, p.m, keyOf("with progress"), retry, terms))
	}
	// A progress that is not longer needs no room either.
	require.NoError(t, p.m.Renew(t.Context(), keyOf("with progress"), retry, terms, make([]byte, 1000)))
	require.ErrorIs(t, p.m.Renew(t.Context(), keyOf("with progress"), retry, terms, make([]byte, 2000)), idempotency.ErrFull)
	require.NoError(t, p.m.Release(t.Context(), keyOf("with progress"), retry, 0))
	rec, _, ok := p.lookup("with progress")
	require.True(t, ok)
	require.Equal(t, want, rec)
}

// The bytes of a progress count, and only those that are held.
func TestMemoryProgressIsBounded(t *testing.T) {
	p := newProbe(t, idempotency.WithMaxBytes(100_000))
	terms := lease(time.Hour)
	require.NoError(t, p.claim("k", terms))
	for n := 1000; n <= 90_000; n += 1000 { // More than 4 MB in all.
		require.NoError(t, p.renew("k", terms, filled(n)))
	}
	require.ErrorIs(t, p.renew("k", terms, filled(110_000)), idempotency.ErrFull)
	rec, _, ok := p.lookup("k")
	require.True(t, ok)
	require.Equal(t, filled(90_000), rec.Progress)
	require.ErrorIs(t, p.renew("other", terms, filled(20_000)), idempotency.ErrFull)
	require.NoError(t, p.complete("k", filled(10), time.Hour))
	require.NoError(t, p.renew("other", terms, filled(90_000)), "the response takes the progress's place")
	p.requireStored("k", filled(10))
}

// A renewal with a progress that does not fit changes nothing at all.
func TestMemoryRenewThatDoesNotFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t, idempotency.WithMaxBytes(10_000))
		require.NoError(t, p.claim("k", traced(time.Minute, time.Minute)))
		require.NoError(t, p.renew("k", traced(time.Minute, time.Minute), []byte("step 1")))
		before, left, _ := p.lookup("k")
		require.ErrorIs(t, p.renew("k", traced(time.Hour, time.Hour), filled(20_000)), idempotency.ErrFull)
		after, leftAfter, ok := p.lookup("k")
		require.True(t, ok)
		require.Equal(t, before, after)
		require.Equal(t, left, leftAfter)
	})
}

// What cannot fit, even if everything that may be dropped were dropped, drops
// nothing.
func TestMemoryDropsNothingInVain(t *testing.T) {
	const bound = 100_000
	huge := filled(bound)
	for _, test := range []struct {
		name string
		call func(p *memoryProbe) error
		want error
	}{
		{"complete its claim", func(p *memoryProbe) error { return p.complete("claim", huge, time.Hour) }, idempotency.ErrFull},
		{"complete where nothing is held", func(p *memoryProbe) error { return p.complete("new", huge, time.Hour) }, idempotency.ErrFull},
		{"complete an interrupted run", func(p *memoryProbe) error { return p.complete("interrupted", huge, time.Hour) }, idempotency.ErrFull},
		{"progress", func(p *memoryProbe) error { return p.renew("claim", lease(time.Hour), huge) }, idempotency.ErrFull},
		{"progress where nothing is held", func(p *memoryProbe) error { return p.renew("new", lease(time.Hour), huge) }, idempotency.ErrFull},
		{"a lost claim", func(p *memoryProbe) error {
			return p.m.Complete(p.Context(), keyOf("claim"), claimOf("other"), huge, time.Hour)
		}, idempotency.ErrClaimLost},
		{"a response that is stored already", func(p *memoryProbe) error { return p.complete(numbered(0), huge, time.Hour) }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProbe(t, idempotency.WithMaxBytes(bound))
			for i := range 5 {
				p.store(numbered(i), filled(5_000), time.Duration(i+1)*time.Hour)
			}
			require.NoError(t, p.claim("claim", lease(time.Hour)))
			require.NoError(t, p.release("interrupted", time.Hour))
			require.ErrorIs(t, test.call(p), test.want)
			p.requireGone("new")
			for i := range 5 {
				p.requireStored(numbered(i), filled(5_000))
			}
			p.requireOutstanding("claim")
			p.requireInterrupted("interrupted", nil)
			require.NoError(t, p.complete("claim", filled(10), time.Hour), "a response that fits is stored all the same")
			p.requireStored("claim", filled(10))
		})
	}
}

// A record that needs room takes that of responses, never that of another claim
// or of an interrupted run.
func TestMemoryNeverDropsClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t, idempotency.WithMaxBytes(200_000))
		for i := range 20 {
			require.NoError(t, p.claim(fmt.Sprint("claim ", i), lease(time.Hour)))
			require.NoError(t, p.claim(fmt.Sprint("crashed ", i), traced(time.Second, time.Hour-time.Second)))
			require.NoError(t, p.release(fmt.Sprint("released ", i), time.Hour))
		}
		require.NoError(t, p.claim("claim for ever", lease(idempotency.Forever)))
		require.NoError(t, p.release("released for ever", idempotency.Forever))
		time.Sleep(time.Second)
		// Ten times the bound, kept for longer than the claims.
		for i := range 200 {
			p.store(numbered(i), filled(10_000), 24*time.Hour)
		}
		check := func() {
			t.Helper()
			for i := range 20 {
				p.requireOutstanding(fmt.Sprint("claim ", i))
				p.requireInterrupted(fmt.Sprint("crashed ", i), nil)
				p.requireInterrupted(fmt.Sprint("released ", i), nil)
			}
		}
		check()
		time.Sleep(time.Hour - time.Second - 1)
		check()
		for i := range 200 {
			p.store(numbered(1000+i), filled(10_000), 24*time.Hour)
		}
		check()
		time.Sleep(time.Nanosecond)
		for i := range 20 {
			for _, kind := range []string{"claim ", "crashed ", "released "} {
				p.requireGone(fmt.Sprint(kind, i))
			}
		}
		p.requireOutstanding("claim for ever")
		p.requireInterrupted("released for ever", nil)
	})
}

// Room comes back when time is over, of every kind of record, without a
// goroutine.
func TestMemoryRoomComesBack(t *testing.T) {
	for _, test := range []struct {
		name string
		fill func(p *memoryProbe) int
	}{
		{"leases", func(p *memoryProbe) int { return p.fillWithClaims(lease(time.Hour)) }},
		{"traces", func(p *memoryProbe) int { return p.fillWithClaims(traced(time.Minute, 59*time.Minute)) }},
		{"renewed leases", func(p *memoryProbe) int {
			n := p.fillWithClaims(lease(24 * time.Hour))
			for i := range n {
				require.NoError(p, p.renew(numbered(i), lease(time.Hour), nil))
			}
			return n
		}},
		{"released with a trace", func(p *memoryProbe) int {
			n := p.fillWithClaims(lease(idempotency.Forever))
			for i := range n {
				require.NoError(p, p.release(numbered(i), time.Hour))
			}
			return n
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProbe(t, idempotency.WithMaxBytes(100_000))
				n := test.fill(p)
				time.Sleep(time.Hour - 1)
				require.ErrorIs(t, p.claim("new", lease(time.Hour)), idempotency.ErrFull)
				time.Sleep(time.Nanosecond)
				// One record may need the room of many.
				p.store("new", filled(90_000), time.Hour)
				p.requireStored("new", filled(90_000))
				for i := range n {
					require.NoError(t, p.claim(numbered(i), lease(time.Hour)), "as many fit as before")
				}
			})
		})
	}
}

// Forget gives the room of a record back, whatever its state.
func TestMemoryForgetGivesRoomBack(t *testing.T) {
	p := newProbe(t, idempotency.WithMaxBytes(50_000))
	n := p.fillWithClaims(lease(time.Hour))
	for i := range n {
		if i%2 == 0 {
			require.NoError(t, p.release(numbered(i), time.Hour))
		}
		seen, _, ok := p.lookup(numbered(i))
		require.True(t, ok)
		forgotten, err := p.m.Forget(t.Context(), keyOf(numbered(i)), seen)
		require.NoError(t, err)
		require.True(t, forgotten)
	}
	require.NoError(t, p.complete("new", filled(49_000), time.Hour))
}
