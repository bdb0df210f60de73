package idempotency_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// The page of the problems has each that a client can get, with what it is told.
func TestProblemsPage(t *testing.T) {
	page, err := os.ReadFile("docs/PROBLEMS.md")
	require.NoError(t, err)
	for _, err := range []error{
		idempotency.ErrKeyMissing, idempotency.ErrKeyInvalid, idempotency.ErrKeyReused, idempotency.ErrOutstanding, idempotency.ErrInterrupted,
		idempotency.ErrBodyUnreadable, fmt.Errorf("%w: %w", idempotency.ErrBodyUnreadable, &http.MaxBytesError{}), idempotency.ErrClaimLost,
		idempotency.ErrNotCommitted, idempotency.ErrUnreadable, idempotency.ErrUnavailable, idempotency.ErrFull,
	} {
		w := httptest.NewRecorder()
		idempotency.WriteError(w, nil, err)
		var p struct {
			Type      string
			Retryable bool
		}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
		_, fragment, _ := strings.Cut(p.Type, "#")
		require.Contains(t, string(page), "\n## "+fragment+"\n")
		row := fmt.Sprintf("| %d | %s | %s", w.Code, map[bool]string{true: "yes", false: "no"}[p.Retryable], w.Header().Get("Retry-After"))
		var found bool
		for line := range strings.Lines(string(page)) {
			found = found || strings.HasPrefix(line, "| ["+fragment+"]") && strings.Contains(line, strings.TrimSpace(row)+" |")
		}
		require.True(t, found, "%s: %s", fragment, row)
	}
}

func TestDocumentation(t *testing.T) {
	const page = "https://api.example.com/docs/keys?v=1"
	own := idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) { idempotency.WriteError(w, r, err) })
	for name, opts := range map[string][]idempotency.Option{"by default": nil, "by an error handler that delegates": {own}} {
		t.Run(name, func(t *testing.T) {
			h := idempotency.New(idempotency.NewMemory(), append(opts, idempotency.WithDocumentation(page))...)(&payments{})
			outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", "</>; rel=up")
				h.ServeHTTP(w, r)
			})
			require.Equal(t, []string{"</>; rel=up"}, send(outside, request("k", "b")).Header()["Link"])
			w := send(outside, request("k", "c"))
			require.Equal(t, http.StatusUnprocessableEntity, w.Code)
			require.Equal(t, []string{"</>; rel=up", "<" + page + `>; rel="describedby"`}, w.Header()["Link"])
			var p struct{ Type string }
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
			require.Equal(t, page+"#key-reused", p.Type)
		})
	}
	require.NotContains(t, send(idempotency.New(idempotency.NewMemory())(&payments{}), request(`"`, "b")).Header(), "Link")
	for _, bad := range []string{"", "docs/keys", "/docs", "https://", "https://example.com/#keys", "https://example.com/#", "https://example.com/>", "ht tps://e"} {
		require.PanicsWithValue(t, "idempotency: WithDocumentation: no absolute URL without a fragment", func() { idempotency.New(idempotency.NewMemory(), idempotency.WithDocumentation(bad)) }, bad)
	}
}

func TestEcho(t *testing.T) {
	status := http.StatusCreated
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithEcho(), idempotency.WithHeader("Payment-Key"), idempotency.WithRequired())(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = w.Write([]byte("{}"))
		}))
	send := func(key, body string) http.Header {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		if key != "" {
			r.Header.Set("Payment-Key", key)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Header()
	}
	require.Equal(t, []string{"k"}, send("k", "b")["Payment-Key"])
	replayed := send(`"k";a=1`, "b")
	require.Equal(t, "true", replayed.Get("Idempotent-Replayed"))
	require.Equal(t, []string{`"k";a=1`}, replayed["Payment-Key"], "as it was spelled this time")
	require.Equal(t, []string{"k"}, send("k", "another")["Payment-Key"])
	require.NotContains(t, send(`"malformed`, "b"), "Payment-Key")
	require.NotContains(t, send("", "b"), "Payment-Key")
}

// Many clients retry after these by themselves: a replay would be the same each time.
func TestReplayOfAFailureIsNotToBeRetried(t *testing.T) {
	for status, retried := range map[int]bool{200: false, 201: false, 400: false, 404: false, 408: true, 409: true, 422: false, 429: true, 500: true, 503: true, 599: true} {
		h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
			_, _ = w.Write([]byte("{}"))
		}))
		first := send(h, request("k", "b"))
		require.Equal(t, []string{"7"}, first.Header()["Retry-After"])
		require.NotContains(t, first.Header(), "X-Should-Retry")
		replay := send(h, request("k", "b"))
		require.Equal(t, status, replay.Code)
		require.Equal(t, "true", replay.Header().Get("Idempotent-Replayed"))
		require.Equal(t, retried, replay.Header().Get("X-Should-Retry") == "false", status)
		require.Equal(t, status != 429 && status != 503, replay.Header().Get("Retry-After") == "7", status)
	}
}

// A Retry-After that the store holds all the same is not sent.
func TestStoredRetryAfterIsNotSent(t *testing.T) {
	backend := idempotency.NewMemory()
	h := idempotency.New(backend)(&payments{})
	send(h, request("k", "b"))
	key := idempotency.NewKey("", "k")
	held, _, ok, err := backend.Lookup(t.Context(), key)
	require.NoError(t, err)
	require.True(t, ok)
	_, err = backend.Forget(t.Context(), key, held)
	require.NoError(t, err)
	mustClaim(t, backend, key, held.Claim, idempotency.Terms{Lease: 1e9})
	response := responseBytes(t, idempotency.Response{Status: 503, Header: http.Header{"Retry-After": {"7"}, "X-Kept": {"1"}}})
	require.NoError(t, backend.Complete(t.Context(), key, held.Claim, response, 1e12))
	w := send(h, request("k", "b"))
	require.Equal(t, 503, w.Code)
	require.Equal(t, "1", w.Header().Get("X-Kept"))
	require.NotContains(t, w.Header(), "Retry-After")
}
