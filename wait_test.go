package idempotency_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestWait(t *testing.T) {
	slow := func(d time.Duration, store bool) (http.Handler, *payments) {
		p := &payments{}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if p.runs.Load() == 0 {
				time.Sleep(d)
			}
			if !store && p.runs.Load() == 0 {
				idempotency.NoStore(r.Context())
			}
			p.ServeHTTP(w, r)
		}), p
	}
	tests := map[string]struct {
		takes, wait time.Duration
		store       bool
		want        string // the duplicate's answer
		after       time.Duration
	}{
		"replays what comes":                  {10 * time.Second, time.Minute, true, "replayed 1", 10 * time.Second},
		"runs if the first let go":            {10 * time.Second, time.Minute, false, "run 2", 10 * time.Second},
		"is refused when its time is over":    {2 * time.Minute, time.Minute, true, "409", time.Minute},
		"looks once more at the end":          {time.Minute - time.Millisecond, time.Minute, true, "replayed 1", time.Minute - time.Millisecond},
		"is refused at once without the wait": {time.Minute, 0, true, "409", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next, _ := slow(tt.takes, tt.store)
				h := idempotency.New(idempotency.NewMemory(), idempotency.WithWait(tt.wait))(next)
				go send(h, request("k", "b"))
				synctest.Wait()
				start := time.Now()
				w := send(h, request("k", "b"))
				waited := time.Since(start)
				switch {
				case w.Code == http.StatusConflict:
					requireProblem(t, w, http.StatusConflict, "ErrOutstanding")
					require.Equal(t, "409", tt.want)
				case w.Header().Get("Idempotent-Replayed") != "":
					require.Equal(t, tt.want, "replayed 1")
				default:
					require.Equal(t, tt.want, "run 2")
					require.Equal(t, `{"payment":2}`, w.Body.String())
				}
				require.GreaterOrEqual(t, waited, tt.after)
				require.LessOrEqual(t, waited, tt.after+300*time.Millisecond)
				time.Sleep(time.Hour)
			})
		})
	}

	t.Run("ends when the client leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next, p := slow(time.Minute, true)
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithWait(time.Hour))(next)
			go send(h, request("k", "b"))
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			start := time.Now()
			requireProblem(t, send(h, request("k", "b").WithContext(ctx)), http.StatusConflict, "ErrOutstanding")
			require.Equal(t, 3*time.Second, time.Since(start))
			time.Sleep(time.Hour)
			require.EqualValues(t, 1, p.runs.Load())
		})
	})
	t.Run("another request does not wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next, _ := slow(time.Minute, true)
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithWait(time.Hour))(next)
			go send(h, request("k", "b"))
			synctest.Wait()
			start := time.Now()
			requireProblem(t, send(h, request("k", "other")), http.StatusUnprocessableEntity, "ErrKeyReused")
			require.Zero(t, time.Since(start))
			time.Sleep(time.Hour)
		})
	})
	t.Run("asks once for a key that is free", func(t *testing.T) {
		claims := 0
		memory := idempotency.NewMemory()
		backend := &hooked{Memory: memory, claim: func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
			claims++
			return memory.Claim(ctx, key, claim, terms)
		}}
		h := idempotency.New(backend, idempotency.WithWait(time.Hour))(&payments{})
		send(h, request("k", "b"))
		send(h, request("k", "b"))
		send(h, request("k", "c"))
		require.Equal(t, 3, claims)
	})
	t.Run("a backend that fails meanwhile", func(t *testing.T) {
		for name, opts := range map[string][]idempotency.Option{"": nil, "without fingerprint": {idempotency.WithFingerprint(nil)}} {
			t.Run(name, func(t *testing.T) { waitWhileTheBackendFails(t, opts...) })
		}
	})
}

func waitWhileTheBackendFails(t *testing.T, opts ...idempotency.Option) {
	slowly := func(p *payments) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Minute)
			p.ServeHTTP(w, r)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		memory, down := idempotency.NewMemory(), atomic.Bool{}
		backend := &hooked{Memory: memory, claim: func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
			if down.Load() {
				return idempotency.Record{}, false, errDown
			}
			return memory.Claim(ctx, key, claim, terms)
		}}
		p := &payments{}
		h := idempotency.New(backend, append(opts, idempotency.WithWait(time.Hour), quiet)...)(slowly(p))
		go send(h, request("k", "b"))
		synctest.Wait()
		down.Store(true)
		start := time.Now()
		requireProblem(t, send(h, request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
		require.Less(t, time.Since(start), time.Second)
		time.Sleep(time.Hour)
		require.EqualValues(t, 1, p.runs.Load())
	})
}

// A duplicate that waits is told that the run was interrupted, one lease after its
// process has died.
func TestWaitForAnInterruptedRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead, p, es := newCounted(never), &payments{}, &events{}
		crash(t, dead, p, idempotency.WithAtMostOnce())
		h := idempotency.New(dead.Memory, idempotency.WithAtMostOnce(), idempotency.WithWait(time.Hour), es.option())(p)
		start := time.Now()
		requireRefused(t, h, http.StatusConflict, "ErrInterrupted")
		require.GreaterOrEqual(t, time.Since(start), 30*time.Second)
		require.Less(t, time.Since(start), 31*time.Second)
		e, _ := es.last(t)
		require.Equal(t, idempotency.Interrupted, e.Outcome)
	})
}

// Without a trace it runs the handler.
func TestWaitForACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead, p := newCounted(never), &payments{}
		crash(t, dead, p)
		h := idempotency.New(dead.Memory, idempotency.WithWait(time.Hour))(p)
		start := time.Now()
		require.Equal(t, `{"payment":2}`, send(h, request("k", "b")).Body.String())
		require.GreaterOrEqual(t, time.Since(start), 30*time.Second)
		require.Less(t, time.Since(start), 31*time.Second)
	})
}

// For a client that has left no further claim is sent. One that is under way does
// not end for it, and what it claims is served.
func TestWaitingClientLeaves(t *testing.T) {
	for _, when := range []string{"between two claims", "while one is sent"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend, p := newCounted(never), &payments{}
				first := claimOf("first")
				first.Fingerprint = [32]byte{}
				mustClaim(t, backend.Memory, keyOf("k"), first, lease(time.Hour))
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				claim := backend.claim
				backend.claim = func(given context.Context, key idempotency.Key, c idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
					if when == "while one is sent" && backend.claims.Load() == 3 {
						leave()
						synctest.Wait()
						require.NoError(t, given.Err())
						require.NoError(t, backend.Memory.Release(given, key, first, 0))
					}
					return claim(given, key, c, terms)
				}
				h := idempotency.New(backend, idempotency.WithWait(time.Hour))(p)
				answered := make(chan *httptest.ResponseRecorder, 1)
				go func() { answered <- send(h, request("k", "b").WithContext(ctx)) }()
				time.Sleep(time.Minute)
				if when == "while one is sent" {
					require.Equal(t, http.StatusCreated, (<-answered).Code)
					require.EqualValues(t, 4, backend.claims.Load())
					require.Equal(t, idempotency.StateCompleted, lookup(t, backend, "k").State)
					return
				}
				sent := backend.claims.Load()
				require.Greater(t, sent, int32(100))
				leave()
				requireProblem(t, <-answered, http.StatusConflict, "ErrOutstanding")
				time.Sleep(time.Minute)
				require.Equal(t, sent, backend.claims.Load())
				require.Zero(t, backend.releases.Load(), "what it does not hold it does not release")
			})
		})
	}
}

// Many that wait do not all look at once, and none looks more often than it must.
func TestWaitLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := newCounted(never)
		mustClaim(t, backend.Memory, keyOf("k"), idempotency.Claim{Token: claimOf("first").Token}, lease(time.Hour))
		h := idempotency.New(backend, idempotency.WithWait(10*time.Second))(&payments{})
		requireRefused(t, h, http.StatusConflict, "ErrOutstanding")
		require.GreaterOrEqual(t, backend.claims.Load(), int32(35))
		require.LessOrEqual(t, backend.claims.Load(), int32(110))
	})
}
