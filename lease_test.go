package idempotency_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestRenewal(t *testing.T) {
	t.Run("holds the claim as long as the handler runs, and no longer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend, p := newCounted(never), &payments{}
			var renewed []idempotency.Terms
			renew := backend.renew
			backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
				renewed = append(renewed, terms)
				return renew(ctx, key, claim, terms, progress)
			}
			h := idempotency.New(backend, idempotency.WithLease(9*time.Second))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(61 * time.Second)
				p.ServeHTTP(w, r)
			}))
			start := time.Now()
			go send(h, request("k", "b"))
			for time.Since(start) < 59*time.Second {
				time.Sleep(time.Second)
				require.Equal(t, http.StatusConflict, send(h, request("k", "b")).Code)
			}
			time.Sleep(time.Hour)
			require.EqualValues(t, 1, p.runs.Load())
			require.EqualValues(t, 61*20/9, backend.renews.Load(), "every twentieth of the lease")
			for _, terms := range renewed {
				require.Equal(t, lease(9*time.Second), terms)
			}
		})
	})
	t.Run("default lease", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			h := idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(1500*time.Millisecond - 1)
				require.Zero(t, backend.renews.Load())
				time.Sleep(2 * time.Nanosecond)
				synctest.Wait()
				require.EqualValues(t, 1, backend.renews.Load())
			}))
			send(h, request("k", "b"))
		})
	})
	t.Run("a fault is no loss", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend, p := newCounted(func(verb string, before int) error {
				if verb == "renew" && before%2 == 0 {
					return errDown
				}
				return nil
			}), &payments{}
			h := idempotency.New(backend, quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(5 * time.Minute)
				require.NoError(t, r.Context().Err())
				p.ServeHTTP(w, r)
			}))
			go send(h, request("k", "b"))
			synctest.Wait()
			time.Sleep(4 * time.Minute)
			require.Equal(t, http.StatusConflict, send(h, request("k", "b")).Code)
			time.Sleep(time.Hour)
			require.EqualValues(t, 1, p.runs.Load())
			require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
		})
	})
	t.Run("a release waits for the renewals under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend, es := newCounted(never), &events{}
			renewing, goOn := make(chan struct{}, 2), make(chan struct{})
			renew := backend.renew
			backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
				renewing <- struct{}{}
				<-goOn
				return renew(ctx, key, claim, terms, progress)
			}
			h := idempotency.New(backend, es.option())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-renewing
				<-renewing // A second begins beside one that hangs.
				io.WriteString(w, "not JSON")
			}))
			go send(h, request("k", "b"))
			time.Sleep(4 * time.Second)
			require.Zero(t, backend.releases.Load())
			goOn <- struct{}{}
			synctest.Wait()
			require.Zero(t, backend.releases.Load())
			goOn <- struct{}{}
			synctest.Wait()
			require.EqualValues(t, 1, backend.releases.Load())
			_, n := es.last(t)
			require.Equal(t, 1, n)
			time.Sleep(time.Hour)
			require.EqualValues(t, 2, backend.renews.Load(), "renewed no more")
			require.EqualValues(t, 1, backend.releases.Load(), "it is known what the renewals did")
		})
	})
	t.Run("ends before the release", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			release := backend.release
			backend.release = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
				err := release(ctx, key, claim, trace)
				time.Sleep(time.Minute) // Its answer is slow to come.
				return err
			}
			h := idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
			go send(h, request("k", "b"))
			time.Sleep(30 * time.Second)
			require.Zero(t, backend.renews.Load())
			time.Sleep(time.Hour)
		})
	})
	t.Run("keeps nothing of a request that has ended", func(t *testing.T) {
		// The context of a connection, or of a batch, outlives one request.
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(time.Hour))
		defer cancel()
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithLease(time.Hour))(&payments{})
		for key, ctx := range map[string]context.Context{"plain": t.Context(), "with a deadline": ctx} {
			var kept weak.Pointer[httptest.ResponseRecorder]
			served := make(chan struct{})
			go func() { // The stack goes with it.
				defer close(served)
				w := httptest.NewRecorder()
				kept = weak.Make(w)
				h.ServeHTTP(w, request(key, "b").WithContext(ctx))
			}()
			<-served
			require.Eventually(t, func() bool { runtime.GC(); return kept.Value() == nil }, time.Minute, time.Millisecond, key)
		}
	})
	t.Run("leaves no goroutine for each request", func(t *testing.T) {
		inside, leave := make(chan struct{}), make(chan struct{})
		h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			inside <- struct{}{}
			<-leave
		}))
		before := runtime.NumGoroutine()
		const n = 50
		done := make(chan struct{})
		for i := range n {
			go func() {
				send(h, request(fmt.Sprint(i), "b"))
				done <- struct{}{}
			}()
		}
		for range n {
			<-inside
		}
		require.LessOrEqual(t, runtime.NumGoroutine(), before+n+5)
		close(leave)
		for range n {
			<-done
		}
	})
}

// TestRenewedWhileCompleteIsRetried has a lease that is shorter than the retries.
func TestRenewedWhileCompleteIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := newCounted(func(verb string, before int) error {
			if verb == "complete" && before < 6 {
				return errDown
			}
			return nil
		})
		p := &payments{}
		h := idempotency.New(backend, idempotency.WithLease(time.Second), quiet)(p)
		go send(h, request("k", "b"))
		synctest.Wait()
		for range 2 {
			time.Sleep(time.Second)
			requireProblem(t, send(h, request("k", "b")), http.StatusConflict, "ErrOutstanding")
		}
		time.Sleep(time.Minute)
		require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
		require.EqualValues(t, 1, p.runs.Load())
	})
}

// slowClient is a ResponseWriter whose client takes long to read.
type slowClient struct {
	*httptest.ResponseRecorder
	reads time.Duration
}

func (w slowClient) Write(p []byte) (int, error) {
	time.Sleep(w.reads)
	return w.ResponseRecorder.Write(p)
}

func TestSlowClientHoldsNoClaim(t *testing.T) {
	for name, stored := range map[string]bool{"stored": true, "not stored": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := newCounted(func(verb string, _ int) error {
					if verb == "complete" && !stored {
						return idempotency.ErrFull
					}
					return nil
				})
				p := &payments{}
				h := idempotency.New(backend, quiet, idempotency.WithExpiry(time.Second))(p)
				go h.ServeHTTP(slowClient{httptest.NewRecorder(), time.Hour}, request("k", "b"))
				time.Sleep(31 * time.Second)
				require.Zero(t, backend.renews.Load())
				require.Equal(t, `{"payment":2}`, send(h, request("k", "b")).Body.String())
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

func TestCrashFreesTheKeyOneLeaseLater(t *testing.T) {
	tests := map[string]struct {
		opts []idempotency.Option
		free time.Duration
	}{
		"default":   {nil, 30 * time.Second},
		"WithLease": {with(idempotency.WithLease(time.Minute)), time.Minute},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dead, p := newCounted(never), &payments{}
				crash(t, dead, p, tt.opts...)
				h := idempotency.New(dead.Memory, tt.opts...)(p)
				time.Sleep(tt.free - 1)
				requireProblem(t, send(h, request("k", "b")), http.StatusConflict, "ErrOutstanding")
				time.Sleep(time.Nanosecond)
				require.Equal(t, `{"payment":2}`, send(h, request("k", "b")).Body.String())
			})
		})
	}
}

// A renewal that hangs is given up after a third of the lease, and after 5 s. The others
// do not wait for that.
func TestRenewalThatHangs(t *testing.T) {
	for lease, bound := range map[time.Duration]time.Duration{3 * time.Second: time.Second, time.Minute: 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			backend, p := newCounted(never), &payments{}
			renew := backend.renew
			backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
				if err := renew(ctx, key, claim, terms, progress); backend.renews.Load() > 1 {
					return err
				}
				start := time.Now()
				<-ctx.Done()
				require.Equal(t, bound, time.Since(start))
				return ctx.Err()
			}
			h := idempotency.New(backend, idempotency.WithLease(lease), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(lease / 20)
				synctest.Wait()
				require.EqualValues(t, 1, backend.renews.Load())
				time.Sleep(lease / 40)
				synctest.Wait()
				require.EqualValues(t, 2, backend.renews.Load(), "beside the one that hangs")
				time.Sleep(2 * lease)
				require.NoError(t, r.Context().Err())
				p.ServeHTTP(w, r)
			}))
			require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
			requireReplayed(t, send(h, request("k", "b")), `{"payment":1}`)
		})
	}
}

// An outage of up to nine tenths of a lease, at any moment of it, costs no claim: not
// where calls are refused, nor where they hang, nor where they do now one and now the other.
func TestOutageOfNineTenthsOfALease(t *testing.T) {
	outages := map[string]func(n int, hang func() error) error{
		"refused": func(int, func() error) error { return errDown },
		"hangs":   func(_ int, hang func() error) error { return hang() },
		"mixed": func(n int, hang func() error) error {
			if n%3 == 0 {
				return errDown
			}
			return hang()
		},
	}
	for name, outage := range outages {
		for _, lease := range []time.Duration{100 * time.Millisecond, 3 * time.Second, 30 * time.Second, time.Hour} {
			t.Run(fmt.Sprint(name, " ", lease), func(t *testing.T) {
				for moment := range 50 {
					synctest.Test(t, func(t *testing.T) {
						backend := newCounted(never)
						down := time.Now().Add(lease + time.Duration(moment)*lease/50)
						up := down.Add(9 * lease / 10)
						renew := backend.renew
						var tries atomic.Int32
						backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
							if now := time.Now(); now.Before(down) || !now.Before(up) {
								return renew(ctx, key, claim, terms, progress)
							}
							return outage(int(tries.Add(1)), func() error {
								<-ctx.Done()
								return ctx.Err()
							})
						}
						h := idempotency.New(backend, idempotency.WithLease(lease), quiet)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
							time.Sleep(4 * lease)
						}))
						served := make(chan struct{})
						go func() {
							defer close(served)
							send(h, request("k", "b"))
						}()
						synctest.Wait()
						for end := time.Now().Add(4*lease - 1); time.Now().Before(end); time.Sleep(lease / 100) {
							rec := lookup(t, backend, "k")
							require.NotNil(t, rec, "lost %v after the outage began", time.Since(down))
						}
						<-served
						require.Greater(t, tries.Load(), int32(30))
						time.Sleep(time.Hour) // until nothing is left to be released
					})
				}
			})
		}
	}
}

// Replies that come late make the tries no more than one for each fortieth of the lease,
// and no fewer.
func TestRenewalsThatAreSlow(t *testing.T) {
	const lease = 40 * time.Second
	synctest.Test(t, func(t *testing.T) {
		backend := newCounted(never)
		renew := backend.renew
		backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
			time.Sleep(lease/10 - time.Millisecond)
			return renew(ctx, key, claim, terms, progress)
		}
		send(idempotency.New(backend, idempotency.WithLease(lease))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			time.Sleep(2*lease - 1)
		})), request("k", "b"))
		require.EqualValues(t, 2*40-2, backend.renews.Load())
	})
}

// A row of faults is one line in the log, and the next row is another.
func TestRenewalFaultsAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		backend := newCounted(func(verb string, before int) error {
			if verb == "renew" && (before/10)%2 == 1 {
				return errDown
			}
			return nil
		})
		send(idempotency.New(backend, logInto(&log))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			for backend.renews.Load() < 35 {
				time.Sleep(time.Second)
			}
		})), request("k", "b"))
		synctest.Wait()
		require.Equal(t, 2, strings.Count(log.String(), "claim not renewed"))
	})
}

// A renewal whose outcome is unknown may land after the claim was released. It is released
// again once that can no longer be, and nobody waits for it.
func TestReleasedAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		opts    []idempotency.Option
		faults  int // of the later releases
		handler script
		traces  []time.Duration
	}{
		"again":                {nil, 0, script{says("<p>")}, []time.Duration{0, 0}},
		"at most once":         {with(idempotency.WithAtMostOnce(), idempotency.WithExpiry(time.Hour)), 0, script{says("<p>")}, []time.Duration{time.Hour, time.Hour}},
		"at most once, freed":  {with(idempotency.WithAtMostOnce()), 0, script{noStore}, []time.Duration{0, 0}},
		"the store stays down": {nil, 2, script{says("<p>")}, []time.Duration{0, 0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := newCounted(never)
				var landed func() error
				renew, release := backend.renew, backend.release
				backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
					landed = func() error { return renew(context.WithoutCancel(ctx), key, claim, terms, progress) }
					return errDown
				}
				var traces []time.Duration
				backend.release = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
					require.NoError(t, ctx.Err())
					if traces = append(traces, trace); len(traces) > 1 && len(traces) <= 1+tt.faults {
						return errDown
					}
					return release(ctx, key, claim, trace)
				}
				start := time.Now()
				send(idempotency.New(backend, append(tt.opts, quiet)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(2 * time.Second)
					tt.handler.ServeHTTP(w, r)
				})), request("k", "b"))
				require.Equal(t, 2*time.Second, time.Since(start))
				require.Equal(t, tt.traces[:1], traces)
				require.NoError(t, landed())
				require.Equal(t, idempotency.StateOutstanding, lookup(t, backend, "k").State)
				time.Sleep(5*time.Second - 1)
				require.Equal(t, tt.traces[:1], traces)
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				require.Equal(t, tt.traces[:2], traces)
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Equal(t, tt.traces, traces)
				if tt.traces[0] == 0 {
					require.Nil(t, lookup(t, backend, "k"))
				} else {
					require.Equal(t, idempotency.StateInterrupted, lookup(t, backend, "k").State)
				}
			})
		})
	}
}

// A backend that does not heed its context holds a release up for 5 s, and no longer.
func TestRenewalThatHeedsNoContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := newCounted(never)
		hang := make(chan struct{})
		backend.renew = func(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms, []byte) error {
			<-hang
			return errDown
		}
		start := time.Now()
		send(idempotency.New(backend, quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * time.Second)
		})), request("k", "b"))
		require.Equal(t, 7*time.Second, time.Since(start))
		require.EqualValues(t, 1, backend.releases.Load())
		close(hang)
		time.Sleep(time.Minute)
		require.EqualValues(t, 2, backend.releases.Load())
	})
}

// A renewal that took long may have been sent by two ways. If one of them lands late, after the
// claim was released, it would hold the key: the claim is released again.
func TestClaimOfASlowRenewalIsReleasedAgain(t *testing.T) {
	for took, releases := range map[time.Duration]int32{400 * time.Millisecond: 1, 600 * time.Millisecond: 2} {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			renew := backend.renew
			backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
				time.Sleep(took)
				return renew(ctx, key, claim, terms, progress)
			}
			h := idempotency.New(backend, idempotency.WithLease(3*time.Second), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(took + 160*time.Millisecond) // The first renewal has ended.
				idempotency.NoStore(r.Context())
			}))
			send(h, request("k", "b"))
			require.EqualValues(t, 1, backend.releases.Load())
			time.Sleep(time.Minute)
			require.Equal(t, releases, backend.releases.Load(), "%v", took)
		})
	}
}
