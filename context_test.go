package idempotency_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

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

// The handler's request has a header map of its own: what it changes there, the
// request outside does not see, and a retry is not fooled.
func TestHandlersHeaderIsItsOwn(t *testing.T) {
	for name, backend := range map[string]idempotency.Backend{"claimed": newCounted(never), "unprotected": newCounted(always("claim"))} {
		t.Run(name, func(t *testing.T) {
			r := request("k", "b")
			r.Header["X-Many"] = []string{"1", "2"}
			before := r.Header.Clone()
			inside := before.Clone()
			if name == "claimed" {
				inside.Set("Accept-Encoding", "identity")
			}
			url, body := r.URL, r.Body
			h := idempotency.New(backend, idempotency.WithFailOpen(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, inner *http.Request) {
				require.NotSame(t, r, inner)
				require.Equal(t, inside, inner.Header)
				inner.Header.Set("Idempotency-Key", "another")
				inner.Header.Set("X-Inside", "1")
				inner.Header.Add("X-Many", "3")
				inner.Header.Del("Accept")
				inner.Method = "INSIDE"
				io.WriteString(w, "{}")
			}))
			send(h, r)
			require.Equal(t, before, r.Header)
			require.Equal(t, http.MethodPost, r.Method)
			require.Same(t, url, r.URL)
			require.True(t, body == r.Body)
		})
	}
}

// A handler is asked for no encoding, so that what compresses inside leaves a response
// that can be stored. Where every type is stored, or nothing, it is asked as the client asks.
func TestAcceptEncodingOfTheHandler(t *testing.T) {
	tests := map[string]struct {
		backend idempotency.Backend
		opts    []idempotency.Option
		want    []string // nil is as it was sent
	}{
		"stored":                  {newCounted(never), nil, []string{"identity"}},
		"every type":              {newCounted(never), with(every), nil},
		"a Transactor":            {newLedger(never), nil, nil},
		"a Transactor, JSON only": {newLedger(never), with(idempotency.WithContentTypes("application/json")), []string{"identity"}},
		"unprotected":             {newCounted(always("claim")), with(idempotency.WithFailOpen()), nil},
	}
	for name, tt := range tests {
		for _, sent := range [][]string{nil, {"gzip"}, {"br", "gzip;q=0.5"}} {
			t.Run(fmt.Sprint(name, sent), func(t *testing.T) {
				r := request("k", "b")
				if sent != nil {
					r.Header["Accept-Encoding"] = sent
				}
				before := r.Header.Clone()
				h := idempotency.New(tt.backend, append(tt.opts, quiet)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					want := tt.want
					if want == nil {
						want = sent
					}
					require.Equal(t, want, r.Header["Accept-Encoding"])
					if tt.want != nil {
						r.Header["Accept-Encoding"][0] = "changed" // The next request does not see it.
					}
					r.Header.Set("Accept-Encoding", "changed")
					idempotency.NoStore(r.Context())
				}))
				send(h, r)
				require.Equal(t, before, r.Header)
			})
		}
	}
}

// A handler that panics leaves the request outside as it was, too.
func TestHandlersHeaderAfterAPanic(t *testing.T) {
	r := request("k", "b")
	before := r.Header.Clone()
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		r.Header.Del("Idempotency-Key")
		r.Pattern = "POST /"
		panic("boom")
	}))
	require.Panics(t, func() { send(h, r) })
	require.Equal(t, before, r.Header)
	require.Equal(t, "POST /", r.Pattern)
}
