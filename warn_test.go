package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// warnings returns what was warned of in a log of JSON lines: the reason and the
// pattern of each warning.
func warnings(t *testing.T, log *bytes.Buffer) (told []string) {
	t.Helper()
	for line := range strings.Lines(log.String()) {
		var l struct{ Level, Msg, Reason, Pattern, Method string }
		require.NoError(t, json.Unmarshal([]byte(line), &l))
		if l.Level == "WARN" {
			require.Equal(t, "idempotency: response not stored, a retry is not replayed", l.Msg)
			require.Equal(t, http.MethodPost, l.Method)
			told = append(told, l.Reason+" "+l.Pattern)
		}
	}
	return told
}

// jsonLog logs as JSON lines. Its handler locks for itself.
func jsonLog(w *bytes.Buffer) idempotency.Option {
	return idempotency.WithLogger(slog.New(slog.NewJSONHandler(w, nil)))
}

// Each reason is warned of once for each route. What the user asked for is not.
func TestWarnsOnce(t *testing.T) {
	var log bytes.Buffer
	mux := http.NewServeMux()
	mux.Handle("POST /a/{id}", script{says("<p>")})
	mux.Handle("POST /b", script{says("<p>")})
	mux.Handle("POST /broken", script{asJSON, says("{")})
	mux.Handle("POST /long", script{says(`"long"`)})
	mux.Handle("POST /free", script{noStore, says("<p>")})
	mux.Handle("POST /teapot", script{code(http.StatusTeapot), says("{}")})
	mux.Handle("POST /stored", script{says(`{}`)})
	h := idempotency.New(idempotency.NewMemory(), jsonLog(&log), idempotency.WithBufferLimit(4),
		idempotency.WithStoreIf(func(status int, _ http.Header) bool { return status != http.StatusTeapot }))(mux)
	for n := range 3 {
		for _, path := range []string{"/a/1", "/a/2", "/b", "/broken", "/long", "/free", "/teapot", "/stored", "/none"} {
			r := httptest.NewRequest(http.MethodPost, path, nil)
			r.Header.Set("Idempotency-Key", fmt.Sprint(path, n))
			send(h, r)
		}
	}
	require.Equal(t, []string{
		"content_type POST /a/{id}", "content_type POST /b", "invalid_json POST /broken", "too_large POST /long", "content_type ",
	}, warnings(t, &log))
}

func TestWarnsOfEveryReason(t *testing.T) {
	for _, tt := range reasons {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			h := idempotency.New(idempotency.NewMemory(), append(tt.opts, jsonLog(&log))...)(tt.handler)
			for range 2 {
				send(h, request("k", "b"))
			}
			if tt.asked {
				require.Empty(t, log.String())
				return
			}
			require.Equal(t, []string{string(tt.reason) + " "}, warnings(t, &log))
		})
	}
}

func TestWarnsThatTheStoreFailed(t *testing.T) {
	var log bytes.Buffer
	h := idempotency.New(newCounted(alwaysWith("complete", idempotency.ErrFull)), jsonLog(&log))(&payments{})
	for n := range 3 {
		send(h, request(fmt.Sprint(n), "b"))
	}
	require.Equal(t, []string{"store_failed "}, warnings(t, &log))
	require.Equal(t, 3, strings.Count(log.String(), `"level":"ERROR"`), "each fault is logged")
}

// The pattern is the one that the handler's request has afterwards, also where the
// middleware stands inside of the mux.
func TestWarnsOfThePatternInside(t *testing.T) {
	var log bytes.Buffer
	mux := http.NewServeMux()
	wrap := idempotency.New(idempotency.NewMemory(), jsonLog(&log))
	mux.Handle("POST /a", wrap(script{says("<p>")}))
	mux.Handle("POST /b", wrap(script{says("<p>")}))
	for _, path := range []string{"/a", "/b", "/a", "/b"} {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		r.Header.Set("Idempotency-Key", path)
		send(mux, r)
	}
	require.Equal(t, []string{"content_type POST /a", "content_type POST /b"}, warnings(t, &log))
}

func TestWarnsAtMostAHundredTimes(t *testing.T) {
	var log bytes.Buffer
	h := idempotency.New(idempotency.NewMemory(), jsonLog(&log))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Pattern, _ = idempotency.KeyFromContext(r.Context())
		fmt.Fprint(w, "<p>")
	}))
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for n := range 150 {
				send(h, request(fmt.Sprint(n), "b"))
			}
		})
	}
	clients.Wait()
	told := warnings(t, &log)
	require.Len(t, told, 100)
	seen := make(map[string]bool)
	for _, warning := range told {
		require.False(t, seen[warning], warning)
		seen[warning] = true
	}
}

// One instance's warnings do not silence another's.
func TestWarningsAreOfOneInstance(t *testing.T) {
	var log bytes.Buffer
	for range 2 {
		send(idempotency.New(idempotency.NewMemory(), jsonLog(&log))(script{says("<p>")}), request("k", "b"))
	}
	require.Len(t, warnings(t, &log), 2)
}

// The log line has the context of the request, for handlers that take a trace
// from it, and leads to the claim. It does not show the key.
func TestWarningLeadsToTheClaim(t *testing.T) {
	type traceKey struct{}
	var line map[string]any
	var trace any
	logger := slog.New(contextHandler{slog.DiscardHandler, func(ctx context.Context, r slog.Record) {
		trace, line = ctx.Value(traceKey{}), map[string]any{}
		r.Attrs(func(a slog.Attr) bool { line[a.Key] = fmt.Sprint(a.Value); return true })
	}})
	backend := newHooked()
	var token idempotency.Token
	backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
		token = claim.Token
		return backend.Memory.Claim(ctx, key, claim, terms)
	}
	h := idempotency.New(backend, idempotency.WithLogger(logger))(script{says("<p>")})
	r := request("my-secret-key", "my-secret-body")
	send(h, r.WithContext(context.WithValue(r.Context(), traceKey{}, "trace")))
	require.Equal(t, "trace", trace)
	require.Equal(t, map[string]any{
		"reason": "content_type", "pattern": "", "method": "POST", "storage_key": keyOf("my-secret-key").String(), "claim": token.String(),
	}, line)
}

// contextHandler calls a function for each record.
type contextHandler struct {
	slog.Handler
	handle func(ctx context.Context, r slog.Record)
}

func (contextHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h contextHandler) Handle(ctx context.Context, r slog.Record) error {
	h.handle(ctx, r)
	return nil
}

// Two reasons on one route are two warnings.
func TestWarnsOfEachReasonOfARoute(t *testing.T) {
	var log bytes.Buffer
	answers := map[string]script{"1": {says("<p>")}, "2": {asJSON, says("{")}, "3": {says("<p>")}}
	h := idempotency.New(idempotency.NewMemory(), jsonLog(&log))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, _ := idempotency.KeyFromContext(r.Context())
		answers[key].ServeHTTP(w, r)
	}))
	for _, key := range []string{"1", "2", "3"} {
		send(h, request(key, "b"))
	}
	require.Equal(t, []string{"content_type ", "invalid_json "}, warnings(t, &log))
}
