package idempotency_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// Until the lease is over a retry is refused, and once the trace is it is a new request.
func TestRecoveryTimes(t *testing.T) {
	tests := map[string]struct {
		opts      []idempotency.Option
		after     time.Duration // the crash
		recovered bool
	}{
		"after the lease":        {nil, 30 * time.Second, true},
		"before the trace ends":  {nil, 24*time.Hour + 30*time.Second - 1, true},
		"after the trace":        {nil, 24*time.Hour + 30*time.Second, false},
		"lease and expiry":       {with(idempotency.WithLease(time.Minute), idempotency.WithExpiry(time.Hour)), 61*time.Minute - 1, true},
		"after lease and expiry": {with(idempotency.WithLease(time.Minute), idempotency.WithExpiry(time.Hour)), 61 * time.Minute, false},
		"for ever":               {with(idempotency.WithExpiry(0)), 100 * 365 * 24 * time.Hour, true},
		"without fingerprint":    {with(idempotency.WithFingerprint(nil)), 30 * time.Second, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dead, s := newCounted(never), &shop{}
				crash(t, dead, s, append(tt.opts, idempotency.WithRecovery(s.recovery))...)
				h := s.open(dead.Memory, tt.opts...)
				time.Sleep(30*time.Second - 1)
				requireRefused(t, h, http.StatusConflict, "ErrOutstanding")
				time.Sleep(tt.after - 30*time.Second + 1)
				answer := send(h, request("k", "b")).Body.String()
				require.Equal(t, tt.recovered, answer == recoveredCharge, answer)
				require.Equal(t, tt.recovered, s.recoveries.Load() == 1)
			})
		})
	}
}

// while it does.
func TestRecoveryOfManyAtOnce(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		const clients = 32
		backend, s := newBackend(t), &shop{}
		s.interrupt(t, backend)
		leave := make(chan struct{})
		s.recovers = func(w http.ResponseWriter, r *http.Request) {
			<-leave
			io.WriteString(w, recoveredCharge)
		}
		processes := []http.Handler{s.open(backend), s.open(backend)}
		var refused, all sync.WaitGroup
		refused.Add(clients - 1)
		for n := range clients {
			all.Go(func() {
				w := send(processes[n%2], request("k", "b"))
				switch {
				case w.Code == http.StatusConflict && w.Header().Get("Retry-After") == "1":
					refused.Done()
				case w.Body.String() != recoveredCharge:
					t.Errorf("answered %d %s", w.Code, w.Body)
				}
			})
		}
		refused.Wait()
		close(leave)
		all.Wait()
		require.EqualValues(t, 1, s.recoveries.Load())
		requireReplayed(t, send(processes[0], request("k", "b")), recoveredCharge)
	})
}

// has answered.
func TestRecoveryBesideALateOwner(t *testing.T) {
	for name, late := range map[string]script{"with an answer": {}, "without one": {noStore}, "with a panic": {panics("late")}} {
		for _, back := range []string{"while the recovery runs", "afterwards"} {
			t.Run(name+", "+back, func(t *testing.T) {
				t.Parallel()
				forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
					backend, s, es := newBackend(t), &shop{}, &events{}
					slow := newHooked() // It is cut off from the store while its handler runs.
					slow.claim, slow.complete, slow.release = backend.Claim, backend.Complete, backend.Release
					slow.renew = newCounted(always("renew")).renew
					opts := with(idempotency.WithLease(500*time.Millisecond), idempotency.WithWait(time.Minute))
					running, goOn, returned := make(chan struct{}), make(chan struct{}), make(chan struct{})
					s.after = func(w http.ResponseWriter, r *http.Request) {
						close(running)
						<-goOn
						late.ServeHTTP(w, r)
					}
					go func() {
						defer close(returned)
						defer func() { _ = recover() }()
						send(s.open(slow, append(opts, es.option())...), request("k", "b"))
					}()
					<-running
					comeBack := func() {
						close(goOn)
						<-returned
					}
					s.recovers = func(w http.ResponseWriter, r *http.Request) {
						if back == "while the recovery runs" {
							comeBack()
						}
						io.WriteString(w, recoveredCharge)
					}
					h := s.open(backend, opts...)
					require.Equal(t, recoveredCharge, send(h, request("k", "b")).Body.String())
					if back == "afterwards" {
						comeBack()
					}
					e, _ := es.last(t)
					require.NotEqual(t, idempotency.Stored, e.Outcome)
					require.False(t, e.Recovered)
					if name == "with an answer" {
						require.ErrorIs(t, e.Err, idempotency.ErrClaimLost)
					}
					requireReplayed(t, send(h, request("k", "b")), recoveredCharge)
					require.EqualValues(t, 1, s.recoveries.Load())
					require.Len(t, s.charges, 1)
				})
			})
		}
	}
}

// The claim of a recovery is renewed as any.
func TestRecoveryIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, s := idempotency.NewMemory(), &shop{}
		s.interrupt(t, backend)
		h := s.open(backend)
		s.recovers = func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Hour)
			require.NoError(t, r.Context().Err())
			io.WriteString(w, recoveredCharge)
		}
		go send(h, request("k", "b"))
		synctest.Wait()
		for range 100 {
			time.Sleep(30 * time.Second)
			requireRefused(t, h, http.StatusConflict, "ErrOutstanding")
		}
		time.Sleep(time.Hour)
		requireReplayed(t, send(h, request("k", "b")), recoveredCharge)
		require.EqualValues(t, 1, s.recoveries.Load())
	})
}

// The context of a recovery that lost its claim ends.
func TestRecoveryThatLostItsClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, s, es := newCounted(alwaysWith("renew", idempotency.ErrClaimLost)), &shop{}, &events{}
		s.interrupt(t, backend)
		s.recovers = func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			require.ErrorIs(t, context.Cause(r.Context()), idempotency.ErrClaimLost)
			panic("lost")
		}
		sendAnd(t, "lost", s.open(backend, es.option()), request("k", "b"))
		e, _ := es.last(t)
		require.ErrorIs(t, e.Err, idempotency.ErrClaimLost)
		require.True(t, e.Recovered)
	})
}

// another request may have run meanwhile.
func TestRecoveryLateClaim(t *testing.T) {
	const lease = time.Second
	terms := idempotency.Terms{Lease: lease, Trace: time.Hour, TakeOver: true}
	type verbs struct {
		*testing.T
		*counted
		retry idempotency.Claim // of the same request
	}
	interrupted := func(v verbs) {
		require.NoError(v, v.Memory.Release(v.Context(), keyOf("k"), v.retry, time.Hour))
	}
	taken := func(v verbs) { mustClaim(v, v.Memory, keyOf("k"), v.retry, terms) }
	tests := map[string]struct {
		before    bool // The key was interrupted before.
		meanwhile []func(v verbs)
		fails     error // of the second Claim
		took      time.Duration
		status    int
		problem   string
		recovered bool
	}{
		"free":                            {status: 200},
		"took over":                       {before: true, status: 200, recovered: true},
		"interrupted meanwhile":           {meanwhile: []func(verbs){taken, interrupted}, status: 200, recovered: true},
		"interrupted before and since":    {before: true, meanwhile: []func(verbs){taken, interrupted}, status: 200, recovered: true},
		"another runs":                    {before: true, meanwhile: []func(verbs){taken}, status: 409, problem: "ErrOutstanding"},
		"fails":                           {before: true, fails: errDown, status: 503, problem: "ErrUnavailable"},
		"late again":                      {before: true, took: lease/2 + 1, status: 503, problem: "ErrUnavailable"},
		"late again, and another runs":    {meanwhile: []func(verbs){taken}, took: lease/2 + 1, status: 409, problem: "ErrOutstanding"},
		"nearly late again, and recovers": {before: true, took: lease / 2, status: 200, recovered: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend, s, es := newCounted(never), &shop{}, &events{}
				if tt.before {
					s.interrupt(t, backend)
				}
				backend.claims.Store(0)
				backend.releases.Store(0)
				landed := backend.claim
				backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
					held, claimed, err := landed(context.WithoutCancel(ctx), key, claim, terms)
					if backend.claims.Load() > 1 {
						time.Sleep(tt.took)
						return held, claimed, errors.Join(err, tt.fails)
					}
					time.Sleep(lease)
					for _, f := range tt.meanwhile {
						f(verbs{t, backend, retryOf(claim, "retry")})
					}
					return held, claimed, err
				}
				s.before = func(http.ResponseWriter, *http.Request) { require.Zero(t, backend.renews.Load()) }
				h := s.open(backend, idempotency.WithLease(lease), es.option())
				w := send(h, request("k", "b"))
				require.EqualValues(t, 2, backend.claims.Load())
				e, _ := es.last(t)
				require.Equal(t, tt.recovered, e.Recovered)
				require.Equal(t, tt.recovered, s.recoveries.Load() == 1)
				if tt.problem == "" {
					require.Equal(t, tt.status, w.Code, w.Body)
					require.Equal(t, idempotency.Stored, e.Outcome)
					return
				}
				requireProblem(t, w, tt.status, tt.problem)
				if tt.status == http.StatusServiceUnavailable {
					require.EqualValues(t, 1, backend.releases.Load())
					require.Equal(t, idempotency.StateInterrupted, lookup(t, backend, "k").State)
				}
			})
		})
	}
}

// A claim that failed and has landed leaves the key as it was.
func TestRecoveryFailedClaim(t *testing.T) {
	for _, interrupted := range []bool{false, true} {
		forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
			backend, s := newBackend(t), &shop{}
			if interrupted {
				s.interrupt(t, backend)
			}
			fails := newHooked()
			fails.release = backend.Release
			fails.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
				mustClaim(t, backend, key, claim, terms)
				return idempotency.Record{}, false, errDown
			}
			requireRefused(t, s.open(fails), http.StatusServiceUnavailable, "ErrUnavailable")
			rec := lookup(t, backend.(idempotency.Inspector), "k")
			if !interrupted {
				require.Nil(t, rec)
				return
			}
			require.Equal(t, idempotency.StateInterrupted, rec.State)
			require.Equal(t, recoveredCharge, send(s.open(backend), request("k", "b")).Body.String())
		})
	}
}

// answer.
func TestRecoveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, s, es := idempotency.NewMemory(), &shop{}, &events{}
		h := s.open(backend, idempotency.WithWait(time.Hour), es.option())
		s.after = func(http.ResponseWriter, *http.Request) {
			time.Sleep(time.Minute)
			panic("died")
		}
		s.recovers = func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Minute)
			io.WriteString(w, recoveredCharge)
		}
		go sendAnd(t, "died", h, request("k", "b"))
		synctest.Wait()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				w := send(h, request("k", "b"))
				if w.Body.String() != recoveredCharge {
					t.Errorf("answered %d %s", w.Code, w.Body)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 1, s.runs.Load())
		require.EqualValues(t, 1, s.recoveries.Load())
		outcomes := make(map[idempotency.Outcome]int)
		for _, e := range es.seen() {
			outcomes[e.Outcome]++
			require.Equal(t, e.Outcome == idempotency.Stored, e.Recovered)
		}
		require.Equal(t, map[idempotency.Outcome]int{idempotency.Panicked: 1, idempotency.Stored: 1, idempotency.Replayed: 9}, outcomes)
	})
}

// An answer that could not be stored is sent, and recovered one lease later.
func TestRecoveryNotCompleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, s, es := newCounted(times(1, "complete", idempotency.ErrFull)), &shop{}, &events{}
		h := s.open(backend, es.option())
		require.Equal(t, `{"charge":1}`, send(h, request("k", "b")).Body.String())
		e, _ := es.last(t)
		require.Equal(t, idempotency.ReasonStoreFailed, e.Reason)
		requireRefused(t, h, http.StatusConflict, "ErrOutstanding")
		time.Sleep(30 * time.Second)
		require.Equal(t, recoveredCharge, send(h, request("k", "b")).Body.String())
		requireReplayed(t, send(h, request("k", "b")), recoveredCharge)
	})
}
