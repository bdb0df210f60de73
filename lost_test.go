package idempotency_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestClaimLost(t *testing.T) {
	// The process was paused for longer than its lease: another has the key.
	lose := func(backend *counted) {
		backend.renew = func(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms, []byte) error {
			backend.renews.Add(1)
			return fmt.Errorf("a backend's own words: %w", idempotency.ErrClaimLost)
		}
	}
	t.Run("ends the handler's context with its cause", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend, es := newCounted(never), &events{}
			lose(backend)
			h := idempotency.New(backend, es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				require.ErrorIs(t, r.Context().Err(), context.Canceled)
				require.Equal(t, idempotency.ErrClaimLost, context.Cause(r.Context()))
				time.Sleep(time.Hour)
				w.WriteHeader(http.StatusInternalServerError)
			}))
			w := send(h, request("k", "b"))
			require.Equal(t, http.StatusInternalServerError, w.Code)
			require.EqualValues(t, 1, backend.renews.Load(), "what is lost is not renewed")
			e, _ := es.last(t)
			require.Equal(t, idempotency.NotStored, e.Outcome)
			require.ErrorIs(t, e.Err, idempotency.ErrClaimLost)
		})
	})
	t.Run("never touches its successor's record", func(t *testing.T) {
		for _, answer := range []string{"{}", "not JSON", "panic"} {
			t.Run(answer, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					backend, es := newCounted(never), &events{}
					var paused atomic.Bool
					paused.Store(true)
					renew := backend.renew
					backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
						if paused.Load() {
							return errDown
						}
						return renew(ctx, key, claim, terms, progress)
					}
					var runs atomic.Int32
					h := idempotency.New(backend, es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if runs.Add(1) == 2 {
							time.Sleep(time.Minute)
							io.WriteString(w, `{"by":"successor"}`)
							return
						}
						<-r.Context().Done()
						require.Equal(t, idempotency.ErrClaimLost, context.Cause(r.Context()))
						if answer == "panic" {
							panic(http.ErrAbortHandler)
						}
						io.WriteString(w, answer)
					}))
					first := make(chan *httptest.ResponseRecorder, 1)
					go func() {
						defer func() {
							if recover() != nil {
								first <- nil
							}
						}()
						first <- send(h, request("k", "b"))
					}()
					time.Sleep(31 * time.Second) // The lease is over.
					second := make(chan *httptest.ResponseRecorder, 1)
					go func() { second <- send(h, request("k", "b")) }()
					synctest.Wait()
					paused.Store(false)
					if w := <-first; w != nil {
						require.Equal(t, answer, w.Body.String(), "it is sent all the same")
					}
					e, _ := es.last(t)
					require.ErrorIs(t, e.Err, idempotency.ErrClaimLost)
					require.Equal(t, http.StatusConflict, send(h, request("k", "b")).Code, "the successor's claim stands")
					require.Equal(t, `{"by":"successor"}`, (<-second).Body.String())
					w := send(h, request("k", "b"))
					require.Equal(t, `{"by":"successor"}`, w.Body.String())
					require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
				})
			})
		}
	})
}

func TestClaimLostOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outer := newCounted(never)
		outer.renew = func(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms, []byte) error {
			return idempotency.ErrClaimLost
		}
		unprotected := idempotency.New(newCounted(always("claim")), idempotency.WithHeader("X-Between"), idempotency.WithFailOpen(), quiet)
		h := idempotency.New(outer, quiet)(unprotected(idempotency.New(newCounted(never), idempotency.WithHeader("X-Key"), idempotency.WithLease(time.Hour))(
			http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				select {
				case <-r.Context().Done():
					require.Equal(t, idempotency.ErrClaimLost, context.Cause(r.Context()))
				case <-time.After(time.Hour):
					t.Error("the context did not end")
				}
			}))))
		r := request("k", "b")
		r.Header.Set("X-Key", "x")
		r.Header.Set("X-Between", "y")
		send(h, r)
	})
}

// TestOuterClientLeaves has an outer instance whose client leaves: that is no loss.
func TestOuterClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, leave := context.WithCancel(t.Context())
		ran := false
		unprotected := idempotency.New(newCounted(always("claim")), idempotency.WithFailOpen(), quiet)
		h := unprotected(idempotency.New(idempotency.NewMemory(), idempotency.WithHeader("X-Key"))(
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ran = true
				leave()
				synctest.Wait() // All that follows from it has happened.
				require.NoError(t, r.Context().Err())
				io.WriteString(w, "{}")
			})))
		send(h, requestWith("k", "X-Key", "x").WithContext(ctx))
		require.True(t, ran)
	})
}
