package integration

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/idempotency-go/idempotency"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// asgiSettings are those of asgi-idempotency-header, by default.
func asgiSettings() []idempotency.Option {
	return []idempotency.Option{
		idempotency.WithFingerprint(nil), // It compares nothing but the key.
		idempotency.WithExpiry(24 * time.Hour),
	}
}

// answerFromASGI answers by what asgi-idempotency-header has stored in Redis, under its default
// names, and lets other requests pass. It writes nothing.
func answerFromASGI(old redis.Cmdable) func(http.Handler) http.Handler {
	const keys, responses = "idempotency-key-keys", "idempotency-key-responses"
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key := r.Header.Get("Idempotency-Key")
			if key == "" || r.Method != http.MethodPost && r.Method != http.MethodPatch {
				next.ServeHTTP(w, r)
				return
			}
			stored, err := old.MGet(r.Context(), responses+key, responses+key+"status-code").Result()
			if err != nil {
				idempotency.WriteError(w, r, idempotency.ErrUnavailable)
				return
			}
			body, answered := stored[0].(string)
			code, _ := stored[1].(string)
			if status, err := strconv.Atoi(code); answered && err == nil {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Idempotent-Replayed", "true")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, body) // The client may be gone.
				return
			}
			until, err := old.ZScore(r.Context(), keys, key).Result()
			switch {
			case err == nil && until > float64(time.Now().Unix()):
				idempotency.WriteError(w, r, idempotency.ErrInterrupted) // It began there, and did not end.
			case err == nil || errors.Is(err, redis.Nil):
				next.ServeHTTP(w, r)
			default:
				idempotency.WriteError(w, r, idempotency.ErrUnavailable)
			}
		})
	}
}

// TestFromASGI begins with what asgi-idempotency-header leaves in Redis.
func TestFromASGI(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = client.Close() })
	const keys, responses = "idempotency-key-keys", "idempotency-key-responses"
	soon, past := float64(time.Now().Add(time.Hour).Unix()), float64(time.Now().Add(-time.Hour).Unix())
	for _, key := range []string{"answered", "without a status"} {
		_, _ = server.ZAdd(keys, soon, key)
		require.NoError(t, server.Set(responses+key, `{"payment": 7}`))
	}
	for _, key := range []string{"answered", "without a body"} {
		require.NoError(t, server.Set(responses+key+"status-code", "202"))
	}
	_, _ = server.ZAdd(keys, soon, "without a body")
	_, _ = server.ZAdd(keys, soon, "broken off")
	_, _ = server.ZAdd(keys, past, "expired")

	o, till := newOrderTest(t, asgiSettings()...), &paymentTill{}
	s := o.serve(answerFromASGI(client)(o.once(till)))
	for _, test := range []struct {
		key, body string
		status    int
		replayed  bool
		runs      int64
	}{
		{"answered", `{"payment": 7}`, http.StatusAccepted, true, 0},
		{"without a status", "", http.StatusConflict, false, 0},
		{"without a body", "", http.StatusConflict, false, 0},
		{"broken off", "", http.StatusConflict, false, 0},
		{"expired", `{"payment":1}`, http.StatusCreated, false, 1},
		{"expired", `{"payment":1}`, http.StatusCreated, true, 1},
		{"new", `{"payment":2}`, http.StatusCreated, false, 2},
		{"new", `{"payment":2}`, http.StatusCreated, true, 2},
		{"", `{"payment":3}`, http.StatusCreated, false, 3},
	} {
		a := s.post("/", test.key)
		require.Equal(t, test.status, a.status, test.key)
		require.Equal(t, test.replayed, a.replayed, test.key)
		if test.body == "" {
			require.Contains(t, a.body, "#interrupted")
			require.Empty(t, a.header.Get("Retry-After"))
		} else {
			require.Equal(t, test.body, a.body)
			require.Equal(t, "application/json", a.header.Get("Content-Type"))
		}
		require.Equal(t, test.runs, till.runs.Load(), test.key)
	}
	require.Equal(t, http.StatusCreated, s.send(http.MethodPut, "/", "answered", "").status, "another method")

	require.NoError(t, client.Set(t.Context(), keys, "of another type", 0).Err())
	require.Equal(t, http.StatusServiceUnavailable, s.post("/", "newer").status)
	server.Close()
	down := s.post("/", "newest")
	require.Equal(t, http.StatusServiceUnavailable, down.status)
	require.Equal(t, "1", down.header.Get("Retry-After"))
	require.EqualValues(t, 4, till.runs.Load())
}

// TestComparisonTurnedOn has the comparison turned on while records without it are there, and
// while a process still runs that does not compare.
func TestComparisonTurnedOn(t *testing.T) {
	o, till := newOrderTest(t), &paymentTill{}
	lax := o.serve(idempotency.New(o.orderBackend, asgiSettings()...)(till))
	strict := o.serve(idempotency.New(o.orderBackend)(till))
	require.Equal(t, http.StatusCreated, lax.send(http.MethodPost, "/", "k", "amount=1").status)
	require.True(t, strict.send(http.MethodPost, "/", "k", "amount=2").replayed, "it was made without")
	require.Equal(t, http.StatusCreated, strict.send(http.MethodPost, "/", "l", "amount=1").status)
	require.True(t, lax.send(http.MethodPost, "/", "l", "amount=2").replayed, "nothing is compared there")
	require.Equal(t, http.StatusUnprocessableEntity, strict.send(http.MethodPost, "/", "l", "amount=2").status)
	require.EqualValues(t, 2, till.runs.Load())
}

// TestASGIKeys sends keys that asgi-idempotency-header takes.
func TestASGIKeys(t *testing.T) {
	for _, test := range []struct {
		name, key string
		any, uuid int // the status without a validator, and with UUIDv4
	}{
		{"version 4", "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", 201, 201},
		{"in upper case", "9B1DEB4D-3B7D-4BAD-9BDD-2B0D7B3DCB6D", 201, 201},
		{"32 digits", "9b1deb4d3b7d4bad9bdd2b0d7b3dcb6d", 201, 201},
		{"version 1", "2c5ea4c0-4067-11e9-8bad-9b1deb4d3b7d", 201, 422},
		{"in braces", "{9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d}", 201, 422},
		{"as a URN", "urn:uuid:9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", 201, 422},
		{"no UUID", "order 7", 201, 422},
		{"not ASCII", "caf\xc3\xa9", 422, 422},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOrderTest(t)
			require.Equal(t, test.any, o.serve(o.once(&paymentTill{})).post("/", test.key).status)
			o = newOrderTest(t, idempotency.WithKeyValidator(idempotency.UUIDv4))
			require.Equal(t, test.uuid, o.serve(o.once(&paymentTill{})).post("/", test.key).status)
		})
	}
}
