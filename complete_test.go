package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestStoredBeforeSent(t *testing.T) {
	backend := newCounted(never)
	complete := backend.complete
	var w *httptest.ResponseRecorder
	backend.complete = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
		require.Zero(t, w.Body.Len())
		require.Equal(t, http.StatusOK, w.Code, "no header was written")
		require.Equal(t, 24*time.Hour, expiry)
		return complete(ctx, key, claim, response, expiry)
	}
	w = httptest.NewRecorder()
	idempotency.New(backend)(&payments{}).ServeHTTP(w, request("k", "b"))
	require.Equal(t, `{"payment":1}`, w.Body.String())
	require.EqualValues(t, 1, backend.completes.Load())
	require.Zero(t, backend.releases.Load())
}

func TestCompleteFails(t *testing.T) {
	tests := map[string]struct {
		err    error
		times  int // how often Complete fails before it succeeds
		tries  func(n int32) bool
		took   [2]time.Duration // at least, at most
		stored bool
	}{
		"for a moment":  {errDown, 3, func(n int32) bool { return n == 4 }, [2]time.Duration{1, time.Second}, true},
		"for good":      {errDown, 1000, func(n int32) bool { return 5 <= n && n <= 50 }, [2]time.Duration{4 * time.Second, 5 * time.Second}, false},
		"claim lost":    {fmt.Errorf("wrapped: %w", idempotency.ErrClaimLost), 1000, func(n int32) bool { return n == 1 }, [2]time.Duration{}, false},
		"unreadable":    {fmt.Errorf("wrapped: %w", idempotency.ErrUnreadable), 1000, func(n int32) bool { return n == 1 }, [2]time.Duration{}, false},
		"store is full": {fmt.Errorf("wrapped: %w", idempotency.ErrFull), 1000, func(n int32) bool { return n == 1 }, [2]time.Duration{}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				backend := newCounted(func(verb string, before int) error {
					if verb == "complete" && before < tt.times {
						return tt.err
					}
					return nil
				})
				p, es := &payments{}, &events{}
				h := idempotency.New(backend, es.option(), logInto(&log))(p)
				ctx, leave := context.WithCancel(t.Context())
				start := time.Now()
				time.AfterFunc(time.Millisecond, leave) // The client does not wait for it.
				w := send(h, request("my-secret-key", "b").WithContext(ctx))
				require.GreaterOrEqual(t, time.Since(start), tt.took[0])
				require.LessOrEqual(t, time.Since(start), tt.took[1])
				require.Equal(t, `{"payment":1}`, w.Body.String(), "it is sent all the same")
				require.True(t, tt.tries(backend.completes.Load()), backend.completes.Load())
				require.Zero(t, backend.releases.Load(), "the claim is left to run out")
				e, _ := es.last(t)
				require.Equal(t, http.StatusCreated, e.Status)
				if tt.stored {
					require.Equal(t, idempotency.Stored, e.Outcome)
					require.NoError(t, e.Err)
					require.Empty(t, log.String())
					require.Equal(t, "true", send(h, request("my-secret-key", "b")).Header().Get("Idempotent-Replayed"))
					return
				}
				require.Equal(t, idempotency.NotStored, e.Outcome)
				require.Equal(t, idempotency.ReasonStoreFailed, e.Reason)
				require.ErrorIs(t, e.Err, tt.err)
				require.Contains(t, log.String(), "response not stored")
				require.NotContains(t, log.String(), "secret")
				require.Equal(t, http.StatusConflict, send(h, request("my-secret-key", "b")).Code)
				time.Sleep(30 * time.Second)
				require.Equal(t, `{"payment":2}`, send(h, request("my-secret-key", "b")).Body.String())
			})
		})
	}
}

// contextWaits are the ways in which a context can be waited for, in a bubble.
var contextWaits = map[string]func(ctx context.Context){
	"for Done": func(ctx context.Context) { <-ctx.Done() },
	"for Err": func(ctx context.Context) {
		for ctx.Err() == nil {
			time.Sleep(time.Second)
		}
	},
	"for a child": func(ctx context.Context) {
		const n = 100
		goroutines := runtime.NumGoroutine() // Those of other tests come and go.
		var children [n]context.Context
		for i := range children {
			child, cancel := context.WithCancel(ctx)
			defer cancel()
			children[i] = child
		}
		synctest.Wait()
		if runtime.NumGoroutine() > goroutines+n/2 {
			panic("each child takes a goroutine")
		}
		for _, child := range children {
			<-child.Done()
		}
	},
	"for the deadline": func(ctx context.Context) {
		deadline, ok := ctx.Deadline()
		if !ok || ctx.Err() != nil {
			panic("no deadline, or it is over before it came")
		}
		time.Sleep(time.Until(deadline))
	},
}

// What a backend is given while a claim is completed or released ends after 5 s,
// in every way in which a context can be waited for.
func TestBackendThatHangs(t *testing.T) {
	type traceKey struct{}
	for verb, answer := range map[string]string{"complete": `{}`, "release": "not JSON"} {
		for name, wait := range contextWaits {
			t.Run(verb+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hang := func(ctx context.Context) error {
						if ctx.Value(traceKey{}) != "trace" || ctx.Err() != nil {
							panic("not the request's values, or it has ended")
						}
						wait(ctx)
						if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
							panic("it has not ended")
						}
						return ctx.Err()
					}
					backend := newHooked()
					if verb == "complete" {
						backend.complete = func(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ []byte, _ time.Duration) error {
							return hang(ctx)
						}
					} else {
						backend.release = func(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ time.Duration) error {
							return hang(ctx)
						}
					}
					h := idempotency.New(backend, quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						fmt.Fprint(w, answer)
					}))
					ctx, leave := context.WithCancel(context.WithValue(t.Context(), traceKey{}, "trace"))
					leaving := time.AfterFunc(time.Second, leave)
					defer leaving.Stop()
					start := time.Now()
					w := send(h, request("k", "b").WithContext(ctx))
					require.Equal(t, 5*time.Second, time.Since(start))
					require.Equal(t, answer, w.Body.String(), "it is sent all the same")
				})
			})
		}
	}
}

// What a backend is given to complete a claim ends with the call, whether it was
// waited for or not.
func TestBackendsContextEnds(t *testing.T) {
	for _, waits := range []bool{true, false} {
		backend := newHooked()
		var given context.Context
		backend.complete = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
			given = ctx
			if waits {
				_ = ctx.Done()
			}
			return backend.Memory.Complete(ctx, key, claim, response, expiry)
		}
		w := &watched{httptest.NewRecorder(), func() { require.ErrorIs(t, given.Err(), context.Canceled, "while the answer is sent") }}
		idempotency.New(backend)(&payments{}).ServeHTTP(w, request("k", "b"))
		require.NotEmpty(t, w.Body.String())
		select {
		case <-given.Done():
		default:
			t.Fatal("it has not ended")
		}
	}
}

// watched calls a function when the body is written.
type watched struct {
	*httptest.ResponseRecorder
	before func()
}

func (w *watched) Write(p []byte) (int, error) {
	w.before()
	return w.ResponseRecorder.Write(p)
}

func TestBackendPanics(t *testing.T) {
	t.Run("in Renew", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			backend := newCounted(never)
			backend.renew = func(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms, []byte) error {
				panic("renew")
			}
			h := idempotency.New(backend, logInto(&log))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(11 * time.Second)
				(&payments{}).ServeHTTP(w, r)
			}))
			require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
			synctest.Wait()
			require.Contains(t, log.String(), "backend panicked: renew")
		})
	})
	t.Run("in Release, after a Claim that failed", func(t *testing.T) {
		backend := newCounted(always("claim"))
		backend.release = func(context.Context, idempotency.Key, idempotency.Claim, time.Duration) error { panic("release") }
		requireProblem(t, send(idempotency.New(backend, quiet)(&payments{}), request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
	})
	t.Run("in Complete", func(t *testing.T) {
		backend, es := newCounted(never), &events{}
		backend.complete = func(context.Context, idempotency.Key, idempotency.Claim, []byte, time.Duration) error {
			panic("complete")
		}
		h := idempotency.New(backend, es.option())(&payments{})
		require.PanicsWithValue(t, "complete", func() { send(h, request("k", "b")) })
		e, _ := es.last(t)
		require.Equal(t, idempotency.Panicked, e.Outcome)
		require.Zero(t, e.Status)
	})
}
