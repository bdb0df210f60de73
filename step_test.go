package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// resumes runs the handler again after an interruption.
var resumes = idempotency.WithRecovery(func(next http.Handler) http.Handler { return next })

// trip is a handler of three steps, and what they did.
type trip struct {
	mu   sync.Mutex
	did  []string
	dies string // where it panics: "before flight", "in flight", "after flight"; "" is nowhere
}

var legs = []string{"flight", "hotel", "car"}

func (h *trip) at(where string) {
	if h.dies == where {
		panic("died " + where)
	}
}

func (h *trip) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := ""
	for _, leg := range legs {
		h.at("before " + leg)
		booked, err := idempotency.Step(r.Context(), leg, func(ctx context.Context) ([]byte, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.did = append(h.did, leg)
			h.at("in " + leg)
			return fmt.Append(nil, leg, len(h.did)), nil
		})
		if err != nil {
			panic(err)
		}
		h.at("after " + leg)
		answer += string(booked) + " "
	}
	fmt.Fprintf(w, "%q", answer)
}

// A run goes on where the one before was interrupted: a step that was kept does not run again.
func TestStep(t *testing.T) {
	tests := map[string]struct {
		dies   string
		did    []string
		answer string
	}{
		"nowhere":       {"", legs, `"flight1 hotel2 car3 "`},
		"before flight": {"before flight", legs, `"flight1 hotel2 car3 "`},
		"in flight":     {"in flight", []string{"flight", "flight", "hotel", "car"}, `"flight2 hotel3 car4 "`},
		"after flight":  {"after flight", legs, `"flight1 hotel2 car3 "`},
		"before hotel":  {"before hotel", legs, `"flight1 hotel2 car3 "`},
		"in hotel":      {"in hotel", []string{"flight", "hotel", "hotel", "car"}, `"flight1 hotel3 car4 "`},
		"after hotel":   {"after hotel", legs, `"flight1 hotel2 car3 "`},
		"before car":    {"before car", legs, `"flight1 hotel2 car3 "`},
		"in car":        {"in car", []string{"flight", "hotel", "car", "car"}, `"flight1 hotel2 car4 "`},
		"after car":     {"after car", legs, `"flight1 hotel2 car3 "`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				s := &trip{dies: tt.dies}
				h := idempotency.New(newBackend(t), resumes, quiet)(s)
				if tt.dies != "" {
					sendAnd(t, "died "+tt.dies, h, request("k", "b"))
					s.dies = ""
				}
				require.Equal(t, tt.answer, send(h, request("k", "b")).Body.String())
				require.Equal(t, tt.did, s.did)
				requireReplayed(t, send(h, request("k", "b")), tt.answer)
			})
		})
	}
}

// What was kept is there for a run that takes over after the lease, too, and for each that
// dies in turn.
func TestStepAfterACrash(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend, s := newBackend(t), &trip{}
		opts := with(idempotency.WithLease(500*time.Millisecond), idempotency.WithWait(time.Minute), resumes, quiet)
		for _, s.dies = range []string{"after flight", "before hotel", "after hotel", "after car"} {
			dead := newHooked()
			dead.claim, dead.renew = backend.Claim, backend.Renew
			dead.release = func(context.Context, idempotency.Key, idempotency.Claim, time.Duration) error { return errDown }
			sendAnd(t, "died "+s.dies, idempotency.New(dead, opts...)(s), request("k", "b"))
		}
		s.dies = ""
		require.Equal(t, `"flight1 hotel2 car3 "`, send(idempotency.New(backend, opts...)(s), request("k", "b")).Body.String())
		require.Equal(t, legs, s.did)
	})
}

// runIn runs f in a handler under [resumes], and sends the answer that is stored.
func runIn(backend idempotency.Backend, f func(ctx context.Context), opts ...idempotency.Option) *httptest.ResponseRecorder {
	return send(idempotency.New(backend, append(opts, resumes, quiet)...)(handlerOf(f)), request("k", "b"))
}

// handlerOf returns a handler that calls f, and answers.
func handlerOf(f func(ctx context.Context)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f(r.Context())
		io.WriteString(w, "{}")
	})
}

// interruptIn is runIn for a run that dies after f.
func interruptIn(t *testing.T, backend idempotency.Backend, f func(ctx context.Context), opts ...idempotency.Option) {
	t.Helper()
	require.PanicsWithValue(t, "died", func() {
		runIn(backend, func(ctx context.Context) {
			f(ctx)
			panic("died")
		}, opts...)
	})
}

// does returns a function for a step that counts its runs and returns a result.
func does(runs *int, result string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		*runs++
		return []byte(result), nil
	}
}

// requireStep takes a step that must give a result.
func requireStep(t testing.TB, ctx context.Context, name, result string, f func(context.Context) ([]byte, error)) {
	t.Helper()
	got, err := idempotency.Step(ctx, name, f)
	require.NoError(t, err)
	require.Equal(t, result, string(got))
}

// Without WithRecovery, or without a key, f runs each time, with the very context.
func TestStepJustRuns(t *testing.T) {
	failed := errors.New("failed")
	tests := map[string]struct {
		opts []idempotency.Option
		key  string
	}{
		"without a key":    {with(resumes), ""},
		"again":            {nil, "k"},
		"at most once":     {with(idempotency.WithAtMostOnce()), "k"},
		"failing open":     {with(idempotency.WithFailOpen()), "k"},
		"not served":       {with(resumes, idempotency.WithMethods("PUT")), "k"},
		"no middleware":    {nil, ""},
		"another's header": {with(resumes, idempotency.WithHeader("X-Key")), "k"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			runs, backend := 0, newCounted(never)
			h := idempotency.New(backend, append(tt.opts, quiet)...)(handlerOf(func(ctx context.Context) {
				for range 2 {
					got, err := idempotency.Step(ctx, "s", func(given context.Context) ([]byte, error) {
						runs++
						require.Equal(t, ctx, given)
						return []byte("part"), failed
					})
					require.Equal(t, "part", string(got))
					require.Equal(t, failed, err)
				}
			}))
			send(h, request(tt.key, "b"))
			require.Equal(t, 2, runs)
			require.Zero(t, backend.renews.Load())
		})
	}
}

// An error of f is returned as it is. The next Step of that name runs its f.
func TestStepError(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend, runs, failed := newBackend(t), 0, errors.New("failed")
		fails := func(context.Context) ([]byte, error) {
			runs++
			return []byte("part"), failed
		}
		try := func(ctx context.Context) {
			got, err := idempotency.Step(ctx, "s", fails)
			require.Equal(t, failed, err)
			require.Nil(t, got)
		}
		interruptIn(t, backend, try)
		require.Nil(t, lookup(t, backend.(idempotency.Inspector), "k").Progress)
		runIn(backend, func(ctx context.Context) {
			try(ctx)
			try(ctx)
			requireStep(t, ctx, "s", "r", does(&runs, "r"))
			requireStep(t, ctx, "s", "r", fails)
		})
		require.Equal(t, 4, runs)
	})
}

// A result of every kind comes back as it was, and each caller has its own.
func TestStepResults(t *testing.T) {
	results := map[string]string{"": "no name", "empty": "", "all": string(allBytes()), "\xff\x00": "odd name", "long": fmt.Sprintf("%70000d", 1)}
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend, runs := newBackend(t), 0
		for range 3 {
			interruptIn(t, backend, func(ctx context.Context) {
				for range 2 {
					for name, want := range results {
						got, err := idempotency.Step(ctx, name, does(&runs, want))
						require.NoError(t, err)
						require.Equal(t, want, string(got))
						require.Equal(t, want == "", got == nil)
						clear(got)
					}
				}
			})
		}
		require.Equal(t, len(results), runs)
	})
}

// f and the handler may use what f has returned.
func TestStepKeepsACopy(t *testing.T) {
	backend, mine := idempotency.NewMemory(), []byte("r")
	interruptIn(t, backend, func(ctx context.Context) {
		requireStep(t, ctx, "s", "r", func(context.Context) ([]byte, error) { return mine, nil })
		mine[0] = 'x'
		requireStep(t, ctx, "s", "r", nil)
		requireStep(t, ctx, "t", "t", does(new(int), "t"))
	})
	runIn(backend, func(ctx context.Context) { requireStep(t, ctx, "s", "r", nil) })
}

// The context of f is that of its Step.
func TestStepContext(t *testing.T) {
	type valueKey struct{}
	runIn(idempotency.NewMemory(), func(ctx context.Context) {
		given, end := context.WithCancelCause(context.WithValue(ctx, valueKey{}, "v"))
		requireStep(t, given, "s", "r", func(ctx context.Context) ([]byte, error) {
			require.Equal(t, "v", ctx.Value(valueKey{}))
			require.Equal(t, idempotency.DeriveKey(given, "s"), idempotency.DeriveKey(ctx, "s"))
			ended := errors.New("ended")
			end(ended)
			require.Equal(t, ended, context.Cause(ctx))
			return []byte("r"), nil // What was done is kept.
		})
		requireStep(t, given, "s", "r", nil)
		_, err := idempotency.Step(given, "other", nil)
		require.ErrorIs(t, err, context.Cause(given), "no step begins whose context has ended")
		requireStep(t, ctx, "other", "o", does(new(int), "o"))
	})
}

// One name runs once; what others wait for they get.
func TestStepTogether(t *testing.T) {
	failed := errors.New("failed")
	tests := map[string]struct {
		f      func(context.Context) ([]byte, error)
		result string
		err    string // of those that wait
	}{
		"a result": {func(context.Context) ([]byte, error) { return []byte("r"), nil }, "r", ""},
		"an error": {func(context.Context) ([]byte, error) { return nil, failed }, "", "failed"},
		"a panic":  {func(context.Context) ([]byte, error) { panic("boom") }, "", "did not return"},
		"an end": {func(context.Context) ([]byte, error) {
			runtime.Goexit()
			return nil, nil
		}, "", "did not return"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runIn(idempotency.NewMemory(), func(ctx context.Context) {
					var panicked any
					runs, all := 0, sync.WaitGroup{}
					all.Go(func() {
						defer func() { panicked = recover() }()
						_, _ = idempotency.Step(ctx, "s", func(ctx context.Context) ([]byte, error) {
							runs++
							time.Sleep(time.Minute)
							return tt.f(ctx)
						})
					})
					synctest.Wait()
					for range 10 {
						all.Go(func() {
							got, err := idempotency.Step(ctx, "s", func(context.Context) ([]byte, error) { panic("a second run") })
							if string(got) != tt.result || fmt.Sprint(err) != "<nil>" && tt.err == "" {
								t.Errorf("got %q, %v", got, err)
							}
							if tt.err != "" {
								require.ErrorContains(t, err, tt.err)
							}
						})
					}
					leaves, leave := context.WithTimeoutCause(ctx, time.Second, errDown)
					defer leave()
					_, err := idempotency.Step(leaves, "s", func(context.Context) ([]byte, error) { panic("a second run") })
					require.ErrorIs(t, err, errDown, "one that waits may leave")
					requireStep(t, ctx, "other", "o", does(new(int), "o")) // No other name waits.
					all.Wait()
					require.Equal(t, name == "a panic", panicked == "boom", panicked)
					if tt.err != "" {
						requireStep(t, ctx, "s", "again", does(&runs, "again"))
						require.Equal(t, 2, runs)
						return
					}
					require.Equal(t, 1, runs)
				})
			})
		})
	}
}

// A Step may stand in the function of another name, and not in its own.
func TestStepWithinAStep(t *testing.T) {
	backend, runs := idempotency.NewMemory(), 0
	steps := func(ctx context.Context) {
		requireStep(t, ctx, "outer", "o", func(ctx context.Context) ([]byte, error) {
			requireStep(t, ctx, "inner", "i", does(&runs, "i"))
			for _, name := range []string{"outer", "between"} {
				_, err := idempotency.Step(ctx, "between", func(ctx context.Context) ([]byte, error) {
					_, err := idempotency.Step(ctx, name, nil)
					return nil, err
				})
				require.ErrorContains(t, err, "called by itself")
			}
			return []byte("o"), nil
		})
		requireStep(t, ctx, "inner", "i", nil)
	}
	interruptIn(t, backend, steps)
	runIn(backend, steps)
	require.Equal(t, 1, runs)
	t.Run("interrupted in the outer one", func(t *testing.T) {
		backend, runs := idempotency.NewMemory(), 0
		for _, end := range []any{"died", nil} {
			h := idempotency.New(backend, resumes, quiet)(handlerOf(func(ctx context.Context) {
				requireStep(t, ctx, "outer", "o", func(ctx context.Context) ([]byte, error) {
					requireStep(t, ctx, "inner", "i", does(&runs, "i"))
					if end != nil {
						panic(end)
					}
					return []byte("o"), nil
				})
			}))
			sendAnd(t, end, h, request("k", "b"))
		}
		require.Equal(t, 1, runs)
	})
}

// A Step belongs to the innermost instance that did not step aside.
func TestStepInAChain(t *testing.T) {
	// kept are the names that each instance has kept.
	chain := func(inner []idempotency.Option, headers ...string) (outer, within *counted) {
		outer, within = newCounted(never), newCounted(never)
		r := request("k", "b")
		for _, name := range headers {
			r.Header.Set(name, "k")
		}
		h := handlerOf(func(ctx context.Context) { requireStep(t, ctx, "s", "r", does(new(int), "r")) })
		send(idempotency.New(outer, resumes, quiet)(idempotency.New(within, append(inner, quiet)...)(h)), r)
		return outer, within
	}
	tests := map[string]struct {
		inner         []idempotency.Option
		headers       []string
		outer, within int32 // renewals
	}{
		"the inner one steps aside":     {with(resumes), nil, 1, 0},
		"the inner one has no key":      {with(resumes, idempotency.WithHeader("X-Key")), nil, 1, 0},
		"the inner one serves":          {with(resumes, idempotency.WithHeader("X-Key")), []string{"X-Key"}, 0, 1},
		"the inner one has no recovery": {with(idempotency.WithHeader("X-Key")), []string{"X-Key"}, 0, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			outer, within := chain(tt.inner, tt.headers...)
			require.Equal(t, tt.outer, outer.renews.Load())
			require.Equal(t, tt.within, within.renews.Load())
		})
	}
}

// The result of a step is no part of a transaction.
func TestStepBesideATransaction(t *testing.T) {
	l, runs := newLedger(times(1, "complete", idempotency.ErrNotCommitted)), 0
	h := idempotency.New(l, quiet, resumes)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requireStep(t, r.Context(), "s", "r", does(&runs, "r"))
		write(r, "written")
		io.WriteString(w, "{}")
	}))
	requireRefused(t, h, http.StatusServiceUnavailable, "ErrNotCommitted")
	require.Empty(t, l.written)
	require.Equal(t, 200, send(h, request("k", "b")).Code)
	require.Equal(t, []string{"written"}, l.written)
	require.Equal(t, 1, runs)
}

// A recovery has what the run before has kept, and adds to it.
func TestStepInARecovery(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend, runs := newBackend(t), 0
		interruptIn(t, backend, func(ctx context.Context) { requireStep(t, ctx, "a", "1", does(&runs, "1")) })
		recovers := idempotency.WithRecovery(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requireStep(t, r.Context(), "a", "1", nil)
				requireStep(t, r.Context(), "b", "2", does(&runs, "2"))
				next.ServeHTTP(w, r)
			})
		})
		h := idempotency.New(backend, quiet, recovers)(handlerOf(func(ctx context.Context) {
			requireStep(t, ctx, "b", "2", nil)
			panic("died")
		}))
		for range 2 {
			sendAnd(t, "died", h, request("k", "b"))
		}
		require.Equal(t, 2, runs)
	})
}
