package idempotency_test

import (
	"context"
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
		require.Equal(t, idempotency.Event{Request: r, Key: "k", StorageKey: keyOf("k"), Outcome: idempotency.Stored, Status: http.StatusCreated, Duration: 3 * time.Second}, first)
		require.Equal(t, first, second)
		r.Body = io.NopCloser(strings.NewReader("b"))
		h.ServeHTTP(w, r)
		require.Equal(t, idempotency.Event{Request: r, Key: "k", StorageKey: keyOf("k"), Outcome: idempotency.Replayed, Status: http.StatusCreated}, second)
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

func TestPatternIsToldOutside(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("POST /payments", &payments{})
	es := &events{}
	h := idempotency.New(idempotency.NewMemory(), es.option())(mux)
	r := request("k", "b")
	send(h, r)
	require.Equal(t, "POST /payments", r.Pattern)
	e, _ := es.last(t)
	require.Equal(t, "POST /payments", e.Request.Pattern)
}

// An event has the client's key and its storage key, also where the handler did
// not run. Reason is set with NotStored only.
func TestEventOfEachOutcome(t *testing.T) {
	backend := newCounted(never)
	es := &events{}
	opts := with(es.option(), quiet, idempotency.WithAtMostOnce(), idempotency.WithScope(func(*http.Request) string { return "acme" }))
	h := idempotency.New(backend, append(opts, idempotency.WithRequired())...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch key, _ := idempotency.KeyFromContext(r.Context()); key {
		case "outer":
			send(idempotency.New(backend, opts...)(&payments{}), request("outer", "b").WithContext(r.Context()))
			send(idempotency.New(backend, opts...)(&payments{}), request("inner", "b").WithContext(r.Context()))
			idempotency.NoStore(r.Context())
		case "html":
			io.WriteString(w, "<p>")
		case "panic":
			panic("boom")
		default:
			io.WriteString(w, "{}")
		}
	}))
	down := idempotency.New(newCounted(always("claim")), opts...)(&payments{})
	full := idempotency.New(newCounted(alwaysWith("complete", idempotency.ErrFull)), opts...)(&payments{})
	tests := []struct {
		name    string
		h       http.Handler
		key     string // as it is sent
		body    string
		want    string // the key in the event
		outcome idempotency.Outcome
		reason  idempotency.Reason
		status  int
	}{
		{"stored", h, `"k"`, "b", "k", idempotency.Stored, "", 200},
		{"replayed", h, "k", "b", "k", idempotency.Replayed, "", 200},
		{"reused", h, "k", "other", "k", idempotency.Reused, "", 422},
		{"malformed", h, `"k`, "b", "", idempotency.Rejected, "", 422},
		{"missing", h, "", "b", "", idempotency.Rejected, "", 400},
		{"not stored", h, "html", "b", "html", idempotency.NotStored, idempotency.ReasonContentType, 200},
		{"interrupted", h, "html", "b", "html", idempotency.Interrupted, "", 409},
		{"panicked", h, "panic", "b", "panic", idempotency.Panicked, "", 0},
		{"down", down, "k", "b", "k", idempotency.Failed, "", 503},
		{"full", full, "k", "b", "k", idempotency.NotStored, idempotency.ReasonStoreFailed, 201},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			func() {
				defer func() { _ = recover() }()
				send(tt.h, request(tt.key, tt.body))
			}()
			e, _ := es.last(t)
			require.Equal(t, tt.want, e.Key)
			storageKey := idempotency.NewKey("acme", tt.want)
			if tt.want == "" {
				storageKey = idempotency.Key{}
			}
			require.Equal(t, storageKey, e.StorageKey)
			require.Equal(t, tt.outcome, e.Outcome)
			require.Equal(t, tt.reason, e.Reason)
			require.Equal(t, tt.status, e.Status)
			require.NotZero(t, e.Duration)
		})
	}
	t.Run("within another", func(t *testing.T) {
		before := len(es.seen())
		send(h, request("outer", "b"))
		seen := es.seen()[before:]
		require.Len(t, seen, 2, "one that steps aside observes nothing")
		require.Equal(t, idempotency.NewKey("acme", "inner"), seen[0].StorageKey)
		require.Equal(t, idempotency.NewKey("acme", "outer"), seen[1].StorageKey)
		require.Equal(t, idempotency.ReasonNoStore, seen[1].Reason)
	})
}

// The texts stand in users' metrics.
func TestReasonsAreStable(t *testing.T) {
	for reason, want := range map[idempotency.Reason]string{
		idempotency.ReasonNoStore:     "no_store",
		idempotency.ReasonStoreIf:     "store_if",
		idempotency.ReasonContentType: "content_type",
		idempotency.ReasonInvalidJSON: "invalid_json",
		idempotency.ReasonEncoded:     "encoded",
		idempotency.ReasonTooLarge:    "too_large",
		idempotency.ReasonLength:      "length",
		idempotency.ReasonTrailers:    "trailers",
		idempotency.ReasonHijacked:    "hijacked",
		idempotency.ReasonRequestBody: "request_body",
		idempotency.ReasonServerError: "server_error",
		idempotency.ReasonStoreFailed: "store_failed",
	} {
		require.Equal(t, want, string(reason))
	}
}

// A panic is observed once: by the instance whose claim it was.
func TestEventOfAPanic(t *testing.T) {
	for name, tt := range map[string]struct {
		backend *counted
		handler script
		opts    []idempotency.Option
		status  int
		err     error
	}{
		"claimed":                  {newCounted(never), script{panics("boom")}, nil, 0, nil},
		"claimed, streamed":        {newCounted(never), script{code(202), says("<p>"), panics("boom")}, nil, 202, nil},
		"claimed, not released":    {newCounted(always("release")), script{says("{}"), panics("boom")}, nil, 0, errDown},
		"unprotected":              {newCounted(always("claim")), script{panics("boom")}, with(idempotency.WithFailOpen()), 0, errDown},
		"unprotected and answered": {newCounted(always("claim")), script{code(202), panics("boom")}, with(idempotency.WithFailOpen()), 202, errDown},
	} {
		t.Run(name, func(t *testing.T) {
			es, inner := &events{}, &events{}
			aside := idempotency.New(tt.backend, append(tt.opts, quiet, inner.option())...)(tt.handler)
			h := idempotency.New(tt.backend, append(tt.opts, quiet, es.option())...)(aside)
			require.PanicsWithValue(t, "boom", func() { send(h, request("k", "b")) })
			e, n := es.last(t)
			require.Equal(t, 1, n)
			require.Empty(t, inner.seen(), "the inner one stepped aside")
			require.Equal(t, idempotency.Panicked, e.Outcome)
			require.Equal(t, tt.status, e.Status)
			require.Equal(t, "k", e.Key)
			if tt.err == nil {
				require.NoError(t, e.Err)
			} else {
				require.ErrorIs(t, e.Err, tt.err)
			}
		})
	}
}
