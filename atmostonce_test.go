package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// What is not stored leaves the key interrupted, and is not run again.
func TestAtMostOnceInterrupted(t *testing.T) {
	storeIf := idempotency.WithStoreIf(func(status int, _ http.Header) bool { return status != 500 })
	tests := map[string]struct {
		handler script
		panics  any
		reason  idempotency.Reason
	}{
		"not JSON":            {script{says("<p>")}, nil, idempotency.ReasonContentType},
		"broken JSON":         {script{asJSON, says("{")}, nil, idempotency.ReasonInvalidJSON},
		"nothing":             {script{}, nil, idempotency.ReasonContentType},
		"not by WithStoreIf":  {script{code(500), says("{}")}, nil, idempotency.ReasonStoreIf},
		"panic":               {script{panics("boom")}, "boom", ""},
		"panic after answer":  {script{says("{}"), aborts}, http.ErrAbortHandler, ""},
		"panic in the stream": {script{says("<p>"), aborts}, http.ErrAbortHandler, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				runs, es, backend := 0, &events{}, newBackend(t)
				h := idempotency.New(backend, idempotency.WithAtMostOnce(), storeIf, es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					runs++
					tt.handler.ServeHTTP(w, r)
				}))
				if tt.panics != nil {
					require.PanicsWithValue(t, tt.panics, func() { send(h, request("k", "b")) })
				} else {
					send(h, request("k", "b"))
				}
				e, _ := es.last(t)
				require.Equal(t, tt.reason, e.Reason)
				require.Equal(t, idempotency.StateInterrupted, lookup(t, backend.(idempotency.Inspector), "k").State)
				for range 2 {
					w := send(h, request("k", "b"))
					requireProblem(t, w, http.StatusConflict, "ErrInterrupted")
					require.NotContains(t, w.Header(), "Retry-After")
					e, _ := es.last(t)
					require.Equal(t, idempotency.Interrupted, e.Outcome)
					require.ErrorIs(t, e.Err, idempotency.ErrInterrupted)
					require.Equal(t, http.StatusConflict, e.Status)
				}
				requireProblem(t, send(h, request("k", "other")), http.StatusUnprocessableEntity, "ErrKeyReused")
				require.Equal(t, 1, runs)
			})
		})
	}
}

func TestAtMostOnceReplays(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		h := idempotency.New(newBackend(t), idempotency.WithAtMostOnce())(&payments{})
		send(h, request("k", "b"))
		requireReplayed(t, send(h, request("k", "b")), `{"payment":1}`)
	})
}

// NoStore alone frees the key.
func TestAtMostOnceNoStore(t *testing.T) {
	for name, handler := range map[string]script{
		"with an answer":                 {noStore, says("{}")},
		"after an answer":                {says("{}"), noStore},
		"without an answer":              {noStore},
		"with what would not be stored":  {noStore, says("<p>")},
		"although the handler panics":    {noStore, panics("nothing was done")},
		"although it panics in a stream": {says("<p>"), noStore, panics("nothing was done")},
	} {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				runs := 0
				h := idempotency.New(newBackend(t), idempotency.WithAtMostOnce(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					runs++
					handler.ServeHTTP(w, r)
				}))
				outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() { _ = recover() }()
					h.ServeHTTP(w, r)
				})
				for range 2 {
					send(outside, request("k", "b"))
				}
				require.Equal(t, 2, runs)
			})
		})
	}
	t.Run("a panic goes up", func(t *testing.T) {
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce())(script{noStore, panics("nothing was done")})
		for range 2 {
			require.PanicsWithValue(t, "nothing was done", func() { send(h, request("k", "b")) })
		}
	})
}

// A retry is told ErrOutstanding while the lease is renewed, and ErrInterrupted
// once it is not.
func TestAtMostOnceCrash(t *testing.T) {
	forever := 100 * 365 * 24 * time.Hour
	tests := map[string]struct {
		opts        []idempotency.Option
		lease, free time.Duration // free is when a retry runs; 0 is never
	}{
		"default":             {nil, 30 * time.Second, 24*time.Hour + 30*time.Second},
		"lease and expiry":    {with(idempotency.WithLease(time.Minute), idempotency.WithExpiry(time.Hour)), time.Minute, 61 * time.Minute},
		"expiry under lease":  {with(idempotency.WithExpiry(3 * time.Second)), 30 * time.Second, 33 * time.Second},
		"stored for ever":     {with(idempotency.WithExpiry(0)), 30 * time.Second, 0},
		"without fingerprint": {with(idempotency.WithFingerprint(nil)), 30 * time.Second, 24*time.Hour + 30*time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dead, p := newCounted(never), &payments{}
				crash(t, dead, p, append(tt.opts, idempotency.WithAtMostOnce())...)
				h := idempotency.New(dead.Memory, append(tt.opts, idempotency.WithAtMostOnce())...)(p)
				time.Sleep(tt.lease - 1)
				requireRefused(t, h, http.StatusConflict, "ErrOutstanding")
				time.Sleep(time.Nanosecond)
				requireRefused(t, h, http.StatusConflict, "ErrInterrupted")
				if tt.free == 0 {
					time.Sleep(forever)
					requireRefused(t, h, http.StatusConflict, "ErrInterrupted")
					return
				}
				time.Sleep(tt.free - tt.lease - 1)
				requireRefused(t, h, http.StatusConflict, "ErrInterrupted")
				time.Sleep(time.Nanosecond)
				require.Equal(t, `{"payment":2}`, send(h, request("k", "b")).Body.String())
			})
		})
	}
}

// crash sends a request through a process that claims, runs the handler, and is
// never heard of again.
func crash(t *testing.T, backend *counted, next http.Handler, opts ...idempotency.Option) {
	t.Helper()
	died := errors.New("died")
	backend.complete = func(context.Context, idempotency.Key, idempotency.Claim, []byte, time.Duration) error { panic(died) }
	backend.release = func(context.Context, idempotency.Key, idempotency.Claim, time.Duration) error { return died }
	require.PanicsWithValue(t, died, func() { send(idempotency.New(backend, append(opts, quiet)...)(next), request("k", "b")) })
}

// A key that is interrupted is for a process of the other mode what it was for
// the one that made it.
func TestAtMostOnceForAnotherMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, dead := &payments{}, newCounted(never)
		crash(t, dead, p, idempotency.WithAtMostOnce())
		again := idempotency.New(dead.Memory)(p)
		time.Sleep(30 * time.Second)
		requireRefused(t, again, http.StatusConflict, "ErrInterrupted")
		time.Sleep(24 * time.Hour)
		require.Equal(t, http.StatusCreated, send(again, request("k", "b")).Code)
	})
}

func TestAtMostOnceWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &payments{}
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce(), idempotency.WithExpiry(3*time.Second))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Minute)
			p.ServeHTTP(w, r)
		}))
		go send(h, request("k", "b"))
		for range 11 {
			time.Sleep(5 * time.Second)
			requireRefused(t, h, http.StatusConflict, "ErrOutstanding")
		}
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, p.runs.Load())
	})
}

func TestAtMostOnceTraceEndsWithTheExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce(), idempotency.WithExpiry(time.Hour), quiet)(script{says("<p>")})
		send(h, request("k", "b"))
		time.Sleep(time.Hour - 1)
		requireRefused(t, h, http.StatusConflict, "ErrInterrupted")
		time.Sleep(time.Nanosecond)
		require.Equal(t, http.StatusOK, send(h, request("k", "b")).Code)
	})
}

// A response that Complete could not store leaves the claim to run out: then the
// key is interrupted.
func TestAtMostOnceNotCompleted(t *testing.T) {
	hangs := newHooked()
	hangs.complete = func(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ []byte, _ time.Duration) error {
		<-ctx.Done()
		return idempotency.ErrFull
	}
	tests := map[string]struct {
		backend func() idempotency.Backend
		err     error
	}{
		"no room": {func() idempotency.Backend { return idempotency.NewMemory(idempotency.WithMaxBytes(2000)) }, idempotency.ErrFull},
		"down":    {func() idempotency.Backend { return newCounted(always("complete")) }, errDown},
		"no room, told late": {func() idempotency.Backend {
			hangs.Memory = idempotency.NewMemory()
			return hangs
		}, idempotency.ErrFull},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				es, runs := &events{}, 0
				h := idempotency.New(tt.backend(), idempotency.WithAtMostOnce(), idempotency.WithExpiry(0), es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					runs++
					fmt.Fprintf(w, "%q", strings.Repeat("x", 3000))
				}))
				require.Equal(t, http.StatusOK, send(h, request("k", "b")).Code)
				e, _ := es.last(t)
				require.Equal(t, idempotency.NotStored, e.Outcome)
				require.Equal(t, idempotency.ReasonStoreFailed, e.Reason)
				require.ErrorIs(t, e.Err, tt.err)
				requireRefused(t, h, http.StatusConflict, "ErrOutstanding")
				time.Sleep(30 * time.Second)
				for range 10 {
					requireRefused(t, h, http.StatusConflict, "ErrInterrupted")
					time.Sleep(365 * 24 * time.Hour)
				}
				require.Equal(t, 1, runs)
			})
		})
	}
}

// A claim that failed is released without a trace: nothing has run.
func TestAtMostOnceFailedClaim(t *testing.T) {
	backend := newCounted(never)
	landed, release := backend.claim, backend.release
	backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
		rec, claimed, err := landed(ctx, key, claim, terms)
		if backend.claims.Load() == 1 {
			return idempotency.Record{}, false, errDown
		}
		return rec, claimed, err
	}
	var traces []time.Duration
	backend.release = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
		traces = append(traces, trace)
		return release(ctx, key, claim, trace)
	}
	h := idempotency.New(backend, idempotency.WithAtMostOnce(), quiet)(&payments{})
	requireRefused(t, h, http.StatusServiceUnavailable, "ErrUnavailable")
	require.Equal(t, []time.Duration{0}, traces)
	require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
}

// The terms are those of the mode, in every verb.
func TestTerms(t *testing.T) {
	recovery := with(idempotency.WithRecovery((&shop{}).recovery))
	for name, tt := range map[string]struct {
		opts                       []idempotency.Option
		terms                      idempotency.Terms
		releasedWith, releasedFree time.Duration // the trace of a response that is not stored, and after NoStore
		expiry                     time.Duration
	}{
		"again":                  {nil, lease(30 * time.Second), 0, 0, 24 * time.Hour},
		"again, for ever":        {with(idempotency.WithExpiry(0)), lease(30 * time.Second), 0, 0, idempotency.Forever},
		"at most once":           {with(idempotency.WithAtMostOnce()), traced(30*time.Second, 24*time.Hour), 24 * time.Hour, 0, 24 * time.Hour},
		"at most once, an hour":  {with(idempotency.WithAtMostOnce(), idempotency.WithExpiry(time.Hour)), traced(30*time.Second, time.Hour), time.Hour, 0, time.Hour},
		"at most once, for ever": {with(idempotency.WithAtMostOnce(), idempotency.WithExpiry(0)), traced(30*time.Second, idempotency.Forever), idempotency.Forever, 0, idempotency.Forever},
		"recovery":               {recovery, idempotency.Terms{Lease: 30 * time.Second, Trace: 24 * time.Hour, TakeOver: true}, 24 * time.Hour, 0, 24 * time.Hour},
		"recovery, for ever":     {append(recovery, idempotency.WithExpiry(0)), idempotency.Terms{Lease: 30 * time.Second, Trace: idempotency.Forever, TakeOver: true}, idempotency.Forever, 0, idempotency.Forever},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := newHooked()
				renewals := 0
				backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
					require.Equal(t, tt.terms, terms)
					return backend.Memory.Claim(ctx, key, claim, terms)
				}
				backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
					renewals++
					require.Equal(t, tt.terms, terms)
					require.Nil(t, progress)
					return backend.Memory.Renew(ctx, key, claim, terms, progress)
				}
				backend.complete = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
					require.Equal(t, tt.expiry, expiry)
					return backend.Memory.Complete(ctx, key, claim, response, expiry)
				}
				var traces []time.Duration
				backend.release = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
					traces = append(traces, trace)
					return backend.Memory.Release(ctx, key, claim, trace)
				}
				for key, handler := range map[string]script{"stored": {says("{}")}, "not stored": {says("<p>")}, "freed": {noStore, says("{}")}} {
					traces = nil
					h := idempotency.New(backend, append(tt.opts, quiet)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						time.Sleep(61 * time.Second)
						handler.ServeHTTP(w, r)
					}))
					send(h, request(key, "b"))
					switch key {
					case "stored":
						require.Empty(t, traces)
					case "not stored":
						require.Equal(t, []time.Duration{tt.releasedWith}, traces)
					case "freed":
						require.Equal(t, []time.Duration{tt.releasedFree}, traces)
					}
				}
				require.Equal(t, 3*40, renewals, "every twentieth of the lease")
			})
		})
	}
}
