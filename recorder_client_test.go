package idempotency_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

var (
	asEvents = asType("text/event-stream")
	event    = says("data: 1\n\n")
)

// TestContextAfterTheClientLeft has handlers that do something and then wait for the
// end of their context. The client has left before that, or leaves then.
func TestContextAfterTheClientLeft(t *testing.T) {
	atMostOnce := with(idempotency.WithAtMostOnce())
	for _, tt := range []struct {
		name    string
		opts    []idempotency.Option
		backend idempotency.Backend
		handler script
		ends    bool // with the client
	}{
		{"an event", nil, nil, script{asEvents, event}, true},
		{"an event, flushed", nil, nil, script{asEvents, event, flush}, true},
		{"a flush", nil, nil, script{asEvents, flush}, true},
		{"a header that is passed on", nil, nil, script{asEvents, code(200)}, true},
		{"an empty write", nil, nil, script{asEvents, says("")}, true},
		{"not JSON", nil, nil, script{says("<p>")}, true},
		{"not the JSON that was declared", nil, nil, script{asJSON, says(" "), says("<p>")}, true},
		{"over the limit", with(limit(4)), nil, script{asJSON, says(`"12`), says(`34"`)}, true},
		{"NoStore, then a write", nil, nil, script{asJSON, noStore, says("{}")}, true},
		{"NoStore between two writes", nil, nil, script{asJSON, says("{"), noStore, says("}")}, true},
		{"NoStore, then a flush", nil, nil, script{asJSON, says("{"), noStore, flush}, true},
		{"WithStoreIf", with(idempotency.WithStoreIf(below(200))), nil, script{asJSON, says("{}")}, true},
		{"nothing", nil, nil, script{}, false},
		{"a type", nil, nil, script{asEvents}, false},
		{"an informational header", nil, nil, script{asEvents, code(103)}, false},
		{"JSON", nil, nil, script{asJSON, code(201), says("{}")}, false},
		{"JSON, flushed", nil, nil, script{asJSON, flush, says("{}"), flush}, false},
		{"NoStore", nil, nil, script{noStore}, false},
		{"NoStore after a write", nil, nil, script{asJSON, says("{}"), noStore}, false},
		{"at most once", atMostOnce, nil, script{asEvents, event, flush}, false},
		{"at most once, NoStore", atMostOnce, nil, script{noStore, asEvents, event, flush}, false},
		{"recovery", with(idempotency.WithRecovery((&shop{}).recovery)), nil, script{asEvents, event, flush}, false},
		{"a transaction", types("application/json"), newLedger(never), script{asEvents, code(404), event, flush}, false},
	} {
		for _, left := range []string{"before", "afterwards"} {
			t.Run(tt.name+", "+left, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cause := errors.New("the client's own cause")
					ctx, leave := context.WithCancelCause(t.Context())
					backend := tt.backend
					if backend == nil {
						backend = idempotency.NewMemory()
					}
					returned := false
					h := idempotency.New(backend, append(tt.opts, quiet)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if left == "before" {
							leave(cause)
							synctest.Wait()
							require.NoError(t, r.Context().Err())
						}
						tt.handler.ServeHTTP(w, r)
						if left == "afterwards" {
							synctest.Wait()
							require.NoError(t, r.Context().Err())
							leave(cause)
						}
						synctest.Wait()
						if tt.ends {
							require.ErrorIs(t, r.Context().Err(), context.Canceled)
							require.Equal(t, cause, context.Cause(r.Context()))
						} else {
							require.NoError(t, r.Context().Err())
						}
						returned = true
					}))
					send(h, request("k", "b").WithContext(ctx))
					require.True(t, returned)
				})
			})
		}
	}
}

// A handler that streams sees the request's own deadline as one.
func TestDeadlineOfAStream(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			h := idempotency.New(idempotency.NewMemory(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				script{asEvents, event, flush}.ServeHTTP(w, r)
				<-r.Context().Done()
				require.Equal(t, context.DeadlineExceeded, r.Context().Err())
				require.Equal(t, context.DeadlineExceeded, context.Cause(r.Context()))
			}))
			send(h, request("k", "b").WithContext(ctx))
		})
	}
}

// An instance around this one decides for itself: its stream lets the handler end,
// unless this instance runs at most once.
func TestContextOfANestedStream(t *testing.T) {
	for name, tt := range map[string]struct {
		outer, inner []idempotency.Option
		ends         bool
	}{
		"both again":         {nil, nil, true},
		"inner at most once": {nil, with(idempotency.WithAtMostOnce()), false},
		"outer at most once": {with(idempotency.WithAtMostOnce()), nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				backend, returned := idempotency.NewMemory(), false
				inner := idempotency.New(backend, append(tt.inner, quiet, idempotency.WithHeader("X-Key"))...)
				outer := idempotency.New(backend, append(tt.outer, quiet)...)
				h := outer(inner(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					script{asEvents, event}.ServeHTTP(w, r)
					leave()
					synctest.Wait()
					require.Equal(t, tt.ends, r.Context().Err() != nil)
					returned = true
				})))
				send(h, requestWith("k", "X-Key", "k2").WithContext(ctx))
				require.True(t, returned)
			})
		})
	}
}

// A handler that has taken over its connection has the request's context too.
func TestContextAfterHijack(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	defer end()
	h := idempotency.New(idempotency.NewMemory(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, r.Context().Err())
		end()
		<-r.Context().Done()
	}))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r.WithContext(ctx)) }))
	defer server.Close()
	r, err := http.NewRequest(http.MethodPost, server.URL, nil)
	require.NoError(t, err)
	r.Header.Set("Idempotency-Key", "k")
	_, err = server.Client().Do(r)
	require.ErrorIs(t, err, io.EOF)
}

// A client with a key leaves a stream: its handler ends, the key is free, and the
// server closes.
func TestStreamEndsWithItsClient(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			backend, es, ended := idempotency.NewMemory(), &events{}, make(chan error, 1)
			server := httptest.NewUnstartedServer(idempotency.New(backend, es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				script{asEvents, event, flush}.ServeHTTP(w, r)
				<-r.Context().Done()
				ended <- context.Cause(r.Context())
			})))
			server.EnableHTTP2 = protocol == "HTTP/2.0"
			server.StartTLS()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, strings.NewReader("b"))
			require.NoError(t, err)
			r.Header.Set("Idempotency-Key", "k")
			resp, err := server.Client().Do(r)
			require.NoError(t, err)
			require.Equal(t, protocol, resp.Proto)
			line, err := bufio.NewReader(resp.Body).ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "data: 1\n", line)
			require.Equal(t, idempotency.StateOutstanding, lookup(t, backend, "k").State)
			leave()
			require.Equal(t, context.Canceled, <-ended)
			require.NoError(t, resp.Body.Close())
			server.Close()
			// Over HTTP/2 it does not wait for the handler.
			require.Eventually(t, func() bool { return len(es.seen()) == 1 }, time.Minute, time.Millisecond)
			require.Equal(t, idempotency.NotStored, es.seen()[0].Outcome)
			require.Nil(t, lookup(t, backend, "k"))
		})
	}
}
