package idempotency_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// waiters is how many requests wait in the tests below, beside the one that runs.
const waiters = 100

// sendMany sends as many equal requests as wait, and returns their answers.
func sendMany(h http.Handler, ctx func(n int) context.Context) <-chan *httptest.ResponseRecorder {
	answers := make(chan *httptest.ResponseRecorder, waiters)
	for n := range waiters {
		go func() { answers <- send(h, request("k", "b").WithContext(ctx(n))) }()
	}
	return answers
}

// Many that wait for one key ask the store about as often as one.
func TestWaitersShareOneLook(t *testing.T) {
	for _, takes := range []time.Duration{time.Millisecond, 10 * time.Second, 2 * time.Minute} {
		t.Run(takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend, p := newCounted(never), &payments{}
				h := idempotency.New(backend, idempotency.WithWait(time.Minute))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(takes)
					p.ServeHTTP(w, r)
				}))
				go send(h, request("k", "b"))
				synctest.Wait()
				start := time.Now()
				answers := sendMany(h, func(int) context.Context { return t.Context() })
				looks := int32(min(takes, time.Minute)/(100*time.Millisecond)) + 10 // of one
				most := 1 + waiters + looks
				if takes > time.Minute {
					most += waiters // Each looks once more at the end.
				}
				for range waiters {
					w := <-answers
					if takes > time.Minute {
						requireProblem(t, w, http.StatusConflict, "ErrOutstanding")
						continue
					}
					requireReplayed(t, w, `{"payment":1}`)
					require.LessOrEqual(t, time.Since(start), takes+300*time.Millisecond)
				}
				require.LessOrEqual(t, backend.claims.Load(), most)
				time.Sleep(time.Hour)
				require.EqualValues(t, 1, p.runs.Load())
			})
		})
	}
}

// If the first releases its claim, one of those that wait runs the handler, and the
// others wait on.
func TestOneOfTheWaitersRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, p := newCounted(never), &payments{}
		var running, most, left atomic.Int32
		left.Store(3) // runs that are not stored
		h := idempotency.New(backend, idempotency.WithWait(time.Hour), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			time.Sleep(10 * time.Second)
			if left.Add(-1) >= 0 {
				idempotency.NoStore(r.Context())
			}
			p.ServeHTTP(w, r)
		}))
		go send(h, request("k", "b"))
		synctest.Wait()
		start := time.Now()
		answers, replayed := sendMany(h, func(int) context.Context { return t.Context() }), 0
		for range waiters {
			if w := <-answers; w.Header().Get("Idempotent-Replayed") != "" {
				requireReplayed(t, w, `{"payment":4}`)
				replayed++
			}
		}
		require.Equal(t, waiters-3, replayed)
		require.EqualValues(t, 4, p.runs.Load())
		require.EqualValues(t, 1, most.Load())
		require.LessOrEqual(t, time.Since(start), 42*time.Second)
		require.LessOrEqual(t, backend.claims.Load(), int32(1+waiters+4*110))
	})
}

// A client that leaves ends nobody's waiting but its own, also if it is the one that
// looks.
func TestWaitersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, p := newCounted(never), &payments{}
		h := idempotency.New(backend, idempotency.WithWait(time.Hour))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Minute)
			p.ServeHTTP(w, r)
		}))
		go send(h, request("k", "b"))
		synctest.Wait()
		// One after another leaves, but the last.
		answers := sendMany(h, func(n int) context.Context {
			if n == waiters-1 {
				return t.Context()
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n+1)*500*time.Millisecond)
			context.AfterFunc(ctx, cancel)
			return ctx
		})
		for range waiters - 1 {
			requireProblem(t, <-answers, http.StatusConflict, "ErrOutstanding")
		}
		requireReplayed(t, <-answers, `{"payment":1}`)
	})
}

// What one is told of is not the others' if they sent another request.
func TestWaitersOfOtherRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, p := newHooked(), &payments{}
		// Another instance compares no fingerprints: its claim matches any.
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Minute)
			idempotency.NoStore(r.Context())
		})
		go send(idempotency.New(backend, idempotency.WithFingerprint(nil), quiet)(slow), request("k", "b"))
		synctest.Wait()
		h := idempotency.New(backend, idempotency.WithWait(time.Hour))(p)
		answers := make(chan *httptest.ResponseRecorder, waiters)
		for n := range waiters {
			go func() { answers <- send(h, request("k", fmt.Sprint(n%2))) }()
		}
		codes := make(map[int]int)
		for range waiters {
			codes[(<-answers).Code]++
		}
		require.Equal(t, map[int]int{http.StatusCreated: waiters / 2, http.StatusUnprocessableEntity: waiters / 2}, codes)
		require.EqualValues(t, 1, p.runs.Load())
	})
}

// A backend that fails or panics for one that looks fails for nobody else.
func TestWaitersAndFaults(t *testing.T) {
	for _, fault := range []string{"error", "panic"} {
		t.Run(fault, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend, p := newCounted(never), &payments{}
				claim := backend.claim
				backend.claim = func(ctx context.Context, key idempotency.Key, c idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
					if backend.claims.Load() == waiters+1 {
						backend.claims.Add(1)
						if fault == "panic" {
							panic("boom")
						}
						return idempotency.Record{}, false, errDown
					}
					return claim(ctx, key, c, terms)
				}
				h := idempotency.New(backend, idempotency.WithWait(time.Hour), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(time.Minute)
					p.ServeHTTP(w, r)
				}))
				recovered := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() {
						if recover() != nil {
							w.WriteHeader(http.StatusServiceUnavailable)
						}
					}()
					h.ServeHTTP(w, r)
				})
				go send(h, request("k", "b"))
				synctest.Wait()
				codes := make(map[int]int)
				answers := sendMany(recovered, func(int) context.Context { return t.Context() })
				for range waiters {
					codes[(<-answers).Code]++
				}
				require.Equal(t, map[int]int{http.StatusCreated: waiters - 1, http.StatusServiceUnavailable: 1}, codes)
				require.EqualValues(t, 1, p.runs.Load())
			})
		})
	}
}
