package idempotency_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/idempotency-go/idempotency"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// discard keeps faults that a test makes out of its output.
func discard() idempotency.Option { return idempotency.WithLogger(slog.New(slog.DiscardHandler)) }

// countingHandler answers with JSON and counts its runs.
type countingHandler struct{ runs atomic.Int32 }

func (h *countingHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.runs.Add(1)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, `{"id":1}`)
}

// postWith sends a request with a key and headers.
func postWith(h http.Handler, key, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/client-path?q=client-query", strings.NewReader(body))
	r.Header.Set("Idempotency-Key", key)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Nothing of what a client sends is sent on to Redis: neither its key, nor what
// it is scoped by, nor its path, query, headers or body.
func TestRedisSeesNoClientText(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		plain := newClient(t)
		client, wire := tapped(t, plain)
		prefix := freshPrefix(t, plain)
		tenant := idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("Tenant") })
		h := idempotency.New(idempotency.NewRedis(client, idempotency.WithPrefix(prefix)), tenant)(&countingHandler{})
		send := func(key, body string) int {
			return postWith(h, key, body, "Tenant", "client-tenant", "X-Other", "client-header").Code
		}
		commands := wire.during(func() {
			require.Equal(t, http.StatusCreated, send("client-key", "client-body"))
			require.Equal(t, http.StatusCreated, send(`"client-key"`, "client-body"))
			require.Equal(t, http.StatusUnprocessableEntity, send("client-key", "client-other-body"))
		})
		require.GreaterOrEqual(t, len(commands), 4)
		key := prefix + idempotency.NewKey("client-tenant", "client-key").String()
		for _, command := range commands {
			requireOneKey(t, command, key)
		}
		wire.mu.Lock()
		defer wire.mu.Unlock()
		require.NotContains(t, wire.raw.String(), "client-")
		require.Contains(t, wire.raw.String(), `{"id":1}`, "the answer is stored")
	})
}

// A header that the handler took away is stored in its place among the others.
func TestRedisStoresHeadersTakenAway(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := idempotency.WithPrefix(freshPrefix(t, client))
		inner := idempotency.New(idempotency.NewRedis(client, prefix))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Del("A-Outer")
			w.Header().Set("Location", "/1")
			w.Header().Del("Server")
			_, _ = io.WriteString(w, "{}")
		}))
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("A-Outer", "1")
			w.Header().Set("Server", "2")
			inner.ServeHTTP(w, r)
		})
		for _, replayed := range []string{"", "true"} {
			w := postWith(h, "k", "b")
			require.Equal(t, http.StatusOK, w.Code)
			require.Equal(t, replayed, w.Header().Get("Idempotent-Replayed"))
			require.Equal(t, "/1", w.Header().Get("Location"))
			require.Empty(t, w.Header()["A-Outer"])
			require.Empty(t, w.Header()["Server"])
		}
	})
}

// A claim whose answer was lost is released by its token.
func TestRedisClaimThatLandedIsReleased(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		b := provenRedis(t, client, idempotency.WithPrefix(freshPrefix(t, client)))
		learnScripts(t, b)
		lost := &loseNext{}
		client.AddHook(lost)
		lost.next.Store(true)
		handler := &countingHandler{}
		h := idempotency.New(b, discard())(handler)
		require.Equal(t, http.StatusServiceUnavailable, postWith(h, "k", "b").Code)
		require.Zero(t, handler.runs.Load())
		require.Equal(t, http.StatusCreated, postWith(h, "k", "b").Code, "the claim that landed was released")
	})
}

// A record that cannot be read is 503 in every mode, and stays as it is.
func TestRedisUnreadableRecordIsUnavailable(t *testing.T) {
	for name, opts := range map[string][]idempotency.Option{
		"again": nil, "at most once": {idempotency.WithAtMostOnce()}, "fail open": {idempotency.WithFailOpen()},
	} {
		t.Run(name, func(t *testing.T) {
			client := miniRedis(t)
			b := provenRedis(t, client)
			key := "idempotency:" + keyOf("k").String()
			require.NoError(t, client.Set(t.Context(), key, "garbage", 0).Err())
			handler := &countingHandler{}
			var seen []idempotency.Event
			opts := append(opts, discard(), idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { seen = append(seen, e) }))
			w := postWith(idempotency.New(b, opts...)(handler), "k", "b")
			require.Equal(t, http.StatusServiceUnavailable, w.Code)
			require.Zero(t, handler.runs.Load())
			require.Equal(t, "garbage", client.Get(t.Context(), key).Val())
			require.Len(t, seen, 1)
			require.ErrorIs(t, seen[0].Err, idempotency.ErrUnreadable)
			require.NotContains(t, w.Body.String(), "garbage")
		})
	}
}

// Faults of the store, all the way to the answer.
func TestRedisGoneIsUnavailable(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { client.Close() })
	addr := server.Addr()
	server.Close()
	handler := &countingHandler{}
	w := postWith(idempotency.New(idempotency.NewRedis(client), discard())(handler), "client-key", "b")
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.NotContains(t, w.Body.String(), addr)
	require.NotContains(t, w.Body.String(), "client-key")
	require.Zero(t, handler.runs.Load())
}
