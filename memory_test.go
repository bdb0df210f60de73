package idempotency_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/idempotencytest"
	"github.com/stretchr/testify/require"
)

func TestMemoryConformance(t *testing.T) {
	idempotencytest.Run(t, func(*testing.T) idempotency.Backend { return idempotency.NewMemory() })
}

// A small bound holds the contract as a large one does.
func TestMemoryConformanceInLittleRoom(t *testing.T) {
	idempotencytest.Run(t, func(*testing.T) idempotency.Backend {
		return idempotency.NewMemory(idempotency.WithMaxBytes(16 << 20))
	})
}

const century = 100 * 365 * 24 * time.Hour

// memoryProbe makes the calls of a test on a Memory. Each has a token of its
// own for each key, unless it is told one.
type memoryProbe struct {
	*testing.T
	m      *idempotency.Memory
	probes int
}

func newProbe(t *testing.T, opts ...idempotency.MemoryOption) *memoryProbe {
	return &memoryProbe{T: t, m: idempotency.NewMemory(opts...)}
}

// claimOf is the claim under which a probe holds a key. All have one size.
func claimOf(key string) idempotency.Claim { return idempotency.Claim{Token: "token of " + key} }

func (p *memoryProbe) claim(key string, lease time.Duration) error {
	p.Helper()
	_, claimed, err := p.m.Claim(p.Context(), key, claimOf(key), lease)
	if err == nil {
		require.True(p, claimed, key)
	}
	return err
}

func (p *memoryProbe) complete(key string, status int, body string, expiry time.Duration) error {
	return p.m.Complete(p.Context(), key, claimOf(key), &idempotency.Response{Status: status, Body: []byte(body)}, expiry)
}

func (p *memoryProbe) renew(key string, lease time.Duration) error {
	return p.m.Renew(p.Context(), key, claimOf(key), lease)
}

func (p *memoryProbe) release(key string) {
	p.Helper()
	require.NoError(p, p.m.Release(p.Context(), key, claimOf(key)))
}

// store claims and completes.
func (p *memoryProbe) store(key string, status int, body string, expiry time.Duration) {
	p.Helper()
	require.NoError(p, p.claim(key, time.Minute))
	require.NoError(p, p.complete(key, status, body, expiry))
}

// held returns the record of a key, or nil. To find nothing it needs room for a
// claim, which it gives back.
func (p *memoryProbe) held(key string) *idempotency.Record {
	p.Helper()
	p.probes++
	probe := idempotency.Claim{Token: fmt.Sprintf("probe %d", p.probes)}
	rec, claimed, err := p.m.Claim(p.Context(), key, probe, 0)
	require.NoError(p, err)
	if claimed {
		require.NoError(p, p.m.Release(p.Context(), key, probe))
		return nil
	}
	return &rec
}

func (p *memoryProbe) requireOutstanding(key string) {
	p.Helper()
	rec := p.held(key)
	require.NotNil(p, rec, "%s is gone", key)
	require.Equal(p, idempotency.Record{Claim: claimOf(key)}, *rec)
}

func (p *memoryProbe) requireStored(key string, status int, body string) {
	p.Helper()
	rec := p.held(key)
	require.NotNil(p, rec, "%s is gone", key)
	require.NotNil(p, rec.Response, "%s is outstanding", key)
	require.Equal(p, status, rec.Response.Status)
	require.Equal(p, body, string(rec.Response.Body))
}

func (p *memoryProbe) requireGone(key string) {
	p.Helper()
	require.Nil(p, p.held(key), "%s is still held", key)
}

func key(i int) string { return fmt.Sprintf("key-%06d", i) }

// fillWithClaims claims keys until there is no more room, and returns how many.
func (p *memoryProbe) fillWithClaims(lease time.Duration) int {
	p.Helper()
	for i := 0; ; i++ {
		if err := p.claim(key(i), lease); err != nil {
			require.ErrorIs(p, err, idempotency.ErrFull)
			return i
		}
	}
}

func TestMemoryDropsNearestToExpiry(t *testing.T) {
	const size, fit = 10_000, 10
	body := strings.Repeat("b", size)
	p := newProbe(t, idempotency.WithMaxBytes(size*(fit+1)-2000)) // room for 10 responses and a few claims
	order := rand.Perm(3 * fit)
	stored := []int{}
	for _, i := range order {
		p.store(key(i), 200, body, time.Duration(i+1)*time.Hour)
		// The one that is nearest to its expiry made room for the new one, and
		// no more than that one.
		slices.Sort(stored)
		stored = append(stored[max(0, len(stored)-fit+1):], i)
		for j := range 3 * fit {
			if slices.Contains(stored, j) {
				p.requireStored(key(j), 200, body)
			} else {
				p.requireGone(key(j))
			}
		}
	}
}

func TestMemoryDropsForEverLast(t *testing.T) {
	const size = 10_000
	body := strings.Repeat("b", size)
	p := newProbe(t, idempotency.WithMaxBytes(4*size))
	p.store("for ever", 200, body, 0)
	p.store("a year", 200, body, 365*24*time.Hour)
	p.store("an hour", 200, body, time.Hour)
	p.store("a century", 200, body, century)
	p.requireGone("an hour")
	p.store("two centuries", 200, body, 2*century)
	p.requireGone("a year")
	p.requireStored("for ever", 200, body)
	p.requireStored("a century", 200, body)
	p.requireStored("two centuries", 200, body)
}

// Whatever is put into it, no more is found in it than the bound allows.
func TestMemoryIsBounded(t *testing.T) {
	const bound = 1 << 20
	for _, test := range []struct {
		name   string
		resp   func() *idempotency.Response
		weight func(*idempotency.Response) int
	}{
		{"bodies of all sizes", func() *idempotency.Response {
			return &idempotency.Response{Status: 200, Body: make([]byte, rand.IntN(40_000))}
		}, func(resp *idempotency.Response) int { return len(resp.Body) }},
		{"bodies that just fit", func() *idempotency.Response {
			return &idempotency.Response{Status: 200, Body: make([]byte, bound*9/10)}
		}, func(resp *idempotency.Response) int { return len(resp.Body) }},
		{"one header with long values", func() *idempotency.Response {
			return &idempotency.Response{Status: 200, Header: http.Header{"X-Long": {strings.Repeat("v", rand.IntN(20_000)), strings.Repeat("w", 20_000)}}}
		}, headerTexts},
		{"many headers with short values", func() *idempotency.Response {
			h := make(http.Header)
			for i := range 200 {
				h[fmt.Sprintf("X-%d", i)] = []string{"v"}
			}
			return &idempotency.Response{Status: 200, Header: h}
		}, headerTexts},
		{"long header names", func() *idempotency.Response {
			return &idempotency.Response{Status: 200, Header: http.Header{strings.Repeat("N", 20_000): {}}}
		}, headerTexts},
		{"many empty values", func() *idempotency.Response {
			return &idempotency.Response{Status: 200, Header: http.Header{"X": make([]string, 5000)}}
		}, headerTexts},
		{"no more than a status", func() *idempotency.Response {
			return &idempotency.Response{Status: 204}
		}, func(*idempotency.Response) int { return 0 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProbe(t, idempotency.WithMaxBytes(bound))
			const perRecord = 100 // far less than what a record really takes
			given := 0
			keys := []string{}
			for i := 0; given < 5*bound; i++ {
				resp := test.resp()
				require.NoError(t, p.claim(key(i), time.Minute))
				require.NoError(t, p.m.Complete(t.Context(), key(i), claimOf(key(i)), resp, time.Hour+rand.N(time.Hour)))
				keys = append(keys, key(i))
				given += test.weight(resp) + len(keys[i]) + len(claimOf(keys[i]).Token) + perRecord
			}
			total, found := 0, 0
			for _, k := range keys {
				if rec := p.held(k); rec != nil {
					found++
					total += test.weight(rec.Response) + len(k) + len(rec.Claim.Token) + perRecord
				}
			}
			require.LessOrEqual(t, total, bound)
			require.Positive(t, found, "what fits is kept")
			require.Less(t, found, len(keys))
		})
	}
}

func headerTexts(resp *idempotency.Response) (n int) {
	for name, values := range resp.Header {
		n += len(name)
		for _, v := range values {
			n += len(v) + 16 // a string is 16 bytes, even an empty one
		}
	}
	return n
}

// The bound is close to what records really take in the process's memory, small
// ones too, which are mostly overhead.
func TestMemoryBoundIsHonest(t *testing.T) {
	const bound = 8 << 20
	for _, test := range []struct {
		name string
		put  func(p *memoryProbe, k string)
	}{
		{"claims", func(p *memoryProbe, k string) { _ = p.claim(k, time.Hour) }},
		{"marks", func(p *memoryProbe, k string) {
			if p.claim(k, time.Hour) == nil {
				require.NoError(p, p.complete(k, 0, "", time.Hour))
			}
		}},
		{"small responses", func(p *memoryProbe, k string) {
			require.NoError(p, p.claim(k, time.Hour))
			require.NoError(p, p.m.Complete(p.Context(), k, claimOf(k), &idempotency.Response{
				Status: 200,
				Header: http.Header{"Content-Type": {strings.Clone("application/json")}},
				Body:   []byte(`{"id":1}`),
			}, time.Hour))
		}},
		{"responses of 1 kB with five headers", func(p *memoryProbe, k string) {
			require.NoError(p, p.claim(k, time.Hour))
			require.NoError(p, p.m.Complete(p.Context(), k, claimOf(k), &idempotency.Response{
				Status: 200,
				Header: http.Header{
					"Content-Type": {strings.Clone("application/json")}, "Location": {strings.Clone("/payments/1")},
					"Cache-Control": {strings.Clone("no-store")}, "Etag": {strings.Clone(`"1"`)}, "X-Request-Id": {strings.Clone("0123456789")},
				},
				Body: make([]byte, 1000),
			}, time.Hour))
		}},
		{"responses with forty headers of two values", func(p *memoryProbe, k string) {
			header := make(http.Header)
			for i := range 40 {
				header[fmt.Sprintf("X-%d", i)] = []string{strings.Repeat("a", 8), strings.Repeat("b", 8)}
			}
			require.NoError(p, p.claim(k, time.Hour))
			require.NoError(p, p.m.Complete(p.Context(), k, claimOf(k), &idempotency.Response{Status: 200, Header: header}, time.Hour))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProbe(t, idempotency.WithMaxBytes(bound))
			before := heap()
			for i := range bound / 300 {
				test.put(p, idempotency.StorageKey("", key(i)))
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
	n := p.fillWithClaims(0)
	require.Greater(t, n, 100_000/1000, "a claim takes less than 1 kB")
	require.Less(t, n, 100_000/100)

	// It stays full, and keeps what it holds.
	for i := n; i < 2*n; i++ {
		require.ErrorIs(t, p.claim(key(i), time.Minute), idempotency.ErrFull)
	}
	require.ErrorIs(t, p.complete("new", 200, "", time.Minute), idempotency.ErrFull, "a response where nothing is held")
	require.ErrorIs(t, p.renew("new", time.Minute), idempotency.ErrFull, "a renewal where nothing is held")
	for i := range n {
		p.requireOutstanding(key(i))
		// What is held can be claimed again by its own token, and renewed.
		require.NoError(t, p.claim(key(i), 0))
		require.NoError(t, p.renew(key(i), 0))
	}

	// A response that does not fit leaves its claim, which can be released.
	require.ErrorIs(t, p.complete(key(0), 200, strings.Repeat("b", 2000), time.Hour), idempotency.ErrFull)
	p.requireOutstanding(key(0))

	// Each release makes room for one.
	for i := range n {
		p.release(key(i))
		require.NoError(t, p.claim(key(n+i), 0))
		require.ErrorIs(t, p.claim(key(i), 0), idempotency.ErrFull)
	}
	for i := range n {
		p.requireOutstanding(key(n + i))
	}
}

// A mark takes the room of its claim: it is set even where all is full.
func TestMemoryFullStillTakesMarks(t *testing.T) {
	p := newProbe(t, idempotency.WithMaxBytes(50_000))
	n := p.fillWithClaims(time.Hour)
	for i := range n {
		require.NoError(t, p.complete(key(i), 0, "", time.Hour))
	}
	for i := range n {
		p.requireStored(key(i), 0, "")
	}
	require.ErrorIs(t, p.claim("new", time.Hour), idempotency.ErrFull)
}

// What cannot fit, not even when everything that may be dropped were dropped,
// drops nothing.
func TestMemoryDropsNothingInVain(t *testing.T) {
	const bound = 100_000
	huge := strings.Repeat("h", bound)
	fill := func(t *testing.T) *memoryProbe {
		p := newProbe(t, idempotency.WithMaxBytes(bound))
		for i := range 5 {
			p.store(key(i), 200, strings.Repeat("b", 5_000), time.Duration(i+1)*time.Hour)
		}
		require.NoError(t, p.claim("claim", time.Hour))
		p.store("mark", 0, "", time.Hour)
		return p
	}
	check := func(p *memoryProbe) {
		for i := range 5 {
			p.requireStored(key(i), 200, strings.Repeat("b", 5_000))
		}
		p.requireOutstanding("claim")
		p.requireStored("mark", 0, "")
	}
	t.Run("claim", func(t *testing.T) {
		p := fill(t)
		_, claimed, err := p.m.Claim(t.Context(), "new", idempotency.Claim{Token: huge}, time.Hour)
		require.ErrorIs(t, err, idempotency.ErrFull)
		require.False(t, claimed)
		p.requireGone("new")
		check(p)
	})
	t.Run("complete its claim", func(t *testing.T) {
		p := fill(t)
		require.ErrorIs(t, p.complete("claim", 200, huge, time.Hour), idempotency.ErrFull)
		check(p)
		// A response that fits is taken all the same.
		require.NoError(t, p.complete("claim", 200, "{}", time.Hour))
		p.requireStored("claim", 200, "{}")
	})
	t.Run("complete by headers", func(t *testing.T) {
		p := fill(t)
		resp := &idempotency.Response{Status: 200, Header: http.Header{"X": {huge}}}
		require.ErrorIs(t, p.m.Complete(t.Context(), "claim", claimOf("claim"), resp, time.Hour), idempotency.ErrFull)
		check(p)
	})
	t.Run("complete with a mark", func(t *testing.T) {
		p := fill(t)
		require.ErrorIs(t, p.complete("claim", 0, huge, time.Hour), idempotency.ErrFull)
		check(p)
	})
	t.Run("complete where nothing is held", func(t *testing.T) {
		p := fill(t)
		require.ErrorIs(t, p.complete("new", 200, huge, time.Hour), idempotency.ErrFull)
		p.requireGone("new")
		check(p)
	})
	t.Run("a lost claim", func(t *testing.T) {
		p := fill(t)
		resp := &idempotency.Response{Status: 200, Body: []byte(huge)}
		require.ErrorIs(t, p.m.Complete(t.Context(), "claim", claimOf("other"), resp, time.Hour), idempotency.ErrClaimLost)
		check(p)
	})
	t.Run("a response that is stored already", func(t *testing.T) {
		p := fill(t)
		require.NoError(t, p.complete(key(0), 200, huge, time.Hour))
		check(p)
	})
}

// A claim that needs room takes that of responses, never that of another claim
// or mark.
func TestMemoryNeverDropsClaimsAndMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t, idempotency.WithMaxBytes(200_000))
		for i := range 20 {
			require.NoError(t, p.claim(fmt.Sprint("claim ", i), time.Hour))
			p.store(fmt.Sprint("mark ", i), 0, "", time.Hour)
		}
		require.NoError(t, p.claim("claim for ever", 0))
		p.store("mark for ever", 0, "", 0)
		// Ten times the bound, kept for longer than the claims and the marks.
		for i := range 200 {
			p.store(key(i), 200, strings.Repeat("b", 10_000), 24*time.Hour)
		}
		check := func() {
			t.Helper()
			for i := range 20 {
				p.requireOutstanding(fmt.Sprint("claim ", i))
				p.requireStored(fmt.Sprint("mark ", i), 0, "")
			}
		}
		check()
		time.Sleep(time.Hour - 1)
		check()
		for i := range 200 {
			p.store(key(1000+i), 200, strings.Repeat("b", 10_000), 24*time.Hour)
		}
		check()
		time.Sleep(time.Nanosecond)
		for i := range 20 {
			p.requireGone(fmt.Sprint("claim ", i))
			p.requireGone(fmt.Sprint("mark ", i))
		}
		p.requireOutstanding("claim for ever")
		p.requireStored("mark for ever", 0, "")
	})
}

// Room comes back when time is over, whatever the record, without a goroutine.
func TestMemoryRoomComesBack(t *testing.T) {
	for _, test := range []struct {
		name string
		fill func(p *memoryProbe) int
	}{
		{"leases", func(p *memoryProbe) int { return p.fillWithClaims(time.Hour) }},
		{"renewed leases", func(p *memoryProbe) int {
			n := p.fillWithClaims(24 * time.Hour)
			for i := range n {
				require.NoError(p, p.renew(key(i), time.Hour))
			}
			return n
		}},
		{"marks", func(p *memoryProbe) int {
			n := p.fillWithClaims(0)
			for i := range n {
				require.NoError(p, p.complete(key(i), 0, "", time.Hour))
			}
			return n
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProbe(t, idempotency.WithMaxBytes(100_000))
				n := test.fill(p)
				time.Sleep(time.Hour - 1)
				require.ErrorIs(t, p.claim("new", time.Hour), idempotency.ErrFull)
				time.Sleep(time.Nanosecond)
				// One record may need the room of many.
				body := strings.Repeat("b", 90_000)
				p.store("new", 200, body, time.Hour)
				p.requireStored("new", 200, body)
				for i := range n {
					require.NoError(t, p.claim(key(i), time.Hour), "as many fit as before")
				}
			})
		})
	}
}

func TestMemoryTimes(t *testing.T) {
	for _, test := range []struct {
		name string
		d    time.Duration
	}{
		{"a nanosecond", 1},
		{"a second", time.Second},
		{"a day", 24 * time.Hour},
		{"a century", century},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProbe(t)
				time.Sleep(time.Minute)
				require.NoError(t, p.claim("claim", test.d))
				p.store("response", 200, "{}", test.d)
				p.store("mark", 0, "", test.d)
				require.NoError(t, p.claim("renewed", 2*test.d))
				require.NoError(t, p.renew("renewed", test.d))
				// Neither a renewal, nor a second Complete, nor a Release alters a
				// response.
				require.NoError(t, p.renew("response", 2*test.d))
				require.NoError(t, p.complete("response", 500, "other", 2*test.d))
				require.NoError(t, p.renew("mark", 2*test.d))
				p.release("response")
				p.release("mark")
				// Nor does its own Claim alter a claim.
				require.NoError(t, p.claim("claim", 2*test.d))
				time.Sleep(test.d - 1)
				p.requireOutstanding("claim")
				p.requireStored("response", 200, "{}")
				p.requireStored("mark", 0, "")
				p.requireOutstanding("renewed")
				time.Sleep(time.Nanosecond)
				for _, k := range []string{"claim", "response", "mark", "renewed"} {
					p.requireGone(k)
				}
			})
		})
	}
}

// A lease is renewed from the time of the call, as often as it is asked for.
func TestMemoryRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t)
		require.NoError(t, p.claim("k", 30*time.Second))
		for range 100 {
			time.Sleep(20 * time.Second)
			require.NoError(t, p.renew("k", 30*time.Second))
		}
		time.Sleep(30*time.Second - 1)
		p.requireOutstanding("k")
		time.Sleep(time.Nanosecond)
		p.requireGone("k")
		// Where nothing is held it takes effect as well.
		require.NoError(t, p.renew("k", time.Second))
		p.requireOutstanding("k")
		time.Sleep(time.Second)
		// What is over is another's to take, and then lost to its first owner.
		_, claimed, err := p.m.Claim(t.Context(), "k", claimOf("other"), time.Minute)
		require.NoError(t, err)
		require.True(t, claimed)
		require.ErrorIs(t, p.renew("k", time.Minute), idempotency.ErrClaimLost)
		require.ErrorIs(t, p.complete("k", 200, "", time.Minute), idempotency.ErrClaimLost)
		p.release("k")
		rec := p.held("k")
		require.NotNil(t, rec, "a Release deleted another's claim")
		require.Equal(t, claimOf("other"), rec.Claim)
	})
}

func TestMemoryForEver(t *testing.T) {
	for _, test := range []struct {
		name string
		d    time.Duration
	}{
		{"0", 0},
		{"the longest duration", math.MaxInt64},
		{"almost the longest duration", math.MaxInt64 - 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProbe(t)
				time.Sleep(time.Hour) // so that the sum of times overflows
				require.NoError(t, p.claim("claim", test.d))
				require.NoError(t, p.claim("renewed", time.Second))
				require.NoError(t, p.renew("renewed", test.d))
				p.store("response", 200, "{}", test.d)
				p.store("mark", 0, "", test.d)
				for range 2 {
					p.requireOutstanding("claim")
					p.requireOutstanding("renewed")
					p.requireStored("response", 200, "{}")
					p.requireStored("mark", 0, "")
					time.Sleep(century)
					for i := range 20 { // Other calls drop what is over.
						require.NoError(t, p.claim(key(i), time.Second))
					}
				}
				require.NoError(t, p.renew("claim", time.Second), "a lease for ever can be made shorter")
				time.Sleep(time.Second)
				p.requireGone("claim")
			})
		})
	}
}

// Records whose time is over are let go of by later calls on other keys, long
// before the bound is met, and no goroutine does it.
func TestMemoryForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t)
		const n = 200
		var responses []weak.Pointer[byte]
		body := strings.Repeat("x", 64) // Tiny ones would share their memory.
		for i := range n {
			// Every other one is a mark: they lie apart from responses.
			p.store(key(i), 200*(i%2), body, time.Hour)
			responses = append(responses, weak.Make(&p.held(key(i)).Response.Body[0]))
		}
		alive := func() (n int) {
			runtime.GC()
			for _, r := range responses {
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
		for i := range n {
			require.NoError(t, p.claim(key(n+i), time.Second))
			time.Sleep(time.Second)
		}
		require.Zero(t, alive(), "records whose time is over are still held")
		runtime.KeepAlive(p)
	})
}

// A record that a caller holds is never altered, whatever becomes of the key.
func TestMemoryRecordsAreNotAltered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe(t, idempotency.WithMaxBytes(50_000))
		resp := &idempotency.Response{Status: 201, Header: http.Header{"Link": {"a", "b"}}, Body: []byte("body")}
		require.NoError(t, p.claim("k", time.Minute))
		outstanding := p.held("k")
		require.NoError(t, p.renew("k", time.Hour))
		require.NoError(t, p.m.Complete(t.Context(), "k", claimOf("k"), resp, time.Hour))
		require.Equal(t, idempotency.Record{Claim: claimOf("k")}, *outstanding)

		// What was given is its caller's again.
		resp.Status = 500
		resp.Header["Link"][0] = "changed"
		resp.Header["New"] = []string{"new"}
		copy(resp.Body, "BODY")
		want := idempotency.Record{Claim: claimOf("k"), Response: &idempotency.Response{
			Status: 201, Header: http.Header{"Link": {"a", "b"}}, Body: []byte("body"),
		}}
		first := p.held("k")
		require.Equal(t, want, *first)

		require.NoError(t, p.complete("k", 200, "another", time.Hour))
		require.Equal(t, want, *p.held("k"))
		for i := range 10 { // It is dropped under pressure.
			p.store(key(i), 200, strings.Repeat("b", 20_000), 24*time.Hour)
		}
		p.requireGone("k")
		p.store("k", 200, "another", time.Hour)
		require.Equal(t, want, *first)
	})
}

func TestMemoryConcurrentUse(t *testing.T) {
	const workers, keys, rounds = 8, 5, 400
	m := idempotency.NewMemory(idempotency.WithMaxBytes(20_000)) // so little that responses are dropped all the time
	var owners [keys]atomic.Int32
	var ran atomic.Int32
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			ctx := context.Background()
			for round := range rounds {
				i := rand.IntN(keys)
				claim := idempotency.Claim{Token: fmt.Sprint(worker, " ", round)}
				rec, claimed, err := m.Claim(ctx, key(i), claim, 0)
				switch {
				case err != nil:
					t.Errorf("claim: %v", err)
				case !claimed && rec.Response != nil:
					if len(rec.Response.Body) != 4000 || rec.Response.Header.Get("Token") != rec.Claim.Token {
						t.Errorf("a torn record: %q", rec.Response.Header)
					}
				case claimed:
					ran.Add(1)
					if n := owners[i].Add(1); n != 1 {
						t.Errorf("%d own one key", n)
					}
					if err := m.Renew(ctx, key(i), claim, 0); err != nil {
						t.Errorf("renew: %v", err)
					}
					owners[i].Add(-1)
					if rand.IntN(3) == 0 {
						err = m.Release(ctx, key(i), claim)
					} else {
						header := http.Header{"Token": {claim.Token}}
						body := make([]byte, 4000)
						err = m.Complete(ctx, key(i), claim, &idempotency.Response{Status: 200, Header: header, Body: body}, time.Hour)
						header.Set("Token", "changed")
						body[0]++
					}
					if err != nil {
						t.Errorf("settle: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	require.Positive(t, ran.Load())
}

func TestMemoryContextEnded(t *testing.T) {
	p := newProbe(t)
	p.store("stored", 200, "{}", time.Hour)
	require.NoError(t, p.claim("claimed", time.Hour))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, claimed, err := p.m.Claim(ctx, "new", claimOf("new"), time.Hour)
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, claimed)
	p.requireGone("new")
	require.ErrorIs(t, p.m.Complete(ctx, "claimed", claimOf("claimed"), &idempotency.Response{Status: 200}, time.Hour), context.Canceled)
	require.ErrorIs(t, p.m.Renew(ctx, "claimed", claimOf("claimed"), time.Hour), context.Canceled)
	require.ErrorIs(t, p.m.Release(ctx, "claimed", claimOf("claimed")), context.Canceled)
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
		require.ErrorIs(t, p.claim("k", time.Hour), idempotency.ErrFull, "there is no room in one byte")
		p = newProbe(t, idempotency.WithMaxBytes(1), idempotency.WithMaxBytes(math.MaxInt64))
		require.NoError(t, p.claim("k", time.Hour))
	})
	t.Run("64 MiB by default", func(t *testing.T) {
		p := newProbe(t)
		require.NoError(t, p.claim("k", time.Hour))
		require.ErrorIs(t, p.complete("k", 200, strings.Repeat("b", 64<<20), time.Hour), idempotency.ErrFull)
		require.NoError(t, p.complete("k", 200, strings.Repeat("b", 63<<20), time.Hour))
	})
}

// requirePanics checks that f panics with a string that contains text.
func requirePanics(t *testing.T, text string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		value := recover()
		require.NotNil(t, value, "no panic")
		require.IsType(t, "", value)
		require.Contains(t, value, text)
	}()
	f()
}
