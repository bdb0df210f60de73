package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/google/uuid"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

var (
	errDown = errors.New("dial tcp 10.0.0.7:6379: connection refused")
	quiet   = idempotency.WithLogger(slog.New(slog.DiscardHandler))
)

// counted counts the calls of each verb and lets them fail.
type counted struct {
	*hooked
	claims, renews, completes, releases atomic.Int32
}

// newCounted returns a Memory whose Claim, Renew, Complete and Release first ask
// fail, which gets the verb and how often it was called before; an error is
// returned in place of the call.
func newCounted(fail func(verb string, before int) error) *counted {
	memory := idempotency.NewMemory()
	c := &counted{hooked: &hooked{Backend: memory}}
	c.claim = func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
		if err := fail("claim", int(c.claims.Add(1))-1); err != nil {
			return idempotency.Record{}, false, err
		}
		return memory.Claim(ctx, key, claim, lease)
	}
	c.renew = func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
		if err := fail("renew", int(c.renews.Add(1))-1); err != nil {
			return err
		}
		return memory.Renew(ctx, key, claim, lease)
	}
	c.complete = func(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
		if err := fail("complete", int(c.completes.Add(1))-1); err != nil {
			return err
		}
		return memory.Complete(ctx, key, claim, resp, expiry)
	}
	c.release = func(ctx context.Context, key string, claim idempotency.Claim) error {
		if err := fail("release", int(c.releases.Add(1))-1); err != nil {
			return err
		}
		return memory.Release(ctx, key, claim)
	}
	return c
}

func never(string, int) error { return nil }

// always fails one verb, every time.
func always(verb string) func(string, int) error {
	return func(v string, _ int) error {
		if v == verb {
			return errDown
		}
		return nil
	}
}

func TestUnavailable(t *testing.T) {
	var log bytes.Buffer
	backend := newCounted(always("claim"))
	p, es := &payments{}, &events{}
	h := idempotency.New(backend, es.option(), idempotency.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))(p)

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
			backend.claim = func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
				_, claimed, err := landed(ctx, key, claim, lease)
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

func TestReleaseThatHangsHoldsNobodyUp(t *testing.T) {
	backend := newCounted(always("claim"))
	answered := make(chan struct{})
	backend.release = func(ctx context.Context, _ string, _ idempotency.Claim) error {
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

func TestFailOpen(t *testing.T) {
	t.Run("runs the handler unprotected", func(t *testing.T) {
		backend := newCounted(always("claim"))
		es, runs := &events{}, 0
		leave := func() {}
		h := idempotency.New(backend, idempotency.WithFailOpen(), es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs++
			key, ok := idempotency.KeyFromContext(r.Context())
			require.True(t, ok)
			require.Equal(t, "k", key)
			require.NotEmpty(t, idempotency.DeriveKey(r.Context(), "charge"), "a call downstream still has its key")
			idempotency.NoStore(r.Context())
			body, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.Equal(t, "b", string(body))
			w.WriteHeader(http.StatusAccepted)
			require.NoError(t, http.NewResponseController(w).Flush())
			leave()
			require.Error(t, r.Context().Err(), "its context is the client's, as without the middleware")
		}))
		for n := 1; n <= 2; n++ {
			ctx, cancel := context.WithCancel(t.Context())
			leave = cancel
			w := send(h, request("k", "b").WithContext(ctx))
			require.Equal(t, http.StatusAccepted, w.Code)
			require.True(t, w.Flushed)
			require.Equal(t, n, runs)
			require.EqualValues(t, n, backend.releases.Load())
			e, _ := es.last(t)
			require.Equal(t, idempotency.Unprotected, e.Outcome)
			require.Equal(t, http.StatusAccepted, e.Status)
			require.ErrorIs(t, e.Err, errDown)
		}
	})
	t.Run("not for a client that left", func(t *testing.T) {
		es, p := &events{}, &payments{}
		ctx, leave := context.WithCancel(t.Context())
		leave()
		var log bytes.Buffer
		h := idempotency.New(newCounted(never), idempotency.WithFailOpen(), es.option(), idempotency.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))(p)
		send(h, request("k", "b").WithContext(ctx))
		require.Zero(t, p.runs.Load())
		require.Empty(t, log.String(), "that is no fault")
		e, _ := es.last(t)
		require.Equal(t, idempotency.Failed, e.Outcome)
		require.ErrorIs(t, e.Err, context.Canceled)
	})
	t.Run("a handler that writes nothing", func(t *testing.T) {
		es := &events{}
		h := idempotency.New(newCounted(always("claim")), idempotency.WithFailOpen(), es.option(), quiet)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		send(h, request("k", "b"))
		e, _ := es.last(t)
		require.Equal(t, http.StatusOK, e.Status)
	})
}

func TestHandlerContext(t *testing.T) {
	t.Run("has the key, the values and the deadline", func(t *testing.T) {
		type traceKey struct{}
		deadline := time.Now().Add(time.Hour)
		ctx, cancel := context.WithDeadline(context.WithValue(t.Context(), traceKey{}, "trace"), deadline)
		defer cancel()
		ran := false
		h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ran = true
			key, ok := idempotency.KeyFromContext(r.Context())
			require.True(t, ok)
			require.Equal(t, `a "b"`, key)
			require.Equal(t, "trace", r.Context().Value(traceKey{}))
			got, ok := r.Context().Deadline()
			require.True(t, ok)
			require.Equal(t, deadline, got)
		}))
		send(h, request(`"a \"b\""`, "b").WithContext(ctx))
		require.True(t, ran)
	})
	t.Run("ends at the deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				start := time.Now()
				<-r.Context().Done()
				require.Equal(t, time.Minute, time.Since(start))
				require.ErrorIs(t, r.Context().Err(), context.DeadlineExceeded)
			}))
			require.Equal(t, http.StatusOK, send(h, request("k", "b").WithContext(ctx)).Code)
		})
	})
	t.Run("does not end at the deadline before the request's own", func(t *testing.T) {
		// A layer outside asks its own context whether time ran out. If it had not
		// ended yet, chi's Timeout would answer an empty 200 in place of a 504.
		for range 200 {
			synctest.Test(t, func(t *testing.T) {
				h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					<-r.Context().Done()
				}))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				send(h, request("k", "b").WithContext(ctx))
				cancel()
				require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
			})
		}
	})
	t.Run("outlives the client, whose retry finds the answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &payments{}
			h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-r.Context().Done():
					t.Error("the context ended:", context.Cause(r.Context()))
				case <-time.After(10 * time.Minute):
				}
				p.ServeHTTP(w, r)
			}))
			ctx, leave := context.WithCancel(t.Context())
			go send(h, request("k", "b").WithContext(ctx))
			synctest.Wait()
			leave()
			time.Sleep(time.Hour)
			w := send(h, request("k", "b"))
			require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
			require.Equal(t, `{"payment":1}`, w.Body.String())
		})
	})
	t.Run("ends when the handler has returned", func(t *testing.T) {
		var ctx context.Context
		h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { ctx = r.Context() }))
		send(h, request("k", "b"))
		require.ErrorIs(t, ctx.Err(), context.Canceled)
	})
	t.Run("without a key", func(t *testing.T) {
		key, ok := idempotency.KeyFromContext(t.Context())
		require.False(t, ok)
		require.Empty(t, key)
		require.Empty(t, idempotency.DeriveKey(t.Context(), "charge"))
		idempotency.NoStore(t.Context())
	})
}

func TestDeriveKey(t *testing.T) {
	derive := func(scope, key, name string) (derived string) {
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithScope(func(*http.Request) string { return scope }))(
			http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { derived = idempotency.DeriveKey(r.Context(), name) }))
		send(h, request(key, "b"))
		return derived
	}
	first := derive("acme", "k", "charge")
	require.Equal(t, "3b40cf6c-a5a8-5947-aeff-8ef6571fe4eb", first, "it is the same in every release")
	id, err := uuid.Parse(first)
	require.NoError(t, err)
	require.EqualValues(t, 5, id.Version())
	require.Equal(t, uuid.RFC4122, id.Variant())
	require.Equal(t, first, derive("acme", "k", "charge"))
	seen := map[string]string{}
	for _, parts := range [][3]string{{"acme", "k", "charge"}, {"acme", "k", "mail"}, {"acme", "k2", "charge"}, {"acme2", "k", "charge"}, {"", "acmek", "charge"}, {"acm", "ek", "charge"}, {"acme", "k", ""}} {
		key := derive(parts[0], parts[1], parts[2])
		require.NotContains(t, seen, key)
		seen[key] = ""
	}
}

func TestScope(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		p := &payments{}
		var keys []string
		backend := newBackend(t)
		spy := &hooked{Backend: backend, claim: func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
			keys = append(keys, key)
			return backend.Claim(ctx, key, claim, lease)
		}}
		h := idempotency.New(spy, idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("X-Tenant") }))(p)
		as := func(tenant string) *httptest.ResponseRecorder {
			r := request("k", "b")
			r.Header.Set("X-Tenant", tenant)
			return send(h, r)
		}
		require.Equal(t, `{"payment":1}`, as("acme").Body.String())
		require.Equal(t, `{"payment":2}`, as("bolt").Body.String())
		require.Equal(t, `{"payment":1}`, as("acme").Body.String())
		require.EqualValues(t, 2, p.runs.Load())
		require.Equal(t, []string{idempotency.StorageKey("acme", "k"), idempotency.StorageKey("bolt", "k"), idempotency.StorageKey("acme", "k")}, keys)
	})
}

func TestTwiceInOneChain(t *testing.T) {
	chain := func(outer, inner []idempotency.Option) (http.Handler, *payments, *counted, *events) {
		p, backend, es := &payments{}, newCounted(never), &events{}
		return idempotency.New(backend, append(outer, es.option())...)(idempotency.New(backend, append(inner, es.option())...)(p)), p, backend, es
	}
	header := func(name string) []idempotency.Option {
		return []idempotency.Option{idempotency.WithHeader(name)}
	}
	t.Run("the inner one steps aside", func(t *testing.T) {
		h, p, backend, es := chain(nil, nil)
		require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
		require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
		require.EqualValues(t, 1, p.runs.Load())
		require.EqualValues(t, 2, backend.claims.Load())
		_, n := es.last(t)
		require.Equal(t, 2, n)
	})
	t.Run("between the two stands another", func(t *testing.T) {
		p, backend := &payments{}, newCounted(never)
		h := idempotency.New(backend)(idempotency.New(backend, idempotency.WithHeader("X-Key"))(idempotency.New(backend)(p)))
		r := request("k", "b")
		r.Header.Set("X-Key", "x")
		require.Equal(t, http.StatusCreated, send(h, r).Code)
		require.EqualValues(t, 2, backend.claims.Load())
	})
	for name, key := range map[string]string{"another key": "other", "the same key": "k"} {
		t.Run("another header is a request of its own, with "+name, func(t *testing.T) {
			h, p, backend, es := chain(header("Idempotency-Key"), header("X-Key"))
			both := func() *http.Request {
				r := request("k", "b")
				r.Header.Set("X-Key", key)
				return r
			}
			require.Equal(t, http.StatusCreated, send(h, both()).Code)
			require.EqualValues(t, 2, backend.claims.Load())
			_, n := es.last(t)
			require.Equal(t, 2, n)
			require.Equal(t, "true", send(h, both()).Header().Get("Idempotent-Replayed"))
			require.EqualValues(t, 1, p.runs.Load())
		})
	}
	t.Run("another key is a request of its own", func(t *testing.T) {
		p, backend := &payments{}, newCounted(never)
		inner := idempotency.New(backend)(p)
		h := idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Idempotency-Key", "derived")
			inner.ServeHTTP(w, r)
		}))
		require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
		require.EqualValues(t, 2, backend.claims.Load())
	})
	t.Run("the same key in another header, with two around it", func(t *testing.T) {
		p, backend := &payments{}, newCounted(never)
		with := func(header string) func(http.Handler) http.Handler {
			return idempotency.New(backend, idempotency.WithHeader(header))
		}
		h := with("X-A")(with("X-B")(with("X-C")(p)))
		for _, replayed := range []string{"", "true"} {
			r := request("", "b")
			r.Header.Set("X-A", "k")
			r.Header.Set("X-B", "other")
			r.Header.Set("X-C", "k")
			w := send(h, r)
			require.Equal(t, http.StatusCreated, w.Code)
			require.Equal(t, replayed, w.Header().Get("Idempotent-Replayed"))
		}
	})
	t.Run("a refusal inside is no answer for good", func(t *testing.T) {
		p, inner := &payments{}, newCounted(func(verb string, before int) error {
			if verb == "claim" && before == 0 {
				return errDown
			}
			return nil
		})
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithContentTypes("*"))(idempotency.New(inner, idempotency.WithHeader("X-Key"), quiet)(p))
		for _, status := range []int{http.StatusServiceUnavailable, http.StatusCreated} {
			r := request("k", "b")
			r.Header.Set("X-Key", "x")
			require.Equal(t, status, send(h, r).Code)
		}
	})
	t.Run("a refusal inside is one for good, where the handler must not start twice", func(t *testing.T) {
		p, starts := &payments{}, 0
		inner := idempotency.New(newCounted(func(verb string, before int) error {
			if verb == "claim" && before == 0 {
				return errDown
			}
			return nil
		}), idempotency.WithHeader("X-Key"), quiet)(p)
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithContentTypes("*"), idempotency.WithAtMostOnce())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			starts++
			inner.ServeHTTP(w, r)
		}))
		for range 2 {
			r := request("k", "b")
			r.Header.Set("X-Key", "x")
			require.Equal(t, http.StatusServiceUnavailable, send(h, r).Code)
			require.Equal(t, 1, starts)
		}
	})
	t.Run("NoStore is for both", func(t *testing.T) {
		backend, runs := idempotency.NewMemory(), 0
		h := idempotency.New(backend)(idempotency.New(backend, idempotency.WithHeader("X-Key"))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs++
			idempotency.NoStore(r.Context())
			io.WriteString(w, "{}")
		})))
		for range 2 {
			r := request("k", "b")
			r.Header.Set("X-Key", "x")
			require.Equal(t, http.StatusOK, send(h, r).Code)
		}
		require.Equal(t, 2, runs)
	})
}

func TestRenewal(t *testing.T) {
	t.Run("holds the claim as long as the handler runs, and no longer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend, p := newCounted(never), &payments{}
			var leases []time.Duration
			renew := backend.renew
			backend.renew = func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
				leases = append(leases, lease)
				return renew(ctx, key, claim, lease)
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
			require.EqualValues(t, 20, backend.renews.Load(), "every third of the lease")
			for _, lease := range leases {
				require.Equal(t, 9*time.Second, lease)
			}
		})
	})
	t.Run("default lease", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			h := idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(10*time.Second - 1)
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
	t.Run("a release waits for the renewal under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend, es := newCounted(never), &events{}
			renewing, goOn := make(chan struct{}), make(chan struct{})
			renew := backend.renew
			backend.renew = func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
				close(renewing)
				<-goOn
				return renew(ctx, key, claim, lease)
			}
			h := idempotency.New(backend, es.option())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-renewing
				io.WriteString(w, "not JSON")
			}))
			go send(h, request("k", "b"))
			<-renewing
			synctest.Wait()
			require.Zero(t, backend.releases.Load())
			close(goOn)
			synctest.Wait()
			require.EqualValues(t, 1, backend.releases.Load())
			_, n := es.last(t)
			require.Equal(t, 1, n)
			time.Sleep(time.Hour)
			require.EqualValues(t, 1, backend.renews.Load(), "renewed no more")
		})
	})
	t.Run("ends before the release", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			release := backend.release
			backend.release = func(ctx context.Context, key string, claim idempotency.Claim) error {
				err := release(ctx, key, claim)
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
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithLease(time.Hour))(&payments{})
		w := httptest.NewRecorder()
		kept := weak.Make(w)
		h.ServeHTTP(w, request("k", "b"))
		w = nil
		for range 5 {
			runtime.GC()
		}
		require.Nil(t, kept.Value())
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

func TestClaimLost(t *testing.T) {
	// The process was paused for longer than its lease: another has the key.
	lose := func(backend *counted) {
		backend.renew = func(context.Context, string, idempotency.Claim, time.Duration) error {
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
					backend.renew = func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
						if paused.Load() {
							return errDown
						}
						return renew(ctx, key, claim, lease)
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
		outer.renew = func(context.Context, string, idempotency.Claim, time.Duration) error { return idempotency.ErrClaimLost }
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
	ctx, leave := context.WithCancel(t.Context())
	backend := idempotency.NewMemory()
	h := idempotency.New(newCounted(always("claim")), idempotency.WithFailOpen(), quiet)(idempotency.New(backend, idempotency.WithHeader("X-Key"))(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			outer := make(chan struct{})
			context.AfterFunc(ctx, func() { close(outer) })
			leave()
			<-outer
			require.NoError(t, r.Context().Err())
		})))
	r := request("k", "b").WithContext(ctx)
	r.Header.Set("X-Key", "x")
	send(h, r)
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

func TestBackendPanics(t *testing.T) {
	t.Run("in Renew", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			backend := newCounted(never)
			backend.renew = func(context.Context, string, idempotency.Claim, time.Duration) error { panic("renew") }
			h := idempotency.New(backend, idempotency.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(11 * time.Second)
				(&payments{}).ServeHTTP(w, r)
			}))
			require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
			require.Contains(t, log.String(), "backend panicked: renew")
		})
	})
	t.Run("in Release, after a Claim that failed", func(t *testing.T) {
		backend := newCounted(always("claim"))
		backend.release = func(context.Context, string, idempotency.Claim) error { panic("release") }
		requireProblem(t, send(idempotency.New(backend, quiet)(&payments{}), request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
	})
	t.Run("in Complete", func(t *testing.T) {
		backend, es := newCounted(never), &events{}
		backend.complete = func(context.Context, string, idempotency.Claim, *idempotency.Response, time.Duration) error {
			panic("complete")
		}
		h := idempotency.New(backend, es.option())(&payments{})
		require.PanicsWithValue(t, "complete", func() { send(h, request("k", "b")) })
		e, _ := es.last(t)
		require.Equal(t, idempotency.Panicked, e.Outcome)
		require.Zero(t, e.Status)
	})
}

func TestRecordThatNoServerCanSend(t *testing.T) {
	for _, status := range []int{-1, 7, 103, 199, 1000} {
		backend, p := newCounted(never), &payments{}
		h := idempotency.New(backend, quiet)(p)
		send(h, request("k", "b"))
		held, _, err := backend.Backend.Claim(t.Context(), idempotency.StorageKey("", "k"), idempotency.Claim{Token: "t"}, time.Hour)
		require.NoError(t, err)
		backend.claim = func(context.Context, string, idempotency.Claim, time.Duration) (idempotency.Record, bool, error) {
			return idempotency.Record{Claim: held.Claim, Response: &idempotency.Response{Status: status}}, false, nil
		}
		requireProblem(t, send(h, request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
		require.EqualValues(t, 1, p.runs.Load())
	}
}

func TestStoredBeforeSent(t *testing.T) {
	backend := newCounted(never)
	complete := backend.complete
	var w *httptest.ResponseRecorder
	backend.complete = func(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
		require.Zero(t, w.Body.Len())
		require.Equal(t, http.StatusOK, w.Code, "no header was written")
		require.Equal(t, 24*time.Hour, expiry)
		return complete(ctx, key, claim, resp, expiry)
	}
	w = httptest.NewRecorder()
	idempotency.New(backend)(&payments{}).ServeHTTP(w, request("k", "b"))
	require.Equal(t, `{"payment":1}`, w.Body.String())
	require.EqualValues(t, 1, backend.completes.Load())
	require.Zero(t, backend.releases.Load())
}

func TestExpiry(t *testing.T) {
	tests := map[string]struct {
		opts     []idempotency.Option
		replayed time.Duration // still
		over     time.Duration // 0 is never
	}{
		"default":  {nil, 24*time.Hour - 1, 24 * time.Hour},
		"a minute": {[]idempotency.Option{idempotency.WithExpiry(time.Minute)}, time.Minute - 1, time.Minute},
		"for ever": {[]idempotency.Option{idempotency.WithExpiry(0)}, 100 * 365 * 24 * time.Hour, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &payments{}
				h := idempotency.New(idempotency.NewMemory(), tt.opts...)(p)
				send(h, request("k", "b"))
				time.Sleep(tt.replayed)
				require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
				if tt.over > 0 {
					time.Sleep(tt.over - tt.replayed)
					require.Equal(t, `{"payment":2}`, send(h, request("k", "b")).Body.String())
				}
			})
		})
	}
}

func TestLetsGo(t *testing.T) {
	answers := map[string]struct {
		opts    []idempotency.Option
		handler http.HandlerFunc
		panics  any
		outcome idempotency.Outcome
		status  int
	}{
		"not JSON": {handler: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "<p>")
		}, outcome: idempotency.NotStored, status: 200},
		"broken JSON": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"a":`)
		}, outcome: idempotency.NotStored, status: 200},
		"nothing written": {handler: func(w http.ResponseWriter, r *http.Request) {}, outcome: idempotency.NotStored, status: 200},
		"NoStore before the answer": {handler: func(w http.ResponseWriter, r *http.Request) {
			idempotency.NoStore(r.Context())
			w.WriteHeader(http.StatusBadGateway)
			io.WriteString(w, "{}")
		}, outcome: idempotency.NotStored, status: 502},
		"NoStore after the answer": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			io.WriteString(w, "{}")
			idempotency.NoStore(r.Context())
		}, outcome: idempotency.NotStored, status: 502},
		"WithStoreIf": {opts: []idempotency.Option{idempotency.WithStoreIf(func(status int, h http.Header) bool {
			return status < 500 && h.Get("X-Transient") == ""
		})}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "{}")
		}, outcome: idempotency.NotStored, status: 503},
		"WithStoreIf by header": {opts: []idempotency.Option{idempotency.WithStoreIf(func(status int, h http.Header) bool {
			return status < 500 && h.Get("X-Transient") == ""
		})}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Transient", "1")
			io.WriteString(w, "{}")
		}, outcome: idempotency.NotStored, status: 200},
		"panic before the answer": {handler: func(w http.ResponseWriter, r *http.Request) {
			panic("boom")
		}, panics: "boom", outcome: idempotency.Panicked},
		"panic after the answer": {handler: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "{}")
			panic(http.ErrAbortHandler)
		}, panics: http.ErrAbortHandler, outcome: idempotency.Panicked},
		"panic while it streams": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, "<p>")
			panic(http.ErrAbortHandler)
		}, panics: http.ErrAbortHandler, outcome: idempotency.Panicked, status: 202},
		"panic in WithHeaderFilter": {opts: []idempotency.Option{idempotency.WithHeaderFilter(func(string) bool { panic("filter") })}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-A", "1")
			io.WriteString(w, "{}")
		}, panics: "filter", outcome: idempotency.Panicked},
	}
	for name, tt := range answers {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				runs, es := 0, &events{}
				h := idempotency.New(newBackend(t), append(tt.opts, es.option())...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					runs++
					tt.handler(w, r)
				}))
				for n := 1; n <= 3; n++ {
					if tt.panics != nil {
						require.PanicsWithValue(t, tt.panics, func() { send(h, request("k", "b")) })
					} else {
						w := send(h, request("k", "b"))
						require.Equal(t, tt.status, w.Code)
						require.Empty(t, w.Header().Get("Idempotent-Replayed"))
					}
					require.Equal(t, n, runs)
					e, count := es.last(t)
					require.Equal(t, n, count)
					require.Equal(t, tt.outcome, e.Outcome)
					require.Equal(t, tt.status, e.Status)
					require.NoError(t, e.Err)
				}
			})
		})
	}
}

func TestGoexit(t *testing.T) {
	backend, es := newCounted(never), &events{}
	h := idempotency.New(backend, es.option())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { runtime.Goexit() }))
	done := make(chan struct{})
	go func() {
		defer close(done)
		send(h, request("k", "b"))
		t.Error("it returned")
	}()
	<-done
	require.EqualValues(t, 1, backend.releases.Load())
	e, _ := es.last(t)
	require.Equal(t, idempotency.Panicked, e.Outcome)
}

// boom panics under a name that a stack shows.
func boom(http.ResponseWriter, *http.Request) { panic("boom") }

func TestPanicKeepsItsStack(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(boom))
	defer func() {
		require.Equal(t, "boom", recover())
		stack := make([]byte, 64<<10)
		stack = stack[:runtime.Stack(stack, false)]
		require.Contains(t, string(stack), "idempotency_test.boom", "the panic was not raised anew")
		require.Equal(t, 1, strings.Count(string(stack), "panic("), "%s", stack)
	}()
	send(h, request("k", "b"))
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
				h := idempotency.New(backend, es.option(), idempotency.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))(p)
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

// What a backend is given while a claim is completed or released ends after 5 s,
// in every way in which a context can be waited for.
func TestBackendThatHangs(t *testing.T) {
	type traceKey struct{}
	waits := map[string]func(ctx context.Context){
		"for Done": func(ctx context.Context) { <-ctx.Done() },
		"for Err": func(ctx context.Context) {
			for ctx.Err() == nil {
				time.Sleep(time.Second)
			}
		},
		"for a child": func(ctx context.Context) {
			child, cancel := context.WithCancel(ctx)
			defer cancel()
			synctest.Wait()
			goroutines := runtime.NumGoroutine()
			another, cancelAnother := context.WithCancel(ctx)
			defer cancelAnother()
			if n := runtime.NumGoroutine(); n > goroutines {
				panic("a child takes a goroutine")
			}
			<-child.Done()
			<-another.Done()
		},
		"for the deadline": func(ctx context.Context) {
			deadline, ok := ctx.Deadline()
			if !ok || ctx.Err() != nil {
				panic("no deadline, or it is over before it came")
			}
			time.Sleep(time.Until(deadline))
		},
	}
	for verb, answer := range map[string]string{"complete": `{}`, "release": "not JSON"} {
		for name, wait := range waits {
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
					backend := &hooked{Backend: idempotency.NewMemory()}
					if verb == "complete" {
						backend.complete = func(ctx context.Context, _ string, _ idempotency.Claim, _ *idempotency.Response, _ time.Duration) error {
							return hang(ctx)
						}
					} else {
						backend.release = func(ctx context.Context, _ string, _ idempotency.Claim) error { return hang(ctx) }
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

// A claim that hangs is given up after 5 s, and released for 200 ms at the most.
func TestClaimThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := newCounted(never)
		backend.claim = func(ctx context.Context, _ string, _ idempotency.Claim, _ time.Duration) (idempotency.Record, bool, error) {
			<-ctx.Done()
			return idempotency.Record{}, false, ctx.Err()
		}
		start := time.Now()
		requireProblem(t, send(idempotency.New(backend, quiet)(&payments{}), request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
		require.Equal(t, 5*time.Second, time.Since(start))
		require.EqualValues(t, 1, backend.releases.Load())
	})
}

// A claim that took as long as its lease may be another's by now: it is released,
// and the handler does not run.
func TestClaimThatIsLate(t *testing.T) {
	for _, took := range []time.Duration{time.Second - 1, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			landed := backend.claim
			backend.claim = func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
				held, claimed, err := landed(ctx, key, claim, lease)
				time.Sleep(took)
				return held, claimed, err
			}
			p := &payments{}
			h := idempotency.New(backend, idempotency.WithLease(time.Second), quiet)(p)
			w := send(h, request("k", "b"))
			if took < time.Second {
				require.Equal(t, http.StatusCreated, w.Code)
				return
			}
			requireProblem(t, w, http.StatusServiceUnavailable, "ErrUnavailable")
			require.Zero(t, p.runs.Load())
			require.EqualValues(t, 1, backend.releases.Load())
		})
	}
}

// What a backend is given to complete a claim ends with the call, whether it was
// waited for or not.
func TestBackendsContextEnds(t *testing.T) {
	for _, waits := range []bool{true, false} {
		backend := &hooked{Backend: idempotency.NewMemory()}
		var given context.Context
		backend.complete = func(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
			given = ctx
			if waits {
				_ = ctx.Done()
			}
			return backend.Backend.Complete(ctx, key, claim, resp, expiry)
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

// The mark for a response that found no room has 5 s of its own.
func TestMarkHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &hooked{Backend: idempotency.NewMemory()}
		backend.complete = func(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
			if resp.Status != 0 {
				<-ctx.Done()
				return idempotency.ErrFull
			}
			return backend.Backend.Complete(ctx, key, claim, resp, expiry)
		}
		h := idempotency.New(backend, idempotency.WithAtMostOnce(), quiet)(&payments{})
		send(h, request("k", "b"))
		requireProblem(t, send(h, request("k", "b")), http.StatusConflict, "ErrNotReplayable")
	})
}

// A claim that failed for certain releases nothing, not even what has no token.
func TestFailedClaimLeavesOthersAlone(t *testing.T) {
	backend := idempotency.NewMemory()
	name := idempotency.StorageKey("", "k")
	_, claimed, err := backend.Claim(t.Context(), name, idempotency.Claim{}, time.Hour)
	require.True(t, claimed && err == nil)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	send(idempotency.New(backend, quiet)(&payments{}), request("k", "b").WithContext(ctx))
	_, claimed, err = backend.Claim(t.Context(), name, idempotency.Claim{Token: "another"}, time.Hour)
	require.False(t, claimed)
	require.NoError(t, err)
}

// A type that embeds one of this package's backends is a backend of its own:
// what it adds is used.
func TestEmbeddedBackend(t *testing.T) {
	backend := &noisy{Memory: idempotency.NewMemory()}
	h := idempotency.New(backend)(&payments{})
	send(h, request("k", "b"))
	send(h, request("k", "b"))
	require.Equal(t, []string{"claim", "complete", "claim"}, backend.calls)
}

// noisy is a Memory that notes what it is asked.
type noisy struct {
	*idempotency.Memory
	calls []string
}

func (b *noisy) Claim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	b.calls = append(b.calls, "claim")
	return b.Memory.Claim(ctx, key, claim, lease)
}

func (b *noisy) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	b.calls = append(b.calls, "complete")
	return b.Memory.Complete(ctx, key, claim, resp, expiry)
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

func TestDefaultLogger(t *testing.T) {
	was := slog.Default()
	defer slog.SetDefault(was)
	h := idempotency.New(newCounted(always("claim")))(&payments{})
	var log bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	send(h, request("k", "b"))
	require.Contains(t, log.String(), "key not claimed")
}

func TestReleaseFails(t *testing.T) {
	var log bytes.Buffer
	es := &events{}
	h := idempotency.New(newCounted(always("release")), es.option(), idempotency.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "not JSON") }))
	require.Equal(t, "not JSON", send(h, request("k", "b")).Body.String())
	require.Contains(t, log.String(), "claim not released")
	e, _ := es.last(t)
	require.Equal(t, idempotency.NotStored, e.Outcome)
	require.ErrorIs(t, e.Err, errDown)
}

func TestCrashFreesTheKeyOneLeaseLater(t *testing.T) {
	tests := map[string]struct {
		opts []idempotency.Option
		free time.Duration
	}{
		"default":      {nil, 30 * time.Second},
		"WithLease":    {[]idempotency.Option{idempotency.WithLease(time.Minute)}, time.Minute},
		"at most once": {[]idempotency.Option{idempotency.WithAtMostOnce()}, 24 * time.Hour},
		"at most once, with an expiry": {
			[]idempotency.Option{idempotency.WithAtMostOnce(), idempotency.WithExpiry(time.Hour), idempotency.WithLease(time.Minute)}, time.Hour},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dead, p := newCounted(never), &payments{}
				// A process that dies claims, and is never heard of again.
				died := errors.New("died")
				dead.complete = func(context.Context, string, idempotency.Claim, *idempotency.Response, time.Duration) error {
					panic(died)
				}
				require.PanicsWithValue(t, died, func() { send(idempotency.New(dead, tt.opts...)(p), request("k", "b")) })
				h := idempotency.New(dead.Backend, tt.opts...)(p)
				time.Sleep(tt.free - 1)
				requireProblem(t, send(h, request("k", "b")), http.StatusConflict, "ErrOutstanding")
				time.Sleep(time.Nanosecond)
				require.Equal(t, `{"payment":2}`, send(h, request("k", "b")).Body.String())
			})
		})
	}
}

func TestAtMostOnce(t *testing.T) {
	handlers := map[string]http.HandlerFunc{
		"not JSON":      func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<p>") },
		"broken JSON":   func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{") },
		"nothing":       func(w http.ResponseWriter, r *http.Request) {},
		"not WithStore": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500); io.WriteString(w, "{}") },
		"panic":         boom,
	}
	storeIf := idempotency.WithStoreIf(func(status int, _ http.Header) bool { return status != 500 })
	for name, handler := range handlers {
		t.Run(name+" leaves a mark", func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				runs, es := 0, &events{}
				h := idempotency.New(newBackend(t), idempotency.WithAtMostOnce(), storeIf, es.option())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					runs++
					handler(w, r)
				}))
				if name == "panic" {
					require.PanicsWithValue(t, "boom", func() { send(h, request("k", "b")) })
				} else {
					send(h, request("k", "b"))
				}
				for range 2 {
					w := send(h, request("k", "b"))
					requireProblem(t, w, http.StatusConflict, "ErrNotReplayable")
					require.NotContains(t, w.Header(), "Retry-After")
					e, _ := es.last(t)
					require.Equal(t, idempotency.NotReplayable, e.Outcome)
					require.ErrorIs(t, e.Err, idempotency.ErrNotReplayable)
				}
				requireProblem(t, send(h, request("k", "other")), http.StatusUnprocessableEntity, "ErrKeyReused")
				require.Equal(t, 1, runs)
			})
		})
	}
	t.Run("a response is replayed", func(t *testing.T) {
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce())(&payments{})
		send(h, request("k", "b"))
		require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
	})
	t.Run("NoStore lets go", func(t *testing.T) {
		runs := 0
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs++
			idempotency.NoStore(r.Context())
		}))
		send(h, request("k", "b"))
		send(h, request("k", "b"))
		require.Equal(t, 2, runs)
	})
	t.Run("NoStore lets go, although the handler panics", func(t *testing.T) {
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			idempotency.NoStore(r.Context())
			panic("nothing was done")
		}))
		for range 2 {
			require.PanicsWithValue(t, "nothing was done", func() { send(h, request("k", "b")) })
		}
	})
	t.Run("a claim that failed is released", func(t *testing.T) {
		backend := newCounted(always("claim"))
		send(idempotency.New(backend, idempotency.WithAtMostOnce(), quiet)(&payments{}), request("k", "b"))
		require.EqualValues(t, 1, backend.releases.Load())
	})
	t.Run("an expiry shorter than the lease is renewed in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &payments{}
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce(), idempotency.WithExpiry(3*time.Second))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(time.Minute)
				p.ServeHTTP(w, r)
			}))
			go send(h, request("k", "b"))
			for range 11 {
				time.Sleep(5 * time.Second)
				require.Equal(t, http.StatusConflict, send(h, request("k", "b")).Code)
			}
			time.Sleep(time.Minute)
			require.EqualValues(t, 1, p.runs.Load())
		})
	})
	t.Run("a mark ends with the expiry", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce(), idempotency.WithExpiry(time.Hour))(handlers["not JSON"])
			send(h, request("k", "b"))
			time.Sleep(time.Hour - 1)
			require.Equal(t, http.StatusConflict, send(h, request("k", "b")).Code)
			time.Sleep(time.Nanosecond)
			require.Equal(t, http.StatusOK, send(h, request("k", "b")).Code)
		})
	})
	t.Run("a response that finds no room leaves a mark", func(t *testing.T) {
		es := &events{}
		h := idempotency.New(idempotency.NewMemory(idempotency.WithMaxBytes(2000)), idempotency.WithAtMostOnce(), es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%q", strings.Repeat("x", 3000))
		}))
		require.Equal(t, http.StatusOK, send(h, request("k", "b")).Code)
		e, _ := es.last(t)
		require.Equal(t, idempotency.NotStored, e.Outcome)
		require.ErrorIs(t, e.Err, idempotency.ErrFull)
		requireProblem(t, send(h, request("k", "b")), http.StatusConflict, "ErrNotReplayable")
	})
	t.Run("a claim that failed to be marked holds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &payments{}
			h := idempotency.New(newCounted(always("complete")), idempotency.WithAtMostOnce(), idempotency.WithExpiry(0), quiet)(p)
			send(h, request("k", "b"))
			for range 10 {
				time.Sleep(365 * 24 * time.Hour)
				requireProblem(t, send(h, request("k", "b")), http.StatusConflict, "ErrOutstanding")
			}
			require.EqualValues(t, 1, p.runs.Load())
		})
	})
	t.Run("the claim lasts as long as the response, and is renewed for a store that forgets", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(never)
			renewed := make(map[time.Duration]int)
			backend.renew = func(_ context.Context, _ string, _ idempotency.Claim, lease time.Duration) error {
				renewed[lease]++
				return nil
			}
			claim := backend.claim
			backend.claim = func(ctx context.Context, key string, c idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
				require.Equal(t, time.Hour, lease)
				return claim(ctx, key, c, lease)
			}
			h := idempotency.New(backend, idempotency.WithAtMostOnce(), idempotency.WithExpiry(time.Hour))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(61 * time.Second)
			}))
			send(h, request("k", "b"))
			require.Equal(t, map[time.Duration]int{time.Hour: 6}, renewed)
		})
	})
}

func TestErrorHandler(t *testing.T) {
	es := &events{}
	var got []error
	h := idempotency.New(idempotency.NewMemory(), es.option(), idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
		got = append(got, err)
		if errors.Is(err, idempotency.ErrKeyReused) {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		idempotency.WriteError(w, r, err)
	}))(&payments{})
	send(h, request("k", "b"))
	require.Equal(t, http.StatusTeapot, send(h, request("k", "c")).Code)
	e, _ := es.last(t)
	require.Equal(t, http.StatusTeapot, e.Status)
	requireProblem(t, send(h, request(`"`, "c")), http.StatusUnprocessableEntity, "ErrKeyInvalid")
	require.Len(t, got, 2)
	require.ErrorIs(t, got[0], idempotency.ErrKeyReused)
	require.ErrorIs(t, got[1], idempotency.ErrKeyInvalid)
}

// Nothing written would be a 200.
func TestErrorHandlerThatWritesNothing(t *testing.T) {
	es := &events{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithRequired(), es.option(),
		idempotency.WithErrorHandler(func(http.ResponseWriter, *http.Request, error) {}))(&payments{})
	requireProblem(t, send(h, request("", "b")), http.StatusBadRequest, "ErrKeyMissing")
	event, _ := es.last(t)
	require.Equal(t, http.StatusBadRequest, event.Status)
}

func TestObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type ctxKey struct{}
		var order []string
		var first, second idempotency.Event
		r := request(`"k"`, "b")
		r = r.WithContext(context.WithValue(r.Context(), ctxKey{}, "value"))
		w := httptest.NewRecorder()
		h := idempotency.New(idempotency.NewMemory(),
			idempotency.WithObserver(func(ctx context.Context, e idempotency.Event) {
				order = append(order, "first")
				first = e
				require.Equal(t, "value", ctx.Value(ctxKey{}))
				require.Equal(t, http.StatusCreated, w.Code, "the answer was written before")
			}),
			idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
				order = append(order, "second")
				second = e
			}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * time.Second)
			(&payments{}).ServeHTTP(w, r)
		}))
		h.ServeHTTP(w, r)
		require.Equal(t, idempotency.Event{Request: r, Key: "k", Outcome: idempotency.Stored, Status: http.StatusCreated, Duration: 3 * time.Second}, first)
		require.Equal(t, first, second)
		r.Body = io.NopCloser(strings.NewReader("b"))
		h.ServeHTTP(w, r)
		require.Equal(t, idempotency.Event{Request: r, Key: "k", Outcome: idempotency.Replayed, Status: http.StatusCreated}, second)
		require.Equal(t, []string{"first", "second", "first", "second"}, order)
	})
}

func TestObserverSeesAPanicBeforeTheHandler(t *testing.T) {
	es := &events{}
	h := idempotency.New(idempotency.NewMemory(), es.option(), idempotency.WithScope(func(*http.Request) string { panic("scope") }))(&payments{})
	require.PanicsWithValue(t, "scope", func() { send(h, request("k", "b")) })
	e, n := es.last(t)
	require.Equal(t, 1, n)
	require.Equal(t, idempotency.Panicked, e.Outcome)
	require.Zero(t, e.Status)
}

func TestBadOptions(t *testing.T) {
	memory := idempotency.NewMemory()
	tests := map[string]struct {
		opts []idempotency.Option
		want string
	}{
		"WithHeader empty":           {[]idempotency.Option{idempotency.WithHeader("")}, "idempotency: WithHeader: malformed header name"},
		"WithHeader malformed":       {[]idempotency.Option{idempotency.WithHeader("Idempotency Key")}, "idempotency: WithHeader: malformed header name"},
		"WithReplayHeader empty":     {[]idempotency.Option{idempotency.WithReplayHeader("")}, "idempotency: WithReplayHeader: malformed header name"},
		"WithReplayHeader malformed": {[]idempotency.Option{idempotency.WithReplayHeader("A:")}, "idempotency: WithReplayHeader: malformed header name"},
		"WithMethods none":           {[]idempotency.Option{idempotency.WithMethods()}, "idempotency: WithMethods: no method"},
		"WithMethods malformed":      {[]idempotency.Option{idempotency.WithMethods("POST", "PO ST")}, "idempotency: WithMethods: malformed method"},
		"WithMethods empty":          {[]idempotency.Option{idempotency.WithMethods("")}, "idempotency: WithMethods: malformed method"},
		"WithKeyValidator":           {[]idempotency.Option{idempotency.WithKeyValidator(nil)}, "idempotency: WithKeyValidator: nil function"},
		"WithScope":                  {[]idempotency.Option{idempotency.WithScope(nil)}, "idempotency: WithScope: nil function"},
		"WithLease zero":             {[]idempotency.Option{idempotency.WithLease(0)}, "idempotency: WithLease: duration not positive"},
		"WithLease negative":         {[]idempotency.Option{idempotency.WithLease(-1)}, "idempotency: WithLease: duration not positive"},
		"WithWait":                   {[]idempotency.Option{idempotency.WithWait(-1)}, "idempotency: WithWait: negative duration"},
		"WithBufferLimit":            {[]idempotency.Option{idempotency.WithBufferLimit(-1)}, "idempotency: WithBufferLimit: negative limit"},
		"WithExpiry":                 {[]idempotency.Option{idempotency.WithExpiry(-1)}, "idempotency: WithExpiry: negative duration"},
		"WithContentTypes none":      {[]idempotency.Option{idempotency.WithContentTypes()}, "idempotency: WithContentTypes: no type"},
		"WithContentTypes malformed": {[]idempotency.Option{idempotency.WithContentTypes("json")}, "idempotency: WithContentTypes: malformed media type (give it without parameters and wildcards)"},
		"WithContentTypes wildcard":  {[]idempotency.Option{idempotency.WithContentTypes("application/*")}, "idempotency: WithContentTypes: malformed media type (give it without parameters and wildcards)"},
		"WithContentTypes parameter": {[]idempotency.Option{idempotency.WithContentTypes("text/html; charset=utf-8")}, "idempotency: WithContentTypes: malformed media type (give it without parameters and wildcards)"},
		"WithStoreIf":                {[]idempotency.Option{idempotency.WithStoreIf(nil)}, "idempotency: WithStoreIf: nil function"},
		"WithHeaderFilter":           {[]idempotency.Option{idempotency.WithHeaderFilter(nil)}, "idempotency: WithHeaderFilter: nil function"},
		"WithErrorHandler":           {[]idempotency.Option{idempotency.WithErrorHandler(nil)}, "idempotency: WithErrorHandler: nil function"},
		"WithObserver":               {[]idempotency.Option{idempotency.WithObserver(nil)}, "idempotency: WithObserver: nil function"},
		"WithLogger":                 {[]idempotency.Option{idempotency.WithLogger(nil)}, "idempotency: WithLogger: nil logger"},
		"WithAtMostOnce":             {[]idempotency.Option{idempotency.WithFailOpen(), idempotency.WithAtMostOnce()}, "idempotency: WithAtMostOnce: cannot be had together with WithFailOpen"},
		"nil option":                 {[]idempotency.Option{nil}, "idempotency: New: nil option"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			require.PanicsWithValue(t, tt.want, func() { idempotency.New(memory, tt.opts...) })
		})
	}
	t.Run("nil backend", func(t *testing.T) {
		require.PanicsWithValue(t, "idempotency: New: nil backend", func() { idempotency.New(nil) })
		require.PanicsWithValue(t, "idempotency: New: nil backend", func() { idempotency.New((*idempotency.Memory)(nil)) })
	})
	t.Run("nil handler", func(t *testing.T) {
		require.PanicsWithValue(t, "idempotency: New: nil handler to wrap", func() { idempotency.New(memory)(nil) })
	})
	t.Run("the last of two wins", func(t *testing.T) {
		h := idempotency.New(memory, idempotency.WithReplayHeader("A"), idempotency.WithReplayHeader("B"))(&payments{})
		send(h, request("k", "b"))
		w := send(h, request("k", "b"))
		require.Empty(t, w.Header().Get("A"))
		require.Equal(t, "true", w.Header().Get("B"))
	})
}
