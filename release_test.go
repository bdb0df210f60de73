package idempotency_test

import (
	"bytes"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// TestNotStoredFreesTheKey has a row for each way in which a run ends without a
// stored response: a retry runs the handler again.
func TestNotStoredFreesTheKey(t *testing.T) {
	transient := idempotency.WithStoreIf(func(status int, h http.Header) bool { return status < 500 && h.Get("X-Transient") == "" })
	filter := idempotency.WithHeaderFilter(func(string) bool { panic("filter") })
	const notStored, panicked = idempotency.NotStored, idempotency.Panicked
	tests := map[string]struct {
		opts    []idempotency.Option
		handler script
		panics  any
		outcome idempotency.Outcome
		reason  idempotency.Reason
		status  int
	}{
		"not JSON":                  {nil, script{says("<p>")}, nil, notStored, idempotency.ReasonContentType, 200},
		"broken JSON":               {nil, script{asJSON, says(`{"a":`)}, nil, notStored, idempotency.ReasonInvalidJSON, 200},
		"nothing written":           {nil, script{}, nil, notStored, idempotency.ReasonContentType, 200},
		"NoStore before the answer": {nil, script{noStore, code(502), says("{}")}, nil, notStored, idempotency.ReasonNoStore, 502},
		"NoStore after the answer":  {nil, script{code(502), says("{}"), noStore}, nil, notStored, idempotency.ReasonNoStore, 502},
		"WithStoreIf":               {with(transient), script{code(503), says("{}")}, nil, notStored, idempotency.ReasonStoreIf, 503},
		"WithStoreIf by header":     {with(transient), script{set("X-Transient", "1"), says("{}")}, nil, notStored, idempotency.ReasonStoreIf, 200},
		"panic before the answer":   {nil, script{panics("boom")}, "boom", panicked, "", 0},
		"panic after the answer":    {nil, script{says("{}"), aborts}, http.ErrAbortHandler, panicked, "", 0},
		"panic while it streams":    {nil, script{code(202), says("<p>"), aborts}, http.ErrAbortHandler, panicked, "", 202},
		"panic in WithHeaderFilter": {with(filter), script{set("X-A", "1"), says("{}")}, "filter", panicked, "", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				runs, es, backend := 0, &events{}, newBackend(t)
				h := idempotency.New(backend, append(tt.opts, es.option(), quiet)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					runs++
					tt.handler.ServeHTTP(w, r)
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
					require.Nil(t, lookup(t, backend.(idempotency.Inspector), "k"))
					e, count := es.last(t)
					require.Equal(t, n, count)
					require.Equal(t, tt.outcome, e.Outcome)
					require.Equal(t, tt.reason, e.Reason)
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

func TestReleaseFails(t *testing.T) {
	for name, tt := range map[string]struct {
		handler script
		body    string
		outcome idempotency.Outcome
	}{
		"not stored": {script{says("not JSON")}, "not JSON", idempotency.NotStored},
		"panic":      {script{panics("boom")}, "", idempotency.Panicked},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			es := &events{}
			h := idempotency.New(newCounted(always("release")), es.option(), logInto(&log))(tt.handler)
			outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() { _ = recover() }()
				h.ServeHTTP(w, r)
			})
			require.Equal(t, tt.body, send(outside, request("k", "b")).Body.String())
			require.Contains(t, log.String(), "claim not released")
			e, _ := es.last(t)
			require.Equal(t, tt.outcome, e.Outcome)
			require.ErrorIs(t, e.Err, errDown)
		})
	}
}

// A release that failed is sent again later: at most once, NoStore alone frees the key.
func TestReleaseThatFailedIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := newCounted(func(verb string, before int) error {
			if verb == "release" && before == 0 {
				return errDown
			}
			return nil
		})
		h := idempotency.New(backend, idempotency.WithAtMostOnce(), quiet)(script{noStore, says("{}")})
		send(h, request("k", "b"))
		require.NotNil(t, lookup(t, backend, "k"))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Nil(t, lookup(t, backend, "k"))
		time.Sleep(time.Hour)
		require.EqualValues(t, 2, backend.releases.Load())
	})
}
