package idempotency_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestOneOfManyRuns(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend := newBackend(t)
		const clients, keys = 32, 8
		var runs [keys]atomic.Int32
		leave := make(chan struct{})
		newProcess := func() http.Handler {
			return idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				key, _ := idempotency.KeyFromContext(r.Context())
				runs[key[0]-'0'].Add(1)
				<-leave
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"key":%q}`, key)
			}))
		}
		processes := []http.Handler{newProcess(), newProcess()}
		var refused, all sync.WaitGroup
		refused.Add((clients - 1) * keys)
		for i := range clients * keys {
			all.Go(func() {
				key := fmt.Sprint(i % keys)
				w := send(processes[i%2], request(key, "b"))
				if w.Code == http.StatusOK {
					return
				}
				if w.Code == http.StatusConflict && w.Header().Get("Retry-After") == "1" {
					refused.Done()
					return
				}
				t.Errorf("answered %d %v", w.Code, w.Header())
			})
		}
		refused.Wait() // All but one of each key were refused while that one ran.
		close(leave)
		all.Wait()
		for key := range runs {
			require.EqualValues(t, 1, runs[key].Load())
			w := send(processes[0], request(fmt.Sprint(key), "b"))
			require.Equal(t, fmt.Sprintf(`{"key":"%d"}`, key), w.Body.String())
			require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
		}
	})
}

func TestOutstanding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		es := &events{}
		h := idempotency.New(idempotency.NewMemory(), es.option())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Hour)
			(&payments{}).ServeHTTP(w, r)
		}))
		go send(h, request("k", "b"))
		synctest.Wait()
		for range 100 {
			time.Sleep(30 * time.Second)
			w := send(h, request("k", "b"))
			requireProblem(t, w, http.StatusConflict, "ErrOutstanding")
			require.Equal(t, "1", w.Header().Get("Retry-After"))
			e, _ := es.last(t)
			require.Equal(t, idempotency.Outstanding, e.Outcome)
			require.Zero(t, e.Duration, "refused at once")
		}
		time.Sleep(time.Hour)
		require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
	})
}

func TestUnavailable(t *testing.T) {
	var log bytes.Buffer
	backend := newCounted(always("claim"))
	p, es := &payments{}, &events{}
	h := idempotency.New(backend, es.option(), logInto(&log))(p)

	w := send(h, request("my-secret-key", "my-secret-body"))
	require.NotContains(t, w.Body.String(), "10.0.0.7", "the backend's address is nobody's business")
	requireProblem(t, w, http.StatusServiceUnavailable, "ErrUnavailable")
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.Zero(t, p.runs.Load())
	require.EqualValues(t, 1, backend.releases.Load(), "the claim may have landed")
	e, _ := es.last(t)
	require.Equal(t, idempotency.Failed, e.Outcome)
	require.ErrorIs(t, e.Err, idempotency.ErrUnavailable)
	require.ErrorIs(t, e.Err, errDown)
	require.Contains(t, log.String(), "10.0.0.7")
	require.NotContains(t, log.String(), "secret")
}

func TestClaimThatFailedMayHaveLanded(t *testing.T) {
	for _, client := range []string{"stayed", "left"} {
		t.Run("the client "+client, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			backend := newCounted(never)
			landed := backend.claim
			backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
				_, claimed, err := landed(ctx, key, claim, terms)
				if backend.claims.Load() > 1 {
					return idempotency.Record{}, claimed, err
				}
				if client == "left" {
					leave()
				}
				return idempotency.Record{}, false, errDown
			}
			p, es := &payments{}, &events{}
			h := idempotency.New(backend, quiet, es.option())(p)
			requireProblem(t, send(h, request("k", "b").WithContext(ctx)), http.StatusServiceUnavailable, "ErrUnavailable")
			require.EqualValues(t, 1, backend.releases.Load())
			require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code, "the claim that landed was released")
			leave()
		})
	}
}

// A claim that failed may land after it was released. Without a trace it runs out; with one
// it is released again.
func TestClaimThatLandsAfterItsRelease(t *testing.T) {
	for name, tt := range map[string]struct {
		opts []idempotency.Option
		free time.Duration // after the claim has landed
	}{
		"again":        {nil, 30 * time.Second},
		"at most once": {with(idempotency.WithAtMostOnce()), 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := newCounted(never)
				backend.claim = func(_ context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
					time.AfterFunc(time.Second, func() { mustClaim(t, backend.Memory, key, claim, terms) })
					return idempotency.Record{}, false, errDown
				}
				requireRefused(t, idempotency.New(backend, append(tt.opts, quiet)...)(&payments{}), http.StatusServiceUnavailable, "ErrUnavailable")
				require.EqualValues(t, 1, backend.releases.Load())
				time.Sleep(time.Second + tt.free - 1)
				require.Equal(t, idempotency.StateOutstanding, lookup(t, backend, "k").State)
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				require.Nil(t, lookup(t, backend, "k"))
			})
		})
	}
}

func TestReleaseThatHangsHoldsNobodyUp(t *testing.T) {
	backend := newCounted(always("claim"))
	answered := make(chan struct{})
	backend.release = func(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ time.Duration) error {
		select {
		case <-answered:
		case <-ctx.Done():
			t.Error("the client was not answered")
		}
		return nil
	}
	h := idempotency.New(backend, quiet)(&payments{})
	requireProblem(t, send(h, request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
	open := idempotency.New(backend, quiet, idempotency.WithFailOpen())(&payments{})
	require.Equal(t, http.StatusCreated, send(open, request("k", "b")).Code)
	close(answered)
}

// A claim that hangs is given up after 5 s, and released for 200 ms at the most.
func TestClaimThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := newCounted(never)
		backend.claim = func(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ idempotency.Terms) (idempotency.Record, bool, error) {
			<-ctx.Done()
			return idempotency.Record{}, false, ctx.Err()
		}
		start := time.Now()
		requireProblem(t, send(idempotency.New(backend, quiet)(&payments{}), request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
		require.Equal(t, 5*time.Second, time.Since(start))
		require.EqualValues(t, 1, backend.releases.Load())
	})
}

// A claim does not end because its client leaves, in every way in which a context
// can be waited for. It has the request's values, and ends after 5 s.
func TestClaimOutlivesTheClient(t *testing.T) {
	type traceKey struct{}
	for name, wait := range contextWaits {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, leave := context.WithCancel(context.WithValue(t.Context(), traceKey{}, "trace"))
				backend := newCounted(never)
				backend.claim = func(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ idempotency.Terms) (idempotency.Record, bool, error) {
					leave()
					synctest.Wait()
					require.Equal(t, "trace", ctx.Value(traceKey{}))
					require.NoError(t, ctx.Err())
					wait(ctx)
					require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
					return idempotency.Record{}, false, ctx.Err()
				}
				start := time.Now()
				w := send(idempotency.New(backend, quiet)(&payments{}), request("k", "b").WithContext(ctx))
				requireProblem(t, w, http.StatusServiceUnavailable, "ErrUnavailable")
				require.Equal(t, 5*time.Second, time.Since(start))
				require.EqualValues(t, 1, backend.releases.Load())
			})
		})
	}
}

// A client that left before its claim was sent, or while it was, is served all
// the same: its retry finds the answer.
func TestClientLeavesWhileItClaims(t *testing.T) {
	for _, when := range []string{"before", "while it is sent"} {
		t.Run(when, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				backend, spy := newBackend(t), newHooked()
				spy.claim = func(given context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
					leave()
					return backend.Claim(given, key, claim, terms)
				}
				spy.complete, spy.release = backend.Complete, backend.Release
				if when == "before" {
					leave()
				}
				p, es := &payments{}, &events{}
				h := idempotency.New(spy, es.option())(p)
				send(h, request("k", "b").WithContext(ctx))
				require.EqualValues(t, 1, p.runs.Load())
				e, _ := es.last(t)
				require.Equal(t, idempotency.Stored, e.Outcome)
				requireReplayed(t, send(h, request("k", "b")), `{"payment":1}`)
			})
		})
	}
}

// A claim whose reply came later than half a lease after it was sent is renewed
// once before the handler runs. If that fails, the claim has failed.
func TestClaimThatIsLate(t *testing.T) {
	const lease = time.Second
	lost := fmt.Errorf("wrapped: %w", idempotency.ErrClaimLost)
	tests := map[string]struct {
		took    time.Duration
		fails   error // of Renew
		renewed int32 // before the handler runs
		status  int
		problem string
	}{
		"in time":             {lease / 25, nil, 0, 201, ""}, // From a twentieth on the first renewal is due.
		"late":                {lease/2 + 1, nil, 1, 201, ""},
		"0.6 leases":          {6 * lease / 10, nil, 1, 201, ""},
		"a lease":             {lease, nil, 1, 201, ""},
		"longer than a lease": {4 * lease, nil, 1, 201, ""},
		"late, and down":      {6 * lease / 10, errDown, 1, 503, "ErrUnavailable"},
		"late, and lost":      {6 * lease / 10, lost, 1, 409, "ErrClaimLost"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := newCounted(alwaysWith("renew", tt.fails))
				landed := backend.claim
				backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
					held, claimed, err := landed(ctx, key, claim, terms)
					time.Sleep(tt.took)
					return held, claimed, err
				}
				p, es := &payments{}, &events{}
				ctx, leave := context.WithCancel(t.Context())
				leave() // The client's leaving has no part in it.
				h := idempotency.New(backend, idempotency.WithLease(lease), quiet, es.option())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					require.Equal(t, tt.renewed, backend.renews.Load())
					p.ServeHTTP(w, r)
				}))
				w := send(h, request("k", "b").WithContext(ctx))
				require.Equal(t, tt.renewed, backend.renews.Load())
				if tt.fails == nil {
					require.Equal(t, tt.status, w.Code)
					require.EqualValues(t, 1, p.runs.Load())
					return
				}
				requireProblem(t, w, tt.status, tt.problem)
				require.Equal(t, "1", w.Header().Get("Retry-After"))
				require.Zero(t, p.runs.Load())
				e, _ := es.last(t)
				require.Equal(t, idempotency.Failed, e.Outcome)
				require.ErrorIs(t, e.Err, idempotency.ErrUnavailable)
				require.ErrorIs(t, e.Err, tt.fails)
				require.EqualValues(t, 1, backend.releases.Load())
				require.Nil(t, lookup(t, backend, "k"))
			})
		})
	}
}

// A late claim that is known to be another's is no case for WithFailOpen.
func TestLateClaimIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, p := newCounted(never), &payments{}
		landed := backend.claim
		backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
			held, claimed, err := landed(ctx, key, claim, terms)
			time.Sleep(time.Minute)
			mustClaim(t, backend.Memory, key, claimOf("another"), terms)
			return held, claimed, err
		}
		h := idempotency.New(backend, idempotency.WithFailOpen(), quiet)(p)
		require.Contains(t, []int{http.StatusConflict, http.StatusServiceUnavailable}, send(h, request("k", "b")).Code)
		require.Zero(t, p.runs.Load(), "another request has the key")
		require.Equal(t, claimOf("another"), lookup(t, backend, "k").Claim)
	})
}

// The renewal of a late claim is bounded by half a lease, and by 5 s.
func TestLateClaimWhoseRenewalHangs(t *testing.T) {
	for lease, bound := range map[time.Duration]time.Duration{time.Second: 500 * time.Millisecond, time.Minute: 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			landed := backend.claim
			backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
				held, claimed, err := landed(ctx, key, claim, terms)
				time.Sleep(lease)
				return held, claimed, err
			}
			backend.renew = func(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ idempotency.Terms, _ []byte) error {
				<-ctx.Done()
				return ctx.Err()
			}
			p, start := &payments{}, time.Now()
			requireRefused(t, idempotency.New(backend, idempotency.WithLease(lease), quiet)(p), http.StatusServiceUnavailable, "ErrUnavailable")
			require.Equal(t, lease+bound, time.Since(start))
			require.Zero(t, p.runs.Load())
		})
	}
}

// A renewal that is late itself tells no more than the claim did.
func TestLateClaimWhoseRenewalIsLate(t *testing.T) {
	for took, status := range map[time.Duration]int{500 * time.Millisecond: 201, 500*time.Millisecond + 1: 503} {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			landed, renew := backend.claim, backend.renew
			backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
				held, claimed, err := landed(ctx, key, claim, terms)
				time.Sleep(time.Second)
				return held, claimed, err
			}
			backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
				err := renew(context.WithoutCancel(ctx), key, claim, terms, progress)
				time.Sleep(took)
				return err
			}
			p := &payments{}
			w := send(idempotency.New(backend, idempotency.WithLease(time.Second), quiet)(p), request("k", "b"))
			time.Sleep(time.Minute) // A renewal that was due meanwhile is slow too.
			require.Equal(t, status, w.Code)
			if status == http.StatusServiceUnavailable {
				requireProblem(t, w, status, "ErrUnavailable")
				require.Zero(t, p.runs.Load())
				require.EqualValues(t, 1, backend.releases.Load())
			}
		})
	}
}

// The first renewal of a claim is due a twentieth of its lease after it was sent.
func TestRenewalCountsFromTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := newCounted(never)
		landed := backend.claim
		backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
			held, claimed, err := landed(ctx, key, claim, terms)
			time.Sleep(time.Second)
			return held, claimed, err
		}
		send(idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(500*time.Millisecond - 1)
			require.Zero(t, backend.renews.Load())
			time.Sleep(2 * time.Nanosecond)
			synctest.Wait()
			require.EqualValues(t, 1, backend.renews.Load())
		})), request("k", "b"))
	})
}

// A claim that failed releases nothing but itself.
func TestFailedClaimLeavesOthersAlone(t *testing.T) {
	backend := newCounted(never)
	mustClaim(t, backend.Memory, idempotency.NewKey("", "k"), claimOf("another"), lease(time.Hour))
	backend.claim = newCounted(always("claim")).claim
	requireRefused(t, idempotency.New(backend, quiet)(&payments{}), http.StatusServiceUnavailable, "ErrUnavailable")
	require.EqualValues(t, 1, backend.releases.Load())
	require.Equal(t, claimOf("another"), lookup(t, backend, "k").Claim)
}

// A claim's token is a version 7 UUID of its own for each request.
func TestTokens(t *testing.T) {
	start := time.Now().Truncate(time.Millisecond)
	seen := make(map[idempotency.Token]bool)
	backend := newHooked()
	backend.claim = func(_ context.Context, _ idempotency.Key, claim idempotency.Claim, _ idempotency.Terms) (idempotency.Record, bool, error) {
		require.False(t, seen[claim.Token])
		seen[claim.Token] = true
		id := uuid.UUID(claim.Token)
		require.EqualValues(t, 7, id.Version())
		require.Equal(t, uuid.RFC4122, id.Variant())
		require.False(t, claim.Token.Time().Before(start))
		return idempotency.Record{}, true, nil
	}
	h := idempotency.New(backend, quiet)(&payments{})
	for range 100 {
		send(h, request("k", "b"))
	}
	require.Len(t, seen, 100)
}
